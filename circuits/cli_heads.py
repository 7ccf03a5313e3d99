"""The command `interp heads`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from circuits.heads.through_training import HeadsRequest, Looked
    from circuits.outputs import HeadsOutput
    from circuits.search.base import Tell

Checkpoints = Annotated[
    str,
    typer.Option("--checkpoints", "--checkpoint", "--step", help="last, all (of a run or a series), or one step."),
]
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
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder that keeps the results; those of a run are kept in it if not given."),
]


def heads(
    path: Annotated[str, typer.Argument(help="Run, checkpoint file or Hugging Face folder.")],
    checkpoints: Checkpoints = "last",
    types: Types = None,
    n_null: NNull = None,
    bos: Bos = "auto",
    pairs: PairsFile = None,
    causal: Causal = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, null models and intervals.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[Path, typer.Option(help="Folder in which the name of a run is looked up.")] = Path("runs"),
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look for induction, previous token, duplicate token and copy heads in any model, or through its training."""
    from interp.errors import UsageError

    if bos not in ("auto", "none") and not bos.isdecimal():
        raise UsageError(f"--bos {bos!r}: expected auto, none or a token id such as 50256")
    if checkpoints not in ("last", "all") and not checkpoints.isdecimal():
        raise UsageError(f"--checkpoints {checkpoints!r}: expected last, all, or a step such as 5080")
    import torch

    from circuits.heads.detect import HeadOptions
    from circuits.heads.through_training import HeadsRequest, look
    from interp.adapters.opening import open_model
    from interp.console import note, print_json
    from interp.progress import counter

    torch.set_num_threads(threads)
    named = None if types is None else tuple(name.strip() for name in types.split(",") if name.strip())
    options = HeadOptions(seed=seed, n_null=n_null, causal=causal)
    request, place = HeadsRequest(named, bos, pairs, options, output, fresh), _place(path, store)
    with counter() as tell:
        if checkpoints == "all":
            found = _followed(place, request, tell)
        else:
            step = None if checkpoints == "last" else int(checkpoints)
            found = _output(look(open_model(place, step=step), request, tell))
    print_json(found) if as_json else _show(found)
    if checkpoints == "all" and found.model_kind != "interp run" and output is None:
        note("nothing was kept: with -o FOLDER a stopped call goes on where it was")
    _require_all(found)


def _followed(place: Path, request: "HeadsRequest", tell: "Tell") -> "HeadsOutput":
    """All checkpoints of a run or a series, the newest of which stands for the detections.

    Raises:
        UsageError: for a single model.
    """
    from circuits.heads.through_training import follow_heads
    from interp.adapters.opening import open_model, steps_of
    from interp.errors import UsageError

    steps = steps_of(place)
    if not steps:
        raise UsageError(f"--checkpoints all: {place} holds a single model, not a series of steps")
    found, story = follow_heads(steps, lambda step: open_model(place, step=step), request, tell)
    newest = next(one for one in reversed(found) if one is not None)
    return _output(newest).model_copy(update={"trajectory": story})


def _output(looked: "Looked") -> "HeadsOutput":
    from circuits.outputs import HeadsOutput

    return HeadsOutput(
        model=looked.model,
        model_kind=looked.kind,
        fingerprint=looked.fingerprint,
        step=looked.step,
        detections=looked.detections,
        trajectory=None,
    )


def _show(found: "HeadsOutput") -> None:
    from circuits.heads.text import show_course, show_heads

    show_heads(found) if found.trajectory is None else show_course(found)


def _require_all(found: "HeadsOutput") -> None:
    """Exit code 1 where a checkpoint could not be looked at."""
    failed = [] if found.trajectory is None else found.trajectory.failed
    if not failed:
        return
    from interp.console import fail

    reasons = "; ".join(f"step {one.step:,}: {one.reason}" for one in failed[:3]) + ("; ..." if failed[3:] else "")
    fail(f"{len(failed)} checkpoints failed: {reasons}; the same command looks at them again")
    raise typer.Exit(1)


def _place(path: str, store: Path) -> Path:
    """The path itself or, where there is none, the run of that name."""
    return store / path if not Path(path).exists() and (store / path).is_dir() else Path(path)
