"""What a discovery found, as JSON-ready frozen models: verdict, circuit, faithfulness, controls, stability."""

from typing import Literal

from pydantic import Field

from circuits.circuit import CircuitFile
from circuits.detectors.base import Interval
from circuits.find import Settings
from circuits.gate import Gate
from circuits.interactions import PairEffect, Role
from interp.config import Frozen

Verdict = Literal["circuit", "candidate", "no faithful circuit", "no behaviour to explain", "too few prompts to tell"]


class RankingSummary(Frozen):
    """One way of ranking the edges, and how far it gets by taking the top ones."""

    name: str
    method: str
    kind: str = Field(description="what one score is")
    chosen: bool


class CurvePoint(Frozen):
    """Faithfulness of the top edges at one size, on held-out prompts."""

    size: int = Field(description="edges taken from the top of the ranking")
    kept: int = Field(description="of these, edges on a path from the embedding to the metric")
    faithfulness: float


class Faithfulness(Frozen):
    """How much of the model's behaviour the circuit keeps, on the held-out part."""

    retained: Interval = Field(description="(m(C) - m(0)) / (m(N) - m(0)), ratio of means")
    metric_model: float
    metric_circuit: float
    metric_ablated: float
    kl: float = Field(description="KL(model || circuit), nats per read position")
    accuracy_model: float
    accuracy_circuit: float
    cmd: float | None = Field(description="area of |1 - f| over MIB's ten fractions; 0 is best")
    cpr: float | None = Field(description="area of f over the same fractions; rewards circuits that beat the model")
    log_area: float | None = Field(None, description="the same area of f on a logarithmic axis of sizes")
    curve: list[CurvePoint]
    optimal: list[CurvePoint] = Field(
        default_factory=list, description="best of all circuits at each size, where all could be run"
    )
    intervals: dict[str, Interval] = Field(
        default_factory=dict,
        description="over sequences: of metric_model, metric_circuit, metric_ablated, kl, accuracy_model, "
        "accuracy_circuit, cmd and cpr, by name; empty in files from before they were kept",
    )


class ControlSummary(Frozen):
    """Circuits that the found one has to beat."""

    name: str
    what: str
    n: int
    mean: float | None = Field(description="share of the metric kept, mean over the controls")
    largest: float | None
    matched: float | None = Field(None, description="share of edges matched by type")
    shared: float | None = Field(None, description="share of the found circuit's edges that a control holds too, mean")
    p_value: float | None = Field(
        None, description="(1 + controls as good) / (1 + n); says nothing where every control holds the whole circuit"
    )
    tie: float | None = Field(
        None, description="shares that differ by no more count as equal: 32 roundings of the largest logit, as a share"
    )
    headline: bool = Field(description="whether the claim rests on it")

    @property
    def only_itself(self) -> bool:
        """Whether every control holds the whole found circuit: no different one exists among them, so no p is told."""
        return self.n > 1 and self.shared is not None and self.shared > 1 - 1e-9

    @property
    def described(self) -> str:
        """What the controls are, and whether none of them differs from the found circuit."""
        alone = "; each holds the whole circuit: no different circuit of these types exists among them"
        return self.what + (alone if self.only_itself else "")


class TestSummary(Frozen):
    """One hypothesis test about the circuit."""

    name: str
    hypothesis: str
    statistic: float
    p_value: float | None
    n: int
    reading: str


class Stability(Frozen):
    """Whole searches on resampled prompts."""

    reruns: int
    overlap: Interval | None = Field(description="Jaccard overlap of the kept edges with those of the reruns")
    sizes: list[int]


class DiscoveryFile(Frozen):
    """The full answer about one checkpoint."""

    format: Literal[1] = 1
    verdict: Verdict
    headline: str
    gate: Gate
    circuit: CircuitFile | None = None
    nodes: list[str] = Field(default_factory=list, description="heads and MLPs of the circuit")
    n_kept: int = 0
    n_live: int = 0
    n_edges: int = Field(
        0, description="edges of the graph, live or not; by position all causal (position, query) pairs"
    )
    rankings: list[RankingSummary] = Field(default_factory=list)
    faithfulness: Faithfulness | None = None
    controls: list[ControlSummary] = Field(default_factory=list)
    tests: list[TestSummary] = Field(default_factory=list)
    pairs: list[PairEffect] = Field(default_factory=list)
    roles: list[Role] = Field(default_factory=list)
    stability: Stability | None = None
    split_half: float | None = Field(
        None, description="Jaccard overlap of circuits searched on two halves of the prompts: what chance alone changes"
    )
    settings: Settings
    notes: list[str] = Field(default_factory=list)
    limits: list[str] = Field(default_factory=list)
    timing: dict[str, float] = Field(
        default_factory=dict, description="processor seconds by stage; not part of equality"
    )
    peak_mib: float = Field(0.0, description="largest resident memory of the process; not part of equality")
