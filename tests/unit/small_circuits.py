"""Small circuits and whole discoveries with known numbers, for tests of drawings, pages and other formats."""

import torch

from circuits.circuit import Answer, Circuit, Example, Provenance
from circuits.detectors.base import Interval
from circuits.discovery_result import (
    ControlSummary,
    CurvePoint,
    DiscoveryFile,
    Faithfulness,
    RankingSummary,
    Stability,
    TestSummary,
)
from circuits.find import Settings
from circuits.gate import Gate
from circuits.graph import ModelShape, graph_of
from circuits.interactions import PairEffect, Role
from interp.rng import generator

TOKENS = ["BoS", "3", "EoI", "3"]
CURVE = ((1, 0.0), (4, 0.4), (15, 0.97), (23, 1.0))
COLUMNS = ("BoS", "x1", "EoI", "s1")


def shape(n_layers: int = 2, heads: int = 2, kv: int | None = None, mlp: bool = True, parallel: bool = False):
    """Every layer the same."""
    lists = {"heads": heads, "kv_heads": kv or heads, "mlp": mlp, "parallel": parallel}
    return ModelShape(d_model=8, d_vocab=7, **{name: [value] * n_layers for name, value in lists.items()})


def provenance(**changes) -> Provenance:
    given = {
        "model": "poly1",
        "step": 1375,
        "fingerprint": "ab" * 32,
        "pairs": "polynomial, length 8",
        "pairs_fingerprint": "cd" * 32,
        "n_prompts": {"score": 64, "choose": 32, "evaluate": 32},
        "n_units": {"score": 64, "choose": 32, "evaluate": 32},
        "metric": "logit_diff",
        "ablation": "resample",
        "method": "exact",
        "seed": 0,
        "code_version": "2026.11.0",
    }
    return Provenance(**{**given, **changes})


def example() -> Example:
    answers = [Answer(token=3, name="3", probability=0.75), Answer(token=1, name="1", probability=0.25)]
    return Example(tokens=[0, 3, 1, 3], names=TOKENS, answers=answers)


def interval(value: float, width: float = 0.01, n: int = 32) -> Interval:
    return Interval(value=value, low=value - width, high=value + width, n=n, method="bootstrap over sequences")


def circuit(of: ModelShape | None = None, edges: dict[str, float] | None = None, **changes) -> Circuit:
    """Named edges with their scores, all of which are kept; else a random half of all edges."""
    of = of or shape()
    graph = graph_of(of)
    kept, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape)
    for name, score in (edges or {}).items():
        kept[graph.index(name)], scores[graph.index(name)] = True, score
    if edges is None:
        stream = generator(0, "small circuit")
        kept = graph.exists & (torch.rand(kept.shape, generator=stream) < 0.5)
        scores = torch.randn(kept.shape, generator=stream) * graph.exists
    live = graph.exists.clone()
    live[0, -1] = kept[0, -1]  # one edge that is not live
    given = {
        "graph": graph,
        "shape": of,
        "kept": kept,
        "live": live,
        "scores": scores * live,
        "frequency": (kept * 0.8).float(),
        "faithfulness": interval(0.97),
        "provenance": provenance(),
        "example": example(),
    }
    return Circuit(**{**given, **changes})


def placed(edges: dict[tuple[str, int, int], float], of: ModelShape | None = None) -> Circuit:
    """A circuit by position over the four tokens, from (edge, sender's place, reader's place) -> score."""
    of = of or shape()
    graph = graph_of(of)
    size = (*graph.exists.shape, len(COLUMNS), len(COLUMNS))
    kept, scores = torch.zeros(size, dtype=torch.bool), torch.zeros(size)
    for (name, key, query), score in edges.items():
        kept[(*graph.index(name), key, query)] = True
        scores[(*graph.index(name), key, query)] = score
    return Circuit(graph, of, kept, kept.clone(), scores, provenance(), None, COLUMNS, interval(0.96), example())


def kept_share() -> Faithfulness:
    """Numbers of one circuit, with a curve of four sizes."""
    return Faithfulness(
        retained=interval(0.97),
        metric_model=9.5,
        metric_circuit=9.2,
        metric_ablated=-0.4,
        kl=0.02,
        accuracy_model=1.0,
        accuracy_circuit=0.98,
        cmd=0.11,
        cpr=0.91,
        log_area=0.5,
        curve=[CurvePoint(size=n, kept=n - 1, faithfulness=f) for n, f in ((1, 0.0), (4, 0.4), (15, 0.97), (23, 1.0))],
        optimal=[CurvePoint(size=4, kept=4, faithfulness=0.5)],
    )


def discovery(found: Circuit | None, verdict: str = "circuit", headline: str = "Circuit: it is one.") -> DiscoveryFile:
    """A whole discovery around a circuit, with one row of everything."""
    gate = Gate(
        accuracy=interval(1.0, 0.0), constant=0.25, difference=interval(9.0, 0.5), passed=True, reason="accuracy 1.000"
    )
    if found is None:
        return DiscoveryFile(verdict=verdict, headline=headline, gate=gate, circuit=None, settings=Settings())
    return DiscoveryFile(
        verdict=verdict,
        headline=headline,
        gate=gate,
        circuit=found.to_file(),
        nodes=list(found.nodes),
        n_kept=found.n_kept,
        n_live=found.n_live,
        n_edges=found.n_live + 4,
        rankings=[RankingSummary(name="exact", method="exact", kind="share of the metric lost", chosen=True)],
        faithfulness=kept_share(),
        controls=[
            ControlSummary(
                name="random paths", what="matched by kind", n=100, mean=0.1, largest=0.4, p_value=0.0099, headline=True
            )
        ],
        tests=[
            TestSummary(
                name="minimality", hypothesis="an edge does nothing", statistic=0.01, p_value=0.2, n=15, reading="kept"
            )
        ],
        pairs=[
            PairEffect(first="embed->L0.H0.k", second="embed->M0", together=0.5, interaction=-0.2, low=-0.3, high=-0.1)
        ],
        roles=[
            Role(
                node="L1.H1",
                role="backup",
                other="L1.H0",
                alone=0.01,
                given=0.4,
                low=0.3,
                high=0.5,
                n=64,
                rule="a rule",
            )
        ],
        stability=Stability(reruns=5, overlap=interval(0.9, 0.05, 5), sizes=[14, 15, 15, 16, 17]),
        split_half=0.8,
        settings=Settings(),
        notes=["eap left out"],
        limits=["A faithful circuit need not be the only one."],
        timing={"search": 1.0},
        peak_mib=300.0,
    )


def same(one: Circuit, two: Circuit) -> bool:
    """Whether two circuits are equal in everything."""
    return one.to_file() == two.to_file()
