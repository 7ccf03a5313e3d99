"""What is drawn of a circuit: its shape and kept edges as plain values, from a Circuit or its file, without torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuits.circuit_effects import by_place
from circuits.naming import node_of

if TYPE_CHECKING:
    from circuits.circuit import Circuit, CircuitFile


@dataclass(frozen=True)
class DrawnEdge:
    """One kept edge; of a circuit by position one place of it.

    Attributes:
        score: rank score, without a unit.
        place: (position of the sender, position of the reader); None without positions.
        effect: (value, low, high), what leaving it out costs in units of the metric; None where not measured.
        frequency: share of the searches on resampled prompts that kept it again.
    """

    sender: str
    receiver: str
    score: float
    frequency: float | None = None
    place: tuple[int, int] | None = None
    effect: tuple[float, float, float] | None = None

    @property
    def name(self) -> str:
        """Sender and receiver."""
        return f"{self.sender}->{self.receiver}"


@dataclass(frozen=True)
class DrawnShape:
    """Heads, key heads, MLPs and parallel blocks by layer."""

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp: tuple[bool, ...]
    parallel: tuple[bool, ...]

    @property
    def n_layers(self) -> int:
        """Layers."""
        return len(self.heads)


@dataclass(frozen=True)
class Drawn:
    """A circuit to draw.

    Attributes:
        edges: kept ones; of a very large circuit those with the largest scores.
        positions: labels of the positions; empty for a circuit without positions.
        about: model, step, metric, ablation and the like, as in the file's provenance.
        effects: what the effects of its edges are: unit, n, measured of how many; None where none were measured.
    """

    shape: DrawnShape
    edges: tuple[DrawnEdge, ...]
    n_kept: int
    n_live: int
    positions: tuple[str, ...]
    about: Mapping[str, Any]
    faithfulness: Mapping[str, Any] | None
    effects: Mapping[str, Any] | None = None

    @property
    def all_measured(self) -> bool:
        """Whether every kept edge has an effect."""
        return self.effects is not None and all(edge.effect is not None for edge in self.edges)

    @cached_property
    def pooled(self) -> dict[str, list[DrawnEdge]]:
        """Places of each edge by its name; one place where the circuit has no positions."""
        found: dict[str, list[DrawnEdge]] = {}
        for edge in self.edges:
            found.setdefault(edge.name, []).append(edge)
        return found

    @cached_property
    def nodes(self) -> frozenset[str]:
        """Senders and owners of receivers that kept edges touch; key and value heads that are shared stand alone."""
        touched = {edge.sender for edge in self.edges} | {node_of(edge.receiver) for edge in self.edges}
        return frozenset(touched)

    def position(self, index: int) -> str:
        """Name of a position."""
        return self.positions[index] if index < len(self.positions) else str(index)


def drawn(circuit: "Circuit | CircuitFile | Mapping[str, Any]") -> Drawn:
    """What is drawn of a circuit, of its file, or of that file's JSON."""
    if hasattr(circuit, "to_file"):
        circuit = circuit.to_file()
    data: Mapping[str, Any] = circuit.model_dump(mode="json") if hasattr(circuit, "model_dump") else circuit
    shape, n_pos = data["shape"], data["n_pos"]
    names = ("heads", "kv_heads", "mlp", "parallel")
    effects, known = data.get("effects"), by_place(data.get("effects"))
    labels = tuple(data.get("columns") or (map(str, range(n_pos)) if n_pos else ()))
    return Drawn(
        shape=DrawnShape(**{name: tuple(shape[name]) for name in names}),
        edges=tuple(_edge(one, known) for one in data["edges"] if one["kept"]),
        n_kept=data["n_kept"],
        n_live=data["n_live"],
        positions=labels,
        about=data["provenance"],
        faithfulness=data.get("faithfulness"),
        effects=effects if known else None,
    )


def _edge(one: Mapping[str, Any], known: Mapping[Any, tuple[float, float, float]]) -> DrawnEdge:
    sender, _, receiver = one["edge"].partition("->")
    place = None if one["place"] is None else tuple(one["place"])
    return DrawnEdge(sender, receiver, one["score"], one.get("frequency"), place, known.get((one["edge"], place)))


def total(places: list[DrawnEdge]) -> float:
    """Rank score of an edge: the sum over its kept places."""
    return sum(edge.score for edge in places)


def effect(places: list[DrawnEdge]) -> float | None:
    """Effect of an edge: the sum of the single effects of its measured places; None where none is measured."""
    known = [edge.effect[0] for edge in places if edge.effect is not None]
    return sum(known) if known else None


def weight(places: list[DrawnEdge], by_effect: bool) -> float | None:
    """What an edge is drawn and ordered by: effect, None where not measured; else rank score."""
    return effect(places) if by_effect else total(places)


def ranked(data: Drawn) -> list[tuple[str, list[DrawnEdge]]]:
    """Edges with their places: by size of effect, those that are not measured behind them by size of rank score."""

    def key(item: tuple[str, list[DrawnEdge]]) -> tuple[bool, float, str]:
        known = effect(item[1])
        return known is None, -abs(total(item[1]) if known is None else known), item[0]

    return sorted(data.pooled.items(), key=key)


def told(places: list[DrawnEdge]) -> list[str]:
    """Effect and rank score of an edge in words."""
    known = [edge.effect for edge in places if edge.effect is not None]
    said = []
    if len(places) == 1 and known:
        said.append("leaving it out costs {:.6g} [{:.6g}, {:.6g}] of the metric".format(*known[0]))
    elif known:
        one_by_one = f"{sum(value for value, _, _ in known):.6g} of the metric over {len(known)} places, one at a time"
        said.append(f"leaving it out costs {one_by_one}")
    more = f", sum over {len(places)} places" if len(places) > 1 else ""
    return [*said, f"rank score {total(places):.6g}{more}"]


def kinds(drawn: Drawn, edge: str) -> str:
    """At which positions an edge is kept: one key position, one offset, or how many places."""
    places = [one.place for one in drawn.pooled[edge] if one.place is not None]
    if not places:
        return ""
    offsets = Counter(query - key for key, query in places)
    keys = {key for key, _ in places}
    number = f"at {len(places)} place{'s' if len(places) > 1 else ''}"
    if set(offsets) == {0}:
        return f"{number}, each at its own position: {_ranges(drawn, sorted(keys))}"
    said = ", ".join(f"{offset} ({times})" if times > 1 else str(offset) for offset, times in sorted(offsets.items()))
    at = f", always reading {drawn.position(next(iter(keys)))}" if len(keys) == 1 else ""
    return f"{number}; positions back (times): {said}{at}"


def _ranges(drawn: Drawn, positions: list[int]) -> str:
    """Names of positions, neighbours as `first to last`."""
    runs: list[list[int]] = []
    for pos in positions:
        if runs and pos == runs[-1][-1] + 1:
            runs[-1].append(pos)
        else:
            runs.append([pos])
    named = [(drawn.position(run[0]), drawn.position(run[-1]), len(run)) for run in runs]
    return ", ".join(one if n == 1 else f"{one}, {two}" if n == 2 else f"{one} to {two}" for one, two, n in named)
