"""The model and the prompt pairs that a circuit is looked for in, from a run or from any checkpoint on disk."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circuits.problem import Ablation, Problem
from interp.decoder import Decoder, decoder_of
from interp.errors import UsageError
from interp.pairs.base import Pairs
from interp.rng import generator
from interp.run import Run
from interp.train import load_model

DEFAULT_LENGTH = 8  # of a task's prompts, where it has one; else its longest


@dataclass(frozen=True)
class Subject:
    """What is looked at, with what must be known to cite it.

    Attributes:
        pairs_name: task and length, or file, of the prompt pairs.
        processing: how the weights and prompts were prepared, as name -> value.
    """

    decoder: Decoder
    pairs: Pairs
    model: str
    step: int | None
    fingerprint: str
    pairs_name: str
    dtype: str = "float32"
    processing: tuple[tuple[str, str], ...] = ()

    def problem(self, ablation: Ablation, by_position: bool, max_bytes: int | None = 2 << 30) -> Problem:
        """The search problem."""
        return Problem(self.decoder, self.pairs, ablation, by_position, max_bytes)


@dataclass(frozen=True)
class Prompts:
    """Which pairs a task gives.

    Attributes:
        length: number of inputs; None for 8, or the longest where that is shorter.
        n: prompts in all; half of them score, a quarter each choose the size and evaluate.
        family: as in `interp.pairs.from_task`.
    """

    length: int | None = None
    n: int = 128
    family: str = "mixed"
    seed: int = 0


def of_run(run: Run, step: int | None, prompts: Prompts) -> Subject:
    """A checkpoint of a run with held-out prompts of its task.

    Raises:
        TaskError: for a length or family that the task does not have.
    """
    from interp.pairs.from_task import pairs_of_task

    model, task, checkpoint = load_model(run, step)
    length = prompts.length or min(DEFAULT_LENGTH, max(task.lengths))
    held_out = task.split(run.config.seed, run.config.data).test
    pairs = pairs_of_task(
        task, length, prompts.n, generator(prompts.seed, "circuit pairs"), held_out, family=prompts.family
    ).split(prompts.seed)
    decoder = decoder_of(model)
    return Subject(
        decoder=decoder,
        pairs=pairs,
        model=run.name,
        step=checkpoint.step,
        fingerprint=checkpoint.hash,
        pairs_name=f"{task.name}, length {length}, {prompts.family} pairs of held-out sequences",
    )


def of_path(
    path: Path, pairs_file: Path | None, *, step: int | None = None, bos: bool = False, seed: int = 0
) -> Subject:
    """A checkpoint on disk with a file of prompt pairs.

    Raises:
        UsageError: without pairs, or for pairs that do not fit the model.
    """
    from circuits.drift import drift_of_pairs
    from interp.adapters.opening import open_model
    from interp.pairs.jsonl import read_jsonl
    from interp.pairs.mib_csv import read_mib_csv
    from interp.pairs.tokenizers import fits, load_tokenizer

    if pairs_file is None:
        raise UsageError(
            f"{path}: a model that is no run of ours needs prompt pairs: --pairs FILE.jsonl (or a MIB .csv)"
        )
    if not pairs_file.is_file():
        raise UsageError(f"{pairs_file}: no such file of prompt pairs; --pairs takes JSON lines or a MIB .csv")
    opened = open_model(path, step=step)
    d_vocab = len(opened.decoder.W_E)
    tokenizer = None
    if opened.tokenizer_path is not None:
        tokenizer = fits(load_tokenizer(opened.tokenizer_path), d_vocab)
    if pairs_file.suffix.lower() == ".csv":
        if tokenizer is None:
            raise UsageError(f"{pairs_file}: text needs a tokenizer, and {path} holds no tokenizer.json")
        pairs = read_mib_csv(pairs_file, tokenizer, d_vocab=d_vocab, bos=bos)
    else:
        pairs = read_jsonl(pairs_file, tokenizer, d_vocab=d_vocab, bos=bos)
    padding = "none" if bool(pairs.mask.all()) else "left" if bool(pairs.starts.any()) else "right"
    processing = vars(replace(opened.processing, bos=bos, padding_side=padding))
    pairs = pairs.split(seed)
    return Subject(
        decoder=opened.decoder,
        pairs=pairs,
        model=opened.name,
        step=opened.step,
        fingerprint=opened.fingerprint,
        pairs_name=str(pairs_file.name),
        dtype=opened.dtype,
        processing=tuple((name, str(value)) for name, value in processing.items())
        + tuple(drift_of_pairs(opened.decoder, opened.dtype, pairs).items()),
    )


def example_of(subject: Subject, n_answers: int = 3) -> dict[str, Any]:
    """Tokens and most probable answers of the first held-out clean prompt."""
    pairs = subject.pairs.of_part("evaluate").subset([0])
    tokens = pairs.clean[0][pairs.mask[0]]
    from interp.decoder import forward

    with torch.no_grad():
        logits = forward(subject.decoder, tokens[None])[0, int(pairs.places[0, -1])]
    probability, token = logits.softmax(-1).topk(min(n_answers, len(logits)))
    answers = [
        {"token": int(t), "name": pairs.name(int(t)), "probability": float(p)}
        for t, p in zip(token, probability, strict=True)
    ]
    return {"tokens": tokens.tolist(), "names": [pairs.name(int(t)) for t in tokens], "answers": answers}
