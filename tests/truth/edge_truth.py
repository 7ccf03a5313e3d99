"""Which edges matter, by running every subset of them: what is known of a trained model's circuit."""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.edge_scoring import owners
from circuits.graph import EdgeGraph
from circuits.problem import Part
from interp.rng import generator

FAITHFUL = 0.1  # a circuit keeps the metric to this share
MATTERS = 0.1  # an edge matters where it moves the metric of a faithful circuit by this share
NOTHING = 0.02  # an edge is no part of the circuit where it never moves the metric by more
MOST = 14  # edges


@dataclass(frozen=True)
class Truth:
    """Edges by head that matter, that do not, and between the two."""

    true: tuple[str, ...]
    false: tuple[str, ...]
    open: tuple[str, ...]


def shares(part: Part, edges: list[str], subsets: Bool[Tensor, "subset edge"]) -> Float[Tensor, "subset"]:
    """(m(C) - m(0)) / (m(N) - m(0)) of circuits made of edges by head; all edges that are not named are ablated."""
    runs = part.runs
    columns = torch.stack([by_slot(runs.graph, edge) for edge in edges]).float()  # [edge sender receiver]
    zero, whole, found = runs.ablated.mean(), runs.clean.mean(), []
    for some in subsets.split(512):
        kept = torch.einsum("ce,esr->csr", some.float(), columns) > 0
        found.append((runs.values(kept).mean(1) - zero) / (whole - zero))
    return torch.cat(found)


def by_slot(graph: EdgeGraph, edge: str) -> Bool[Tensor, "sender receiver"]:
    """An edge between nodes as edges into queries, keys and values."""
    sender, _, node = edge.partition("->")
    which = [*graph.senders[1:], "logits"].index(node)
    found = torch.zeros(len(graph.senders), len(graph.receivers), dtype=torch.bool)
    for receiver, owned in enumerate(owners(graph)):
        found[graph.senders.index(sender), receiver] = which in owned
    return found & graph.exists


def every_subset(n: int) -> Bool[Tensor, "subset edge"]:
    """All subsets, in counting order."""
    return torch.tensor(list(product((False, True), repeat=n)))


def by_subsets(part: Part, edges: list[str]) -> Truth:
    """What running all 2^n circuits of some edges says, all other edges ablated.

    An edge is true where leaving it out of some circuit that is faithful with it, or adding it to one that is faithful
    without it, moves the metric by at least 10 %: stand-ins and edges that hurt count. It is false where adding it to
    no circuit at all moves the metric by more than 2 %.
    """
    subsets = every_subset(len(edges))
    share = shares(part, edges, subsets)
    true, false, rest = [], [], []
    for number, edge in enumerate(edges):
        step = 2 ** (len(edges) - 1 - number)
        without = (~subsets[:, number]).nonzero()[:, 0]
        before, after = share[without], share[without + step]
        moved = (after - before).abs()
        faithful = ((before - 1).abs() <= FAITHFUL) | ((after - 1).abs() <= FAITHFUL)
        if bool((faithful & (moved >= MATTERS)).any()):
            true.append(edge)
        elif float(moved.max()) <= NOTHING:
            false.append(edge)
        else:
            rest.append(edge)
    return Truth(tuple(true), tuple(false), tuple(rest))


def leak(part: Part, edges: list[str], n: int = 256) -> float:
    """How far keeping edges besides the given ones moves circuits of the given ones: 95 % of draws move less.

    A draw keeps each given edge with probability 3/4 and each other one with probability 1/2. If this is small, no
    other edge matters, alone or together.
    """
    runs, stream = part.runs, generator(0, "leak")
    subsets = torch.rand(n, len(edges), generator=stream) < 0.75
    given = torch.stack([by_slot(runs.graph, edge) for edge in edges])
    kept = torch.einsum("ce,esr->csr", subsets.float(), given.float()) > 0
    more = (torch.rand(n, *runs.graph.exists.shape, generator=stream) < 0.5) & runs.graph.exists & ~given.any(0)
    scale = (runs.clean - runs.ablated).mean()
    moved = (runs.values(kept | more) - runs.values(kept)).mean(1) / scale
    return float(moved.abs().quantile(0.95))
