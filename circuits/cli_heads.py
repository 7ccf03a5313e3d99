"""The command `interp heads`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.heads.probe import Vocabulary
    from interp.adapters.opened import Opened

Types = Annotated[str | None, typer.Option(help="Head types, separated by commas; all if not given.")]
NNull = Annotated[
    int | None,
    typer.Option("--n-null", min=99, help="Random twins; if not given 100 to 400, as many as 30 s are enough for."),
]
Bos = Annotated[
    str,
    typer.Option(help="Token id that begins random prompts, or none. auto: the tokenizer's, where the model uses one."),
]
PairsFile = Annotated[
    Path | None,
    typer.Option("--pairs", help="JSON lines of prompt pairs: copying is measured where their answers are read."),
]
Causal = Annotated[bool, typer.Option("--causal/--no-causal", help="Test flagged heads by intervention.")]


def heads(
    path: Annotated[str, typer.Argument(help="Run, checkpoint file or Hugging Face folder.")],
    step: Annotated[int | None, typer.Option(min=0, help="Training step; the newest if not given.")] = None,
    types: Types = None,
    n_null: NNull = None,
    bos: Bos = "auto",
    pairs: PairsFile = None,
    causal: Causal = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, null models and intervals.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[Path, typer.Option(help="Folder in which the name of a run is looked up.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look for induction, previous token, duplicate token and copy heads in any model."""
    from interp.errors import UsageError

    if bos not in ("auto", "none") and not bos.isdecimal():
        raise UsageError(f"--bos {bos!r}: expected auto, none or a token id such as 50256")
    import torch

    from circuits.heads.detect import HeadOptions, HeadOrigin, detect_heads
    from circuits.heads.text import show_heads
    from circuits.outputs import HeadsOutput
    from interp.adapters.opening import open_model
    from interp.console import print_json
    from interp.progress import counter

    torch.set_num_threads(threads)
    opened = open_model(_place(path, store), step=step)
    named = None if types is None else [name.strip() for name in types.split(",") if name.strip()]
    prompts = None if pairs is None else _pairs(pairs, opened)
    with counter() as tell:
        found = detect_heads(
            opened.decoder,
            named,
            vocabulary=vocabulary_of(opened, bos),
            pairs=prompts,
            origin=HeadOrigin(opened.name, opened.fingerprint, opened.step),
            options=HeadOptions(seed=seed, n_null=n_null, causal=causal),
            tell=tell,
        )
    output = HeadsOutput(
        model=opened.name, model_kind=opened.kind, fingerprint=opened.fingerprint, step=opened.step, detections=found
    )
    if as_json:
        print_json(output)
    else:
        show_heads(output)


def vocabulary_of(opened: "Opened", bos: str) -> "Vocabulary":
    """Ids that random prompts may use: without the tokenizer's special ones and without rows that no token has.

    Raises:
        UsageError: for a tokenizer of another model.
    """
    from circuits.heads.probe import Vocabulary
    from interp.pairs.tokenizers import fits, load_tokenizer

    given = int(bos) if bos.isdecimal() else None
    if opened.tokenizer_path is None:
        return Vocabulary(bos=given)
    text = fits(load_tokenizer(opened.tokenizer_path), len(opened.decoder.W_E))
    if bos == "auto" and opened.processing.bos is True:
        given = text.bos
    added = text.inner.get_added_tokens_decoder()
    special = tuple(sorted(token for token, entry in added.items() if entry.special))
    return Vocabulary(usable=range(text.d_vocab), special=special, bos=given)


def _place(path: str, store: Path) -> Path:
    """The path itself or, where there is none, the run of that name."""
    return store / path if not Path(path).exists() and (store / path).is_dir() else Path(path)


def _pairs(file: Path, opened: "Opened"):
    """Prompt pairs in the model's tokens, with a BOS token where the model uses one."""
    from interp.pairs.jsonl import read_jsonl
    from interp.pairs.tokenizers import load_tokenizer

    text = None if opened.tokenizer_path is None else load_tokenizer(opened.tokenizer_path)
    first = text is not None and text.bos is not None and opened.processing.bos is True
    return read_jsonl(file, text, d_vocab=len(opened.decoder.W_E), bos=first)
