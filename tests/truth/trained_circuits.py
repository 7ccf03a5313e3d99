"""Reads the trained models with known circuits kept in tests/truth/models/circuits (see train_circuit_models.py)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from interp.decoder import Decoder
from interp.pairs.base import Pairs
from interp.rng import generator
from tests.truth.causal_tasks import Causal, every_task
from tests.truth.circuit_families import N_PROMPTS, pairs_of
from tests.truth.circuit_measuring import Known
from tests.truth.circuit_training import Model, Size, decoder_of, turned

FOLDER = Path(__file__).parent / "models" / "circuits"


@dataclass(frozen=True)
class Row:
    """What the index says of one model."""

    name: str
    family: str
    seed: int
    mask: tuple[str, ...]
    true: tuple[str, ...]
    open: tuple[str, ...]
    accuracy: float
    strict: float | None
    swaps: dict[str, float]
    leak: float
    sha256: str


@cache
def index() -> dict[str, Row]:
    """All models by name."""
    rows = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["models"]
    found = {}
    for row in rows:
        lists = {name: tuple(row[name]) for name in ("mask", "true", "open")}
        found[row["name"]] = Row(**{**{k: v for k, v in row.items() if k != "bytes"}, **lists})
    return found


@cache
def tasks() -> dict[str, Causal]:
    """The tasks by family."""
    return every_task()


def weights(name: str) -> Model:
    """The stored weights in float32."""
    return {key: value.float() for key, value in load_file(FOLDER / f"{name}.safetensors").items()}


def as_decoder(model: Model, size: Size, family: str, seed: int) -> Decoder:
    """The model as a decoder; those with an edge mask in a random basis, which hides the blocks they are made of."""
    decoder = decoder_of(model, size, family)
    return turned(decoder, generator(seed, family, "basis")) if family.startswith("wired") else decoder


def prompts(task: Causal, seed: int = 0, n: int = N_PROMPTS) -> Pairs:
    """Prompt pairs of a task."""
    clean, corrupted = task.clean_and_corrupted(generator(seed, task.name, "pairs"), n)
    return pairs_of(clean, corrupted, task.answer(clean), task.answer(corrupted), task.size.n_tokens)


def trained(name: str) -> Known:
    """A trained model with what is known of its edges."""
    row = index()[name]
    task = tasks()[row.family]
    with torch.no_grad():
        decoder = as_decoder(weights(name), task.size, row.family, row.seed)
    return Known(name, decoder, prompts(task), row.true, row.open)
