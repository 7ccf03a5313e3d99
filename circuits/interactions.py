"""What single effects miss: pairs of edges, and heads that act only when another one is silent."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.stats import norm
from torch import Tensor

from circuits.faithfulness import share_tie
from circuits.gate import per_unit
from circuits.masked import MaskedRuns
from circuits.problem import Problem
from circuits.search.base import Tell, silent
from circuits.ungrouped import ungrouped_mask, ungrouped_runs
from interp.config import Frozen

SIZE = 0.05  # an interaction counts from this share of the difference between clean and ablated run
RELAYED = 0.8  # a relay owes this share of its effect to what another head writes into its values


class PairEffect(Frozen):
    """Share of the metric lost by leaving out two edges, beyond the sum of their own: E(ab) - E(a) - E(b)."""

    first: str
    second: str
    together: float
    interaction: float = Field(description="0: additive; above: stand-ins; below: they need each other")
    low: float
    high: float
    together_low: float | None = Field(None, description="null in files from before it was kept, as are the two below")
    together_high: float | None = None
    n: int | None = Field(None, description="sequences, of those that rank edges")


class Role(Frozen):
    """What a head or MLP is besides its place in the circuit; all intervals are widened for the number of tests."""

    node: str
    role: str = Field(description="backup, negative or relay")
    other: str = Field(description="the head that it backs up, or whose output it passes on; empty for none")
    alone: float = Field(description="effect of ablating it in the clean run, as a share of clean minus ablated")
    given: float | None = Field(description="its effect while the other head is ablated, or through the other's edge")
    low: float = Field(
        description="of what the role rests on: backup: given minus alone; negative: alone; relay: given minus 80 % of "
        "alone"
    )
    high: float
    n: int = Field(description="sequences, of those that rank edges")
    rule: str
    alone_low: float | None = Field(None, description="null in files from before it was kept, as are the next three")
    alone_high: float | None = None
    given_low: float | None = None
    given_high: float | None = None


@dataclass(frozen=True)
class Interactions:
    """Pair effects of the top edges, roles of nodes, and each live edge's largest effect while a primary is silent.

    Attributes:
        conditional: [sender receiver], share of the metric lost by leaving the edge out while a primary node is
            ablated, where that exceeds the edge's effect alone beyond its interval; else 0.
    """

    pairs: tuple[PairEffect, ...]
    roles: tuple[Role, ...]
    conditional: Float[Tensor, "sender receiver"]


def interactions(
    problem: Problem,
    order: list[tuple[int, int]],
    live: Bool[Tensor, "sender receiver"],
    *,
    n_edges: int = 8,
    n_nodes: int = 12,
    most: int = 2500,
    tell: Tell = silent,
) -> Interactions:
    """Pair effects, backups, negative heads and relays of a position-free graph, on the part "score".

    A node is ablated by leaving out all its outgoing edges. b backs up a where ablating b costs more while a is ablated
    than in the clean run, beyond an interval over units that is widened for the number of pairs looked at, and by at
    least 5 % of clean minus ablated; it also has to cost that much itself then. The backup of two is the one that
    gives the logits less in the clean run. b relays a where leaving out a -> b.v costs at least 80 % of what ablating b
    does; where heads share values, b gets its own copy for this, so that the edge acts through b alone. b is negative
    where ablating it raises the metric.

    Args:
        order: live edges, most important first.
        most: circuits to run at most; fewer edges are looked at where that would not do.
    """
    part = problem.parts["score"]
    measure = Measure(part.runs, part.pairs.unit, live)
    senders = [i for i in range(1, len(live)) if bool(live[i].any())]
    alone = measure.of([measure.without_node(i) for i in senders])
    ranked = sorted(range(len(senders)), key=lambda i: -abs(float(alone[i].mean())))[:n_nodes]
    nodes = [senders[i] for i in ranked]
    single = dict(zip(senders, alone, strict=True))
    tell("interactions", 1, 4)
    roles = _backups(measure, nodes, single) + _negative(measure, nodes, single)
    tell("interactions", 2, 4)
    roles += _relays(measure, nodes, single)
    pairs = _pairs(measure, order[:n_edges])
    tell("interactions", 3, 4)
    conditional = _conditional(measure, nodes, order, most)
    tell("interactions", 4, 4)
    return Interactions(tuple(pairs), tuple(roles), conditional)


class Measure:
    """Effects of leaving edges out of the clean run, as shares of clean minus ablated, per unit."""

    def __init__(self, runs: MaskedRuns, unit: Int[Tensor, "prompt"], live: Bool[Tensor, "sender receiver"]):
        self.runs, self.unit, self.live, self.graph = runs, unit, live, runs.graph
        self.scale, self.tie = float((runs.clean - runs.ablated).mean()), share_tie(runs)
        self.n = len(unit.unique())

    def ungrouped(self) -> "Measure":
        """The same with its own keys and values for every query head; itself where no head shares them."""
        if not any(".KV" in name for name in self.graph.receivers):
            return self
        runs = ungrouped_runs(self.runs)
        return Measure(runs, self.unit, ungrouped_mask(self.live, self.graph, runs.graph))

    def without_node(self, sender: int) -> Tensor:
        """The graph without what a node writes."""
        kept = self.live.clone()
        kept[sender] = False
        return kept

    def without_edges(self, edges: list[tuple[int, int]], kept: Tensor | None = None) -> Tensor:
        """The graph without some edges."""
        left = (self.live if kept is None else kept).clone()
        for sender, receiver in edges:
            left[sender, receiver] = False
        return left

    def to_logits(self, sender: int) -> tuple[int, int]:
        """The edge from a node to the logits."""
        return sender, len(self.graph.receivers) - 1

    def of(self, kept: list[Tensor]) -> Float[Tensor, "case unit"]:
        """Share of the metric that each case loses, per unit; negative where the metric rises."""
        if not kept:
            return self.runs.clean.new_zeros(0, self.n)
        lost = (self.runs.clean - self.runs.values(torch.stack(kept))) / self.scale
        return torch.stack([per_unit(one, self.unit) for one in lost])

    def interval(self, values: Float[Tensor, "unit"], tests: int = 1) -> tuple[float, float, float]:
        """Mean with a normal 95 % interval widened for the number of tests (Bonferroni), and by `share_tie`."""
        mean, spread = float(values.double().mean()), self.tie
        if len(values) > 1:
            spread += float(norm.ppf(1 - 0.025 / max(1, tests))) * float(values.std()) / len(values) ** 0.5
        return mean, mean - spread, mean + spread


def _backups(measure: Measure, nodes: list[int], single: dict[int, Tensor]) -> list[Role]:
    pairs = [(a, b) for a in nodes for b in nodes if a < b]
    both = measure.of([measure.without_edges([], measure.without_node(a) & measure.without_node(b)) for a, b in pairs])
    direct = dict(zip(nodes, measure.of([measure.without_edges([measure.to_logits(i)]) for i in nodes]), strict=True))
    found, tests = [], 2 * len(pairs)
    rule = (
        f"costs at least {SIZE:.0%} of the metric while the other is ablated, and at least {SIZE:.0%} more than alone; "
    )
    rule += f"both intervals, widened for {tests} tests, are above 0"
    for (a, b), together in zip(pairs, both, strict=True):
        extra = together - single[a] - single[b]
        mean, low, high = measure.interval(extra, tests)
        if not (mean >= SIZE and low > 0):
            continue
        primary, backup = _ordered(a, b, direct, single)
        given = together - single[primary]
        helps = measure.interval(given, tests)
        if not (helps[0] >= SIZE and helps[1] > 0):  # a negative head whose input is gone loses its harm: no backup
            continue
        found.append(_role(measure, (backup, "backup", primary), single[backup], given, (low, high), (tests, rule)))
    return found


def _ordered(a: int, b: int, direct: dict[int, Tensor], single: dict[int, Tensor]) -> tuple[int, int]:
    """Primary and backup: first who gives the logits more in the clean run; where that is alike, who costs more alone.

    What ablating a node costs alone says little here: a complete backup hides all of it.
    """
    gap = float(direct[a].mean() - direct[b].mean())
    if abs(gap) < SIZE:
        gap = float(single[a].mean() - single[b].mean())
    return (a, b) if gap >= 0 else (b, a)


def _negative(measure: Measure, nodes: list[int], single: dict[int, Tensor]) -> list[Role]:
    found, tests = [], len(nodes)
    rule = f"ablating it raises the metric by at least {SIZE:.0%}; the interval, widened for {tests} tests, is below 0"
    for node in nodes:
        mean, low, high = measure.interval(single[node], tests)
        if mean <= -SIZE and high < 0:
            found.append(_role(measure, (node, "negative", None), single[node], None, (low, high), (tests, rule)))
    return found


def _relays(measure: Measure, nodes: list[int], single: dict[int, Tensor]) -> list[Role]:
    own = measure.ungrouped()
    heads, cases = [node for node in nodes if own.graph.senders[node][0] == "L"], []
    for b in heads:
        values = own.graph.receivers.index(f"{own.graph.senders[b]}.v")
        cases += [(a, b, (a, values)) for a in heads if bool(own.live[a, values])]
    lost = own.of([own.without_edges([edge]) for _, _, edge in cases])
    rule = f"leaving out what the other head writes into its values costs at least {RELAYED:.0%} of its effect"
    rule += "" if own is measure else "; of values that heads share it has its own copy"
    found = []
    for (a, b, _), through in zip(cases, lost, strict=True):
        whole = float(single[b].mean())
        mean, low, high = measure.interval(through - RELAYED * single[b], len(cases))
        if whole >= SIZE and mean >= 0 and measure.interval(single[b], len(nodes))[1] > 0:
            found.append(_role(measure, (b, "relay", a), single[b], through, (low, high), (len(cases), rule)))
    return found


def _role(
    measure: Measure,
    what: tuple[int, str, int | None],
    alone: Float[Tensor, "unit"],
    given: Float[Tensor, "unit"] | None,
    bounds: tuple[float, float],
    why: tuple[int, str],
) -> Role:
    """A role of (node, role, other node), with intervals for (number of tests, rule)."""
    names, (node, role, other), (tests, rule) = measure.graph.senders, what, why
    own = measure.interval(alone, tests)
    then = (None, None, None) if given is None else measure.interval(given, tests)
    return Role(
        node=names[node],
        role=role,
        other="" if other is None else names[other],
        alone=own[0],
        given=then[0],
        low=bounds[0],
        high=bounds[1],
        n=measure.n,
        rule=rule,
        alone_low=own[1],
        alone_high=own[2],
        given_low=then[1],
        given_high=then[2],
    )


def _pairs(measure: Measure, edges: list[tuple[int, int]]) -> list[PairEffect]:
    single = measure.of([measure.without_edges([edge]) for edge in edges])
    which = [(i, j) for i in range(len(edges)) for j in range(i + 1, len(edges))]
    both = measure.of([measure.without_edges([edges[i], edges[j]]) for i, j in which])
    found = []
    for (i, j), together in zip(which, both, strict=True):
        mean, low, high = measure.interval(together - single[i] - single[j], len(which))
        names, whole = (
            (measure.graph.name(*edges[i]), measure.graph.name(*edges[j])),
            measure.interval(together, len(which)),
        )
        found.append(
            PairEffect(
                first=names[0],
                second=names[1],
                together=whole[0],
                interaction=mean,
                low=low,
                high=high,
                together_low=whole[1],
                together_high=whole[2],
                n=measure.n,
            )
        )
    return found


def _conditional(measure: Measure, nodes: list[int], order: list[tuple[int, int]], most: int) -> Tensor:
    """Each edge's largest effect while one of the primary nodes is silent, where that exceeds its effect alone."""
    found = measure.runs.clean.new_zeros(measure.live.shape)
    primaries = nodes[: max(1, min(4, most // max(1, len(order))))]
    edges = order[: max(1, most // (len(primaries) + 1))]
    alone = measure.of([measure.without_edges([edge]) for edge in edges])
    for node in primaries:
        silenced = measure.without_node(node)
        base = measure.of([silenced])[0]
        given = measure.of([measure.without_edges([edge], silenced) for edge in edges]) - base
        for edge, more, less in zip(edges, given, alone, strict=True):
            mean, low, _ = measure.interval(more - less, len(edges) * len(primaries))
            if edge[0] != node and mean >= SIZE and low > 0:
                found[edge] = max(float(found[edge]), float(more.mean()))
    return found
