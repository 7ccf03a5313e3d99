"""A circuit: scored edges of one model, which of them are kept, and all one must know to read its numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from circuits.circuit_effects import RANK_SCORE, EdgeEffects, by_place
from circuits.circuit_packed import MOST_LISTED, Edges, packed, unpacked
from circuits.detectors.base import Interval
from circuits.graph import EdgeGraph, ModelShape, graph_of
from circuits.naming import node_of
from interp.config import Frozen
from interp.errors import StoreError, UsageError

if TYPE_CHECKING:
    import pandas as pd


class Answer(Frozen):
    """A token that the example prompt's last read position predicts."""

    token: int
    name: str
    probability: float


class Example(Frozen):
    """One clean prompt, to draw a circuit on."""

    tokens: list[int]
    names: list[str]
    answers: list[Answer] = Field(description="most probable first")


class Provenance(Frozen):
    """Where a circuit comes from and what its numbers mean."""

    model: str = Field(description="run, folder or file name")
    step: int | None = Field(description="checkpoint; null: the model has no steps")
    fingerprint: str = Field(description="sha256 of the weights or of the checkpoint's manifest")
    dtype: str = Field("float32", description="of the weights on disk; all is computed in float32")
    processing: dict[str, str] = Field(default_factory=dict, description="BOS, padding side, folding, centring")
    pairs: str = Field(description="task and length, or file, of the prompt pairs")
    pairs_fingerprint: str
    n_prompts: dict[str, int] = Field(description="prompts by split: score, choose, evaluate")
    n_units: dict[str, int] = Field(description="independent sequences by split")
    metric: str
    ablation: Literal["resample", "mean", "zero"] = Field(description="what senders write outside the circuit")
    direction: str = Field("circuit kept in the clean run, all other edges ablated")
    method: str = Field(description="the ranking along which the circuit was chosen; the score of an edge is not its")
    seed: int
    code_version: str
    threads: int = 1


