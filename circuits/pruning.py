"""The smallest circuit that keeps a stated share of behaviour: a size along a ranking, then exact removal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.live import connected
from circuits.masked import MaskedRuns
from circuits.problem import Part, Problem
from circuits.search.base import Tell, silent

Mask = Bool[Tensor, "sender receiver *place"]
GRID = 10  # numbers of pieces that are tried side by side, with both ends


@dataclass
class Keeping:
    """How much of the metric circuits keep on several parts: the smallest of the parts counts.

    Attributes:
        spent: circuits run so far, each on every part.
    """

    parts: Sequence[Part]
    spent: int = field(default=0)

    def of(self, kept: Bool[Tensor, "circuit sender receiver *place"]) -> Float[Tensor, "circuit"]:
        """Share kept of each circuit, (m(C) - m(0)) / (m(N) - m(0))."""
        self.spent += len(kept)
        return torch.stack([self._on(part, kept) for part in self.parts]).amin(0)

    def reaching(self, kept: Bool[Tensor, "circuit sender receiver *place"], target: float) -> Float[Tensor, "circuit"]:
        """Share kept of each circuit that reaches the target; of others that of the first part that falls short.

        What falls short on few prompts is not run on the others.
        """
        self.spent += len(kept)
        found = torch.full((len(kept),), torch.inf)
        for part in sorted(self.parts, key=lambda part: len(part.pairs)):
            left = (found >= target).nonzero()[:, 0]
            if len(left):
                found[left] = torch.minimum(found[left], self._on(part, kept[left.to(kept.device)]).cpu().float())
        return found

    @staticmethod
    def _on(part: Part, kept: Bool[Tensor, "circuit sender receiver *place"]) -> Float[Tensor, "circuit"]:
        runs = part.runs
        zero, whole = runs.mean(runs.ablated), runs.mean(runs.clean)
        return (runs.mean(runs.values(kept)) - zero) / (whole - zero)


def read_positions(runs: MaskedRuns) -> Bool[Tensor, "pos"]:
    """Where the metric reads in some prompt."""
    read = torch.zeros(runs.n_pos, dtype=torch.bool, device=runs.writes[0].device)
    read[runs.rows.pos] = True
    return read


def joined(problem: Problem, kept: Mask) -> Mask:
    """The part of a circuit that acts: on paths to the metric, and under resampling from the embedding."""
    runs = problem.parts["score"].runs
    return connected(problem.decoder, runs.graph, kept, read_positions(runs), runs.resamples)


def top(order: Int[Tensor, "edge"], size: int, like: Mask) -> Mask:
    """The first edges of an order of flat places."""
    kept = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    kept[order[:size]] = True
    return kept.view(like.shape)


def order_of(scores: Float[Tensor, "sender receiver *place"], live: Mask) -> Int[Tensor, "edge"]:
    """Flat places of the live edges, largest magnitude first; ties in order of computation."""
    size = scores.abs().masked_fill(~live, -1.0).flatten()
    return size.argsort(descending=True, stable=True)[: int(live.sum())]


def smallest(
    problem: Problem, scores: Float[Tensor, "sender receiver *place"], target: float, keeping: Keeping
) -> Mask | None:
    """The smallest circuit of top-ranked edges that keeps the target share; None where none does.

    Sizes lie on a grid that is refined around the first success three times, so that a share that is not monotone in
    the size is followed from above only where it first passes.
    """
    order = order_of(scores, problem.live)
    low, high = 0, len(order)
    if not high or float(keeping.of(problem.live[None])[0]) < target:
        return None
    for _ in range(4):
        steps = torch.linspace(low, high, 10).round().long().unique()[1:]
        kept = torch.stack([top(order, int(size), problem.live) for size in steps])
        fine = (keeping.reaching(kept, target) >= target).nonzero()[:, 0]
        first = int(fine.min()) if len(fine) else len(steps) - 1
        low, high = (int(steps[first - 1]) if first else low), int(steps[first])
        if high - low <= 1:
            break
    return top(order, high, problem.live)


def removed(
    problem: Problem,
    kept: Mask,
    scores: Float[Tensor, "sender receiver *place"],
    target: float,
    keeping: Keeping,
    most: int = 2000,
    tell: Tell = silent,
) -> tuple[Mask, bool]:
    """Leave out edges for good while the circuit keeps the target share: blocks first, single edges at the end.

    In each round all blocks are tried side by side, then as many of the harmless ones together as still keep the
    target, found on a grid of numbers that is refined behind the last success. It ends where no single edge can go, or
    where the allowance pays for no finer blocks than those of which none could go.

    Args:
        most: circuits to run at most.

    Returns:
        What is left, and whether no single edge of it can go.
    """
    start, blocks, futile = keeping.spent, 8, 0  # futile: blocks of this circuit of which none could go
    kept = joined(problem, kept)
    while count := int(kept.sum()):
        blocks = min(blocks, count, (start + most - keeping.spent) // 2)
        if blocks <= futile:
            break
        pieces = order_of(scores, kept).flip(0).tensor_split(blocks)  # least important first
        after = _without_pieces(problem, kept, pieces, target, keeping)
        futile = blocks if after is None else 0
        if after is None or int(after.sum()) > 0.9 * count:
            blocks *= 4 if after is None else 2  # where no piece can go, half of one seldom can
        kept = kept if after is None else after
        tell("removing edges", min(keeping.spent - start, most), most)
    tell("removing edges", most, most)  # it often ends before its allowance does
    return kept, futile == count


def _without_pieces(
    problem: Problem, kept: Mask, pieces: Sequence[Tensor], target: float, keeping: Keeping
) -> Mask | None:
    """The circuit without as many harmless pieces as possible; None where no piece can go."""

    def less(some: Sequence[Tensor]) -> Mask:
        rest = kept.flatten().clone()
        rest[torch.cat(list(some))] = False
        return rest.view(kept.shape)

    shares = keeping.reaching(torch.stack([less([piece]) for piece in pieces]), target)
    harmless = [int(i) for i in shares.argsort(descending=True, stable=True) if float(shares[i]) >= target]
    if not harmless:
        return None
    done, beyond = 1, len(harmless) + 1  # as many can go, so many can not
    while beyond - done > 1:
        numbers = [int(n) for n in torch.linspace(done, beyond, GRID).round().unique()[1:-1]]
        together = torch.stack([less([pieces[i] for i in harmless[:n]]) for n in numbers])
        fine = (keeping.reaching(together, target) >= target).nonzero()[:, 0]
        last = int(fine.max()) if len(fine) else -1
        done, beyond = (numbers[last] if len(fine) else done), ([*numbers, beyond])[last + 1]
    return joined(problem, less([pieces[i] for i in harmless[:done]]))
