"""No null model is called an iteration head, and the attention statistic alone errs at most at its level."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from circuits.detectors._iteration_scan import OFFSETS, build_null, cells, scan_sequences
from circuits.detectors._iteration_verdict import ALPHA
from interp.evaluate import teacher_forced
from interp.rng import generator
from probes.intervals import share
from probes.null import GAINS, p_value, stacked_twins, twin_patterns
from tests.truth.detecting import Nulls, detect, joint_p
from tests.truth.planted import Shape, held_out, planted_task
from tests.truth.planted_negatives import ANY_HEADS, FAILING, SEVERAL_HEADS, Case, one_layer, untrained

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "nulls.json"
HEADS = (1, 2, 8)
FEWEST_SOLVING = 20


def makers(kind: str, n_heads: int) -> tuple[Callable[[int, int], Case], ...]:
    """The families of null models of one kind."""
    several = n_heads > 1
    return {
        "solves without the head": (*ANY_HEADS, *(SEVERAL_HEADS if several else ())),
        "looks like it": (*FAILING, *((one_layer,) if several else ())),
        "untrained": (untrained,),
    }[kind]


def numbered(kind: str, n_heads: int, count: int) -> list[tuple[Callable[[int, int], Case], int]]:
    """`count` (maker, seed) pairs, running through the families."""
    families = makers(kind, n_heads)
    return [(families[i % len(families)], i) for i in range(count)]


def verdicts(counts: dict[str, tuple[int, int, int]], nulls: Nulls, *, thorough: bool) -> list[dict]:
    """Detector and statistic on every null model; `counts` gives how many models at 1, 2 and 8 heads."""
    rows = []
    for kind, by_heads in counts.items():
        for n_heads, count in zip(HEADS, by_heads, strict=True):
            for maker, seed in numbered(kind, n_heads, count):
                case = maker(n_heads, seed)
                assert solves(case) == case.solves, f"{case.name}, {n_heads} heads, seed {seed}"
                found = detect(case.model, case.task, case.sequences, nulls, thorough=thorough)
                rows.append(
                    {
                        "kind": kind,
                        "name": case.name,
                        "heads": n_heads,
                        "seed": seed,
                        "solves": case.solves,
                        "verdict": found.verdict,
                        "attends": joint_p(found) <= ALPHA,
                    }
                )
    return rows


def solves(case: Case) -> bool:
    """Whether the model gets 99 % of the sequences right at every length."""
    return all(
        teacher_forced(case.model, case.task, tokens, length).sequence.float().mean() >= 0.99
        for length, tokens in case.sequences.items()
    )


def detections(rows: list[dict]) -> list[dict]:
    """The null models that were called an iteration head."""
    return [row for row in rows if row["verdict"] == "iteration head"]


def test_none_of_60_null_models_is_called_an_iteration_head(nulls, without_carriers):
    counts = {"solves without the head": (12, 9, 3), "looks like it": (7, 7, 2), "untrained": (8, 8, 4)}
    rows = verdicts(counts, nulls, thorough=False)
    assert len(rows) == 60
    assert sum(row["solves"] for row in rows) >= FEWEST_SOLVING
    assert detections(rows) == []


@pytest.mark.slow
def test_none_of_300_null_models_is_called_an_iteration_head(nulls, without_carriers):
    counts = {"solves without the head": (42, 45, 18), "looks like it": (42, 40, 16), "untrained": (48, 36, 13)}
    rows = verdicts(counts, nulls, thorough=True)
    write(rows)
    assert len(rows) == 300
    assert share(0, 300, "exact").high <= 0.0125  # two-sided; one-sided 95 % is 1 %
    assert detections(rows) == []
    fresh = [row["attends"] for row in rows if row["kind"] == "untrained"]
    assert share(sum(fresh), len(fresh)).value <= 0.05


def write(rows: list[dict]) -> None:
    """Counts by kind and heads, for the record."""
    table = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for n_heads in HEADS:
            some = [row for row in rows if row["kind"] == kind and row["heads"] == n_heads]
            table.append(
                {
                    "kind": kind,
                    "heads": n_heads,
                    "n": len(some),
                    "solve": sum(row["solves"] for row in some),
                    "statistic_alone": sum(row["attends"] for row in some),
                    "iteration_head": len(detections(some)),
                }
            )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"format": 1, "level": ALPHA, "counts": table, "detected": detections(rows)}, indent=1)
    )


def false_positives(n_heads: int, n_null: int, n_fresh: int) -> int:
    """How many of `n_fresh` untrained models, not those of the null, are significant on the joint statistic."""
    task = planted_task("polynomial")
    cfg, sequences = Shape(2, n_heads).config(task), scan_sequences(task, held_out(task, (4, 6, 8)))
    null = build_null(cfg, task, sequences, n=n_null, generator=generator(0, "null", n_heads))
    stream, hits, zero = generator(1, "fresh", n_heads), 0, OFFSETS.index(0)
    for start in range(0, n_fresh, 50):
        gains = [GAINS[i % len(GAINS)] for i in range(start, start + 50)]
        twins = stacked_twins(cfg, gains, stream)
        found = cells(task, {n: twin_patterns(cfg, twins, tokens) for n, tokens in sequences.items()})
        observed = found.joint[..., zero, zero].flatten(1).amax(1)
        hits += sum(p_value(float(value), null.maxima[:, 2])[0] <= ALPHA for value in observed)
    return hits


def test_the_statistic_alone_errs_in_at_most_5_percent_of_untrained_models():
    hits, n = sum(false_positives(heads, 200, 100) for heads in HEADS), 300
    assert share(hits, n, "exact").high <= 0.05, f"{hits} of {n}"


@pytest.mark.slow
def test_the_statistic_alone_errs_in_at_most_2_percent_of_3000_untrained_models():
    hits, n = sum(false_positives(heads, 500, 1000) for heads in HEADS), 3000
    assert share(hits, n, "exact").high <= 0.02, f"{hits} of {n}"


def test_the_same_seed_plants_the_same_null_model():
    first, second = (maker(2, 5).model.state_dict() for maker in (ANY_HEADS[3], ANY_HEADS[3]))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
