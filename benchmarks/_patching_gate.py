"""The gate before any ratio: errors of the engine and of hooked forwards against float64, on the same patches."""

from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks._patching_cases import Problem
from benchmarks._patching_lean import Patches
from circuits.patching_reference import decoder_logits_patched
from interp.decoder import Decoder
from interp.rng import generator

MOST_LARGEST = 2.0  # the engine's largest error over the hooked loop's
OTHER_INTERVENTION = 30.0  # a baseline whose error is this many times the hooked loop's computes something else
MOST_SCORES = 1 << 25  # attention scores of one float64 batch
ZERO = 1e-9  # float64 effect, relative to the largest, of a patch that is said to have none


@dataclass(frozen=True)
class Errors:
    """Distance of effects from float64: over all checked patches, and the largest.

    Both are shares of the largest effect of the prompt pair, so that one pair of large effects does not decide alone.
    """

    l2: float
    largest: float


@dataclass(frozen=True)
class Check:
    """Errors on one set of weights, by entrant.

    Attributes:
        effect: largest checked effect in float64.
        zero: largest float64 effect, relative to that, of patches that the engine says have none.
    """

    weights: str
    n: int
    effect: float
    zero: float
    errors: dict[str, Errors]
    reference: str = "loop"

    @property
    def failures(self) -> list[str]:
        """Why no ratio may be printed; empty when engine and baselines are correct."""
        engine, loop = self.errors["engine"], self.errors[self.reference]
        wrong = []
        if not engine.l2 <= loop.l2:
            wrong.append(f"the engine's error {engine.l2:.1e} (L2) is larger than the hooked loop's {loop.l2:.1e}")
        if not engine.largest <= MOST_LARGEST * loop.largest:
            wrong.append(f"its largest error {engine.largest:.1e} is over twice the hooked loop's {loop.largest:.1e}")
        if not self.zero <= ZERO:
            wrong.append(f"a patch that was skipped has an effect, {self.zero:.1e} of the largest")
        wrong += [
            f"{name} computes something else: error {error.l2:.1e}"
            for name, error in self.errors.items()
            if not error.l2 <= OTHER_INTERVENTION * loop.l2
        ]
        return wrong

    def __str__(self) -> str:
        engine, loop = self.errors["engine"], self.errors[self.reference]
        return (
            f"{self.weights} weights, {self.n} effects up to {self.effect:.2g} against float64, relative: engine "
            f"{engine.l2:.1e} (L2), {engine.largest:.1e} (largest); hooked loop {loop.l2:.1e}, {loop.largest:.1e}"
        )

    def record(self) -> dict:
        """As plain JSON."""
        return {**asdict(self), "passed": not self.failures, "failures": self.failures}


def errors(effects: Float[Tensor, "pair patch"], exact: Float[Tensor, "pair patch"]) -> Errors:
    """Distance of effects from the exact ones."""
    gap = (effects.double() - exact) / exact.abs().amax(1, keepdim=True)
    return Errors(float(gap.norm()), float(gap.abs().max()))


def checked_patches(problem: Problem, n: int) -> tuple[Patches, Patches]:
    """Patches at a few random positions to compare, and some that cannot have an effect."""
    draw = generator(0, "checked patches", problem.case.name)
    n_pos, last = problem.clean.shape[1], len(problem.decoder.layers) - 1
    later = torch.arange(problem.case.equal_before, n_pos - 1)
    some = later[torch.randperm(len(later), generator=draw)[: problem.case.places - 1]]
    places = [*some.tolist(), n_pos - 1]
    grid = torch.cartesian_prod(
        torch.arange(last + 1), torch.arange(problem.decoder.n_heads), torch.tensor(sorted(places))
    )
    dead = (grid[:, 0] == last) & (grid[:, 2] < n_pos - 1) & (problem.case.read == "last")
    alive, dead = grid[~dead], grid[dead]
    alive = alive[torch.randperm(len(alive), generator=draw)[:n]]
    return alive, dead[torch.randperm(len(dead), generator=draw)[:4]]


@torch.no_grad()
def exact_effects(problem: Problem, patches: Patches) -> Float[Tensor, "pair patch"]:
    """Effects in float64, by the written-out forward of a decoder, one patch in each row of a batch."""
    decoder, clean, corrupted = _double(problem)
    source: list[Tensor] = []

    def keep(site: str, layer: int, activation: Tensor) -> Tensor:
        if site == "z":
            source.append(activation)
        return activation

    decoder_logits_patched(decoder, clean, keep)
    most = max(1, MOST_SCORES // (clean.numel() * clean.shape[1] * decoder.n_heads))
    return torch.cat([_exact_batch(problem, decoder, corrupted, source, chunk) for chunk in patches.split(most)], 1)


def _exact_batch(
    problem: Problem, decoder: Decoder, corrupted: Tensor, source: list[Tensor], patches: Patches
) -> Float[Tensor, "pair patch"]:
    """Effects of patches that run together, with the base run as the last row."""

    def edit(site: str, layer: int, activation: Tensor) -> Tensor:
        some = (patches[:, 0] == layer).nonzero()[:, 0]
        if site != "z" or not len(some):
            return activation
        head, pos = patches[some, 1], patches[some, 2]
        rows = activation.unflatten(0, (-1, problem.case.pairs)).clone()  # [patch + 1, pair pos head d_head]
        rows[some, :, pos, head] = source[layer][:, pos, head].transpose(0, 1)
        return rows.flatten(0, 1)

    logits = decoder_logits_patched(decoder, corrupted.repeat(len(patches) + 1, 1), edit)
    logits = logits[:, -1:] if problem.case.read == "last" else logits
    rows = logits.unflatten(0, (-1, problem.case.pairs)).unflatten(-1, (2, -1))  # [patch + 1, pair pos 2 pair]
    both = (rows[..., 0, :] - rows[..., 1, :]).diagonal(dim1=1, dim2=-1)  # [patch + 1, pos pair]
    value = both.mean(1).T  # [pair, patch + 1]
    return value[:, :-1] - value[:, -1:]


def _double(problem: Problem) -> tuple[Decoder, Tensor, Tensor]:
    """The decoder in float64 with only the tokens that occur: their embeddings, and the two columns of each answer."""
    decoder = problem.decoder
    known, tokens = torch.cat((problem.clean, problem.corrupted)).unique(return_inverse=True)
    columns = torch.cat((problem.correct, problem.wrong))
    small = replace(
        decoder,
        W_E=decoder.W_E[known],
        W_U=decoder.W_U[:, columns],
        b_U=None if decoder.b_U is None else decoder.b_U[columns],
    )
    clean, corrupted = tokens.split(problem.case.pairs)
    return small.to(torch.float64), clean, corrupted
