"""How well a ranking of edges finds known edges: AUROC, AUPRC and precision at the true size, by head."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from circuits.graph import EdgeGraph, fed_by
from interp.config import Frozen
from interp.errors import UnknownName, UsageError


class EdgeScore(Frozen):
    """Agreement of one ranking with a known circuit; ties count half."""

    auroc: float = Field(description="chance that a true edge is ranked before another one; 0.5 at random")
    auprc: float = Field(description="average precision; tied edges enter together; n_true / n at random")
    precision: float = Field(description="share of true edges among the first n_true; tied edges count by their share")
    n_true: int
    n: int = Field(description="scored edges")


def nodes(graph: EdgeGraph) -> tuple[str, ...]:
    """The nodes that edges lead to: every head and MLP in order of computation, and the logits."""
    return (*graph.senders[1:], "logits")


def owners(graph: EdgeGraph) -> list[list[int]]:
    """For each receiver the `nodes` it belongs to: queries, keys and values to their head, shared ones to each head."""
    last = len(graph.senders) - 1  # of `nodes`, the logits: the embedding is a sender but no node
    return [[sender - 1 for sender in senders] or [last] for senders in fed_by(graph)]


def promoted(graph: EdgeGraph, values: Tensor) -> Tensor:
    """Values of edges by head, [sender node]: the entry of largest magnitude among q, k, v and positions.

    Whether an edge into a head goes to its query, key or value is a matter of how a program is written down, so a
    known circuit is compared head by head. Source: the InterpBench model card.

    Args:
        values: scores or booleans, [sender receiver] or [sender receiver pos query].
    """
    flat = values.flatten(2) if values.dim() > 2 else values[..., None]  # [sender receiver place]
    found = values.new_zeros(len(graph.senders), len(nodes(graph)))
    for receiver, owned in enumerate(owners(graph)):
        here = flat[:, receiver]
        size = here.to(torch.float64).abs() if here.dtype != torch.bool else here.to(torch.uint8)
        best = here.gather(1, size.argmax(1, keepdim=True))[:, 0]  # [sender]
        for node in owned:
            before = found[:, node]
            found[:, node] = before | best if best.dtype == torch.bool else _larger(before, best)
    return found


def _larger(one: Tensor, two: Tensor) -> Tensor:
    return torch.where(one.abs() >= two.abs(), one, two)


def named(graph: EdgeGraph, edges: Iterable[str]) -> Bool[Tensor, "sender node"]:
    """Edges between nodes by their names, such as `L0.H1->L1.H0`, `M0->logits`.

    Raises:
        UnknownName: for an edge that the graph does not have.
    """
    exists, known = promoted(graph, graph.exists), nodes(graph)
    every = {f"{graph.senders[s]}->{known[r]}": (s, r) for s, r in exists.nonzero().tolist()}
    found = torch.zeros_like(exists)
    for edge in edges:
        if edge not in every:
            raise UnknownName("edge", edge, list(every))
        found[every[edge]] = True
    return found


def edge_score(
    graph: EdgeGraph,
    scores: Float[Tensor, "sender receiver *place"],
    true: Bool[Tensor, "sender node"],
    scored: Bool[Tensor, "sender node"],
    signed: bool = False,
) -> EdgeScore:
    """Score a ranking of edges against known ones.

    Args:
        scores: as search methods give them; ranked by magnitude.
        true: known edges by head.
        scored: edges to compare by head: those that the prompts can exercise and of which it is known whether they
            are true.
        signed: rank by signed scores instead, so that edges that hurt come last.

    Raises:
        UsageError: for scores that are not finite, or scored edges of one kind only.
    """
    values = promoted(graph, scores)[scored]
    if not bool(values.isfinite().all()):
        raise UsageError(f"scores: {int((~values.isfinite()).sum())} of {len(values)} edges have no finite score")
    values = (values if signed else values.abs()).double().cpu().numpy()
    truth = true[scored].cpu().numpy()
    return EdgeScore(
        auroc=auroc(values, truth),
        auprc=auprc(values, truth),
        precision=precision_at(values, truth, int(truth.sum())),
        n_true=int(truth.sum()),
        n=len(truth),
    )


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Chance that a true item scores above a false one, ties counted half.

    Raises:
        UsageError: unless there are items of both kinds.
    """
    _require_both(truth)
    positive, negative = scores[truth], scores[~truth]
    above = (positive[:, None] > negative).mean()
    equal = (positive[:, None] == negative).mean()
    return float(above + equal / 2)


def auprc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision: sum over thresholds of precision times the recall gained there.

    Raises:
        UsageError: unless there are items of both kinds.
    """
    _require_both(truth)
    total = 0.0
    for threshold in np.unique(scores[truth]):
        above = scores >= threshold
        total += truth[above].mean() * truth[scores == threshold].sum() / truth.sum()
    return float(total)


def precision_at(scores: np.ndarray, truth: np.ndarray, size: int) -> float:
    """Expected share of true items among the first `size`, items tied at the border drawn at random.

    Raises:
        UsageError: unless there are items of both kinds.
    """
    _require_both(truth)
    border = np.sort(scores)[::-1][size - 1]
    above, tied = scores > border, scores == border
    hits = truth[above].sum() + truth[tied].mean() * (size - above.sum())
    return float(hits / size)


def _require_both(truth: np.ndarray) -> None:
    if truth.all() or not truth.any():
        raise UsageError(
            f"truth: {int(truth.sum())} of {len(truth)} edges are true; a ranking is scored against both true and "
            "other edges"
        )