@dataclass(frozen=True)
class Circuit:
    """Edges kept of a model's graph; position-free [sender, receiver] or by position [sender, receiver, pos, query].

    By position the entry (p, q) of a key or value edge is what query q reads at position p; all other edges stand on
    the diagonal.

    Attributes:
        kept: the circuit; a subset of `live`.
        live: edges on a path to the metric whose sender differs between the runs; shares are of these.
        scores: rank scores without a unit, larger in size for kept edges by 1, so that they come first; positive where
            the rankings say that leaving the edge out lowers the metric.
        frequency: share of bootstrap searches that kept the edge; None where none were run.
        columns: a label for every position; empty without positions.
        faithfulness: share of the model's metric that the circuit keeps on held-out prompts.
        effects: what leaving out single kept edges costs in units of the metric; None where it was not measured.
    """

    graph: EdgeGraph
    shape: ModelShape
    kept: Bool[Tensor, "sender receiver *place"]
    live: Bool[Tensor, "sender receiver *place"]
    scores: Float[Tensor, "sender receiver *place"]
    provenance: Provenance
    frequency: Float[Tensor, "sender receiver *place"] | None = None
    columns: tuple[str, ...] = ()
    faithfulness: Interval | None = None
    example: Example | None = None
    effects: EdgeEffects | None = None

    @property
    def by_position(self) -> bool:
        """Whether edges have positions."""
        return self.kept.dim() == 4

    @property
    def n_kept(self) -> int:
        """Kept edges."""
        return int(self.kept.sum())

    @property
    def n_live(self) -> int:
        """Live edges."""
        return int(self.live.sum())

    @property
    def pooled(self) -> "Circuit":
        """The same circuit without positions: an edge is kept, or live, where it is at any; scores add up.

        Effects are left out, since those of single places do not add up.
        """
        if not self.by_position:
            return self
        parts = {name: getattr(self, name).any(-1).any(-1) for name in ("kept", "live")}
        freq = None if self.frequency is None else self.frequency.amax((-2, -1))
        about = {"graph": self.graph, "shape": self.shape, "provenance": self.provenance, "example": self.example}
        return Circuit(**about, **parts, scores=self.scores.sum((-2, -1)), frequency=freq)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Heads and MLPs with kept edges, in order of computation, with the embedding and the logits."""
        pooled = self.pooled.kept
        named = {sender for i, sender in enumerate(self.graph.senders) if bool(pooled[i].any())}
        named |= {node_of(name) for j, name in enumerate(self.graph.receivers) if bool(pooled[:, j].any())}
        order = [*self.graph.senders, *(n for n in named if n not in self.graph.senders and n != "logits"), "logits"]
        return tuple(name for name in order if name in named)

    def edges(self, kept_only: bool = True) -> list[str]:
        """Names of the edges, as `L0.H1->L1.H3.q`, by position `L0.H1@5->L1.H3.q@7` (sender's and reader's place)."""
        chosen = self.kept if kept_only else self.live
        return [self.name(tuple(place)) for place in chosen.nonzero().tolist()]

    def name(self, place: tuple[int, ...]) -> str:
        """Name of one entry of the mask."""
        sender, receiver = self.graph.senders[place[0]], self.graph.receivers[place[1]]
        if len(place) == 2:
            return f"{sender}->{receiver}"
        return f"{sender}@{self._column(place[2])}->{receiver}@{self._column(place[3])}"

    def _column(self, pos: int) -> str:
        return self.columns[pos] if self.columns else str(pos)

    def to_frame(self) -> "pd.DataFrame":
        """One row per live edge: kept ones first, by size of effect where it is measured, else of rank score.

        `effect`, `low` and `high` are NaN for edges that were not measured.
        """
        import pandas as pd

        places = self.live.nonzero()
        at = tuple(places.T)
        known = by_place(None if self.effects is None else self.effects.model_dump())
        names = [(self.graph.name(*place[:2]), tuple(place[2:]) or None) for place in places.tolist()]
        missing = (float("nan"),) * 3
        effect, low, high = zip(*(known.get(name, missing) for name in names), strict=True) if names else ((), (), ())
        frame = pd.DataFrame(
            {
                "edge": [self.name(tuple(place)) for place in places.tolist()],
                "kept": self.kept[at].cpu().numpy(),
                "score": self.scores[at].double().cpu().numpy(),
                "frequency": float("nan") if self.frequency is None else self.frequency[at].double().cpu().numpy(),
                "effect": effect,
                "low": low,
                "high": high,
            }
        )
        sizes = {"measured": frame.effect.abs(), "size": frame.score.abs()}
        order = frame.assign(**sizes).sort_values(["kept", *sizes], ascending=False, kind="stable")
        return order.drop(columns=list(sizes)).reset_index(drop=True)

    def to_file(self) -> "CircuitFile":
        """The circuit as JSON-ready data; reading it back gives an equal circuit."""
        large = self.n_live > MOST_LISTED
        return CircuitFile(
            format=2 if large else 1,
            shape=self.shape,
            n_pos=self.kept.shape[-1] if self.by_position else None,
            columns=list(self.columns),
            n_kept=self.n_kept,
            n_live=self.n_live,
            edges=self._entries(self._strongest() if large else self.live.nonzero()),
            packed=packed(Edges(self.live, self.kept, self.scores, self.frequency)) if large else None,
            faithfulness=self.faithfulness,
            provenance=self.provenance,
            example=self.example,
            effects=self.effects,
        )

    def _strongest(self) -> Int[Tensor, "edge axis"]:
        """Kept edges with the largest scores, as many as a file lists, in their order."""
        places = self.kept.nonzero()
        size = self.scores[tuple(places.T)].abs()
        return places[size.argsort(descending=True, stable=True)[:MOST_LISTED].sort().values]

    def _entries(self, places: Int[Tensor, "edge axis"]) -> list["EdgeEntry"]:
        """One entry for each place of the mask."""
        at = tuple(places.T)
        scores, kept = self.scores[at].tolist(), self.kept[at].tolist()
        frequency = [None] * len(places) if self.frequency is None else self.frequency[at].tolist()
        return [
            EdgeEntry(edge=self.graph.name(s, r), place=tuple(place) or None, score=score, kept=here, frequency=again)
            for (s, r, *place), score, here, again in zip(places.tolist(), scores, kept, frequency, strict=True)
        ]


class EdgeEntry(Frozen):
    """One live edge."""

    edge: str = Field(description="sender->receiver, as L0.H1->L1.H3.q")
    place: tuple[int, int] | None = Field(description="[position of the sender, position of the reader]")
    score: float = Field(description=RANK_SCORE)
    kept: bool
    frequency: float | None = None


class CircuitFile(Frozen):
    """A circuit on disk: format 1 lists every live edge, format 2 packs them and lists kept ones only."""

    format: Literal[1, 2] = 1
    shape: ModelShape
    n_pos: int | None = Field(description="null: the circuit has no positions")
    columns: list[str] = Field(default_factory=list)
    n_kept: int
    n_live: int
    edges: list[EdgeEntry] = Field(
        description=f"every live edge; in format 2 the kept ones, those with the {MOST_LISTED:,} largest scores"
    )
    packed: str | None = Field(None, description="format 2: every live edge, see `circuits.circuit_packed`", repr=False)
    faithfulness: Interval | None
    provenance: Provenance
    example: Example | None = None
    effects: EdgeEffects | None = Field(None, description="of kept edges, in units of the metric; null: not measured")

    def circuit(self) -> Circuit:
        """The circuit.

        Raises:
            UnknownName: for an edge that the shape does not have.
            UsageError: for a place outside the positions.
            StoreError: for packed edges or effects that do not fit the rest.
        """
        graph = graph_of(self.shape)
        size = (len(graph.senders), len(graph.receivers), *((self.n_pos, self.n_pos) if self.n_pos else ()))
        edges = self._listed(graph, size) if self.packed is None else self._unpacked(size)
        self._require_kept(graph, edges.kept)
        return Circuit(
            graph,
            self.shape,
            edges.kept,
            edges.live,
            edges.scores,
            self.provenance,
            edges.frequency,
            tuple(self.columns),
            self.faithfulness,
            self.example,
            self.effects,
        )

    def _require_kept(self, graph: EdgeGraph, kept: Bool[Tensor, "sender receiver *place"]) -> None:
        """Every effect is one of a kept edge."""
        for one in [] if self.effects is None else self.effects.edges:
            place = (*graph.index(one.edge), *(one.place or ()))
            inside = len(place) == kept.dim() and all(0 <= i < n for i, n in zip(place, kept.shape, strict=True))
            if not inside or not bool(kept[place]):
                raise StoreError(
                    f"circuit of {self.provenance.model}: effects: {one.edge} at {one.place} is no kept edge"
                )

    def _listed(self, graph: EdgeGraph, size: tuple[int, ...]) -> Edges:
        """The edges of format 1."""
        kept, live = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        scores, frequency = torch.zeros(size), torch.zeros(size)
        known = {name: graph.index(name) for name in {entry.edge for entry in self.edges}}
        for entry in self.edges:
            place = (*known[entry.edge], *(entry.place or ()))
            if len(place) != len(size) or any(not 0 <= i < n for i, n in zip(place, size, strict=True)):
                raise UsageError(
                    f"edges: {entry.edge} at {entry.place}: expected a place within {self.n_pos} positions"
                )
            live[place], kept[place], scores[place] = True, entry.kept, entry.score
            frequency[place] = entry.frequency or 0.0
        seen = any(entry.frequency is not None for entry in self.edges)
        return Edges(live, kept, scores, frequency if seen else None)

    def _unpacked(self, size: tuple[int, ...]) -> Edges:
        """The edges of format 2."""
        where = f"circuit of {self.provenance.model}"
        edges = unpacked(self.packed or "", size, self.n_live, where)
        if int(edges.kept.sum()) != self.n_kept:
            raise StoreError(f"{where}: n_kept {self.n_kept} is not the number of kept edges; the file is damaged")
        return edges
