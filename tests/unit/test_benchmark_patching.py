"""The patching benchmark refuses ratios of wrong effects and scales its samples; its baselines patch the same."""

import dataclasses
import io
import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from rich.console import Console

from benchmarks import _patching_timing, patching, patching_autocircuit
from benchmarks._patching_cases import Case, Problem, Shape, random_problem, with_outliers
from benchmarks._patching_gate import Check, Errors, errors, exact_effects
from benchmarks._patching_lean import Lean, both_runs, full_forwards, resumed
from benchmarks._patching_peers import peers
from benchmarks._patching_plot import plot
from benchmarks._patching_table import correctness_lines, markdown, table
from benchmarks._patching_timing import Entrant, Turn, ratios, rounds_of_turns, scaled, with_memory
from circuits.patching import patch_heads
from interp.errors import UsageError

torch.set_num_threads(1)

TOY = Shape("toy", 3, 8, 2, 2, 12, 11)
QWEN = Shape("qwen2", 3, 16, 4, 2, 12, 11)
FEW = {"rounds": 1, "groups": (2,), "checked": 12, "places": 4, "outlier_pairs": 2}


def small(shape: Shape = TOY, read: str = "last", pairs: int = 1, equal_before: int = 0, **options) -> Problem:
    return random_problem(Case("small", shape, 6, read, pairs, equal_before, **FEW | options))


def doubled(problem: Problem) -> Problem:
    return problem.with_weights(problem.decoder.to(torch.float64))


def every_patch(problem: Problem) -> torch.Tensor:
    sizes = (len(problem.decoder.layers), problem.decoder.n_heads, problem.clean.shape[1])
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def a_check(engine: Errors, loop: Errors, zero: float = 0.0, **others: Errors) -> Check:
    return Check("random", 4, 1.0, zero, {"engine": engine, "loop": loop, **others})


def printed(record: dict) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*correctness_lines(record), table([record]), sep="\n")
    return console.file.getvalue()


@pytest.mark.parametrize("read", ["last", "all"])
@pytest.mark.parametrize(("shape", "equal_before"), [(TOY, 0), (TOY, 2), (QWEN, 0)])
def test_every_baseline_computes_the_exact_effect_of_every_patch(shape, equal_before, read):
    problem = doubled(small(shape, read, equal_before=equal_before))
    patches, lean = every_patch(problem), Lean(problem.decoder)
    exact = exact_effects(problem, patches)
    runs = both_runs(problem, lean)
    found = [full_forwards(problem, lean, runs, patches, batch) for batch in (1, 5, 64)]
    found += [resumed(problem, lean, group).flatten(1) for group in (1, 4)]
    assert max(float((effects - exact).abs().max()) for effects in found) < 1e-10
    assert exact.abs().max() > 1e-3
    before = exact[:, patches[:, 2] < equal_before]  # one metric minus another: zero but for its rounding
    assert not before.numel() or before.abs().max() < 1e-10
    prompts = {"clean": problem.clean, "corrupted": problem.corrupted}
    engine = patch_heads(problem.decoder, **prompts, metric=problem.metric, precision="fp64")
    assert (engine.effect.flatten(1) - exact).abs().max() < 1e-10
    assert not engine.effect[..., :equal_before].any()


def test_baselines_keep_prompt_pairs_apart():
    problem = doubled(small(pairs=3))
    patches, lean = every_patch(problem), Lean(problem.decoder)
    found = full_forwards(problem, lean, both_runs(problem, lean), patches, 7)
    engine = patch_heads(
        problem.decoder, clean=problem.clean, corrupted=problem.corrupted, metric=problem.metric, precision="fp64"
    )
    assert (found - engine.effect.flatten(1)).abs().max() < 1e-10
    assert (exact_effects(problem, patches) - found).abs().max() < 1e-10


@torch.no_grad()
def test_peers_patch_the_same_weights_at_the_same_places():
    problem = small()
    patches = every_patch(problem)[::5]
    exact = exact_effects(problem, patches)
    entrants, skipped = peers(problem)
    assert {entrant.name for entrant in entrants} >= {"hooks", "transformer_lens", "nnsight"}
    assert "TransformerLens 4" in skipped["autocircuit"]
    loop = patching.loops(problem, ())[0]
    for entrant in [loop, *entrants]:
        found = errors(entrant.run(entrant.prepare(), patches), exact)
        assert found.largest < 1e-4, entrant.name
    assert errors(loop.run(loop.prepare(), patches.roll(1, 0)), exact).largest > 0.1  # other patches are other effects


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (a_check(Errors(1.0, 2.0), Errors(1.0, 1.0)), ()),
        (a_check(Errors(1.01, 1.0), Errors(1.0, 1.0)), ("larger than the hooked loop's",)),
        (a_check(Errors(1.0, 2.1), Errors(1.0, 1.0)), ("over twice",)),
        (
            a_check(Errors(float("nan"), float("nan")), Errors(1.0, 1.0)),
            ("larger than", "over twice", "something else"),
        ),
        (a_check(Errors(0.1, 0.1), Errors(1.0, 1.0), zero=1e-6), ("skipped",)),
        (
            a_check(Errors(0.1, 0.1), Errors(1.0, 1.0), transformer_lens=Errors(40.0, 1.0)),
            ("transformer_lens computes",),
        ),
    ],
)
def test_the_gate_passes_only_small_errors(check, words):
    assert len(check.failures) == len(words)
    assert all(word in failure for word, failure in zip(words, check.failures, strict=True))
    assert check.record()["passed"] is (not words)


def test_a_wrong_effect_gives_no_time_and_no_ratio(monkeypatch):
    def wrong(*given, **named):
        result = patch_heads(*given, **named)
        return dataclasses.replace(result, effect=result.effect * 1.001)

    monkeypatch.setattr(patching, "patch_heads", wrong)
    record = patching.measure(small(peers=False))
    assert not record["checks"][0]["passed"]
    assert not {"seconds", "ratios", "bars"} & record.keys()
    text = printed(record)
    assert "WRONG, no ratio" in text
    assert "refused" in text
    assert plot([record]).count("<polygon") == 3  # the legend only


def test_times_and_ratios_follow_from_the_turns_by_hand():
    case = dataclasses.replace(small().case, over_lens=12.0, over_best=3.0)
    turns = {
        "engine": [Turn(1.0, 1.0), Turn(2.0, 9.0), Turn(1.0, 1.0)],
        "loop": [Turn(5.0, 5.0), Turn(12.0, 12.0), Turn(6.0, 6.0)],
        "batch-8": [Turn(2.0, 2.0), Turn(5.0, 5.0), Turn(4.0, 4.0)],
        "transformer_lens": [Turn(10.0, 1.0), Turn(22.0, 1.0), Turn(12.0, 1.0)],
        "resumed-2": [Turn(0.5, 1.0), Turn(1.0, 1.0), Turn(0.5, 1.0)],
    }
    entrants = {name: Entrant(name, int, int, whole=name in ("engine", "resumed-2")) for name in turns}
    found = patching.times(case, turns, entrants)
    assert found["best"] == "batch-8"  # what resumes at the patched layer does not count
    assert found["ratios"]["best"] == {"median": 2.5, "lowest": 2.0, "highest": 4.0}
    assert found["ratios"]["transformer_lens"] == {"median": 11.0, "lowest": 10.0, "highest": 12.0}
    assert found["bars"] == {
        "transformer_lens": {"at_least": 12.0, "passed": False},
        "best": {"at_least": 3.0, "passed": False},
    }
    assert found["seconds"]["loop"]["scaled_from"] == "32 patches"
    assert found["seconds"]["engine"]["scaled_from"] is None
    shown = {**SHOWN, **found}
    text = printed(shown)
    assert "12x short" in text
    assert "2.5x [2, 4]" in text
    marks = ElementTree.fromstring(plot([shown])).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(marks)) == 2  # the engine in the legend, and in its row
    assert "| 11 [10, 12], 12 asked: short | 2.5 [2, 4], 3 asked: short |" in markdown({"cases": [shown]})


SHOWN = {
    "name": "small",
    "patches": 36,
    "memory_growth_bytes": 2**20,
    "model_bytes": 2**21,
    "checks": [{"passed": True, "failures": []}],
    "lines": ["random weights"],
    "skipped": {"pyvene": "not installed"},
}


def test_an_interrupted_benchmark_keeps_its_cases_for_the_same_code_only(tmp_path, monkeypatch):
    patching.write(tmp_path, [{"name": "small"}])
    assert [record["name"] for record in patching.kept(tmp_path)] == ["small"]
    monkeypatch.setattr(patching, "PEER_PACKAGES", ("pytest",))
    assert patching.kept(tmp_path) == patching.kept(tmp_path / "elsewhere") == []


def test_a_case_measured_again_replaces_itself_and_leaves_the_others_their_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(patching, "plot", lambda found: "")
    monkeypatch.setattr(patching, "provenance", lambda: "old")
    patching.write(tmp_path, [{"name": "toy-64-all", "n": 1}, {"name": "toy-64-last", "n": 2}])
    monkeypatch.setattr(patching, "provenance", lambda: "new")
    again = [{"name": "toy-64-all", "n": 3}]
    patching.write(tmp_path, again, patching.others(tmp_path, again))
    document = json.loads((tmp_path / "patching.json").read_text())
    assert document["provenance"] == "new"
    old = {"provenance": "old", "name": "toy-64-last", "n": 2}
    assert document["cases"] == [old, {"name": "toy-64-all", "n": 3}]
    assert patching.others(tmp_path, again) == [old]


def test_a_sample_is_scaled_and_its_preparation_counted_once():
    start, ready, end = Turn(1.0, 10.0), Turn(3.0, 14.0), Turn(6.0, 20.0)
    assert scaled(start, ready, end, 3, 30) == Turn(2.0 + 10 * 3.0, 4.0 + 10 * 6.0)
    assert scaled(start, ready, end, 30, 30) == Turn(5.0, 10.0)


def test_timed_patches_are_spread_over_the_whole_table():
    problem = small()
    table_of = {tuple(row) for row in every_patch(problem).tolist()}
    all_once = [tuple(row) for row in patching.random_patches(problem, 36).tolist()]
    assert len(table_of) == 36 == problem.n_patches
    assert set(all_once) == table_of
    assert len({tuple(row) for row in patching.random_patches(problem, 20).tolist()}) == 20
    assert len(patching.random_patches(problem, 128)) == 128


def test_entrants_take_turns_in_an_order_that_flips(monkeypatch):
    monkeypatch.setattr(_patching_timing, "LEAST_SECONDS", 0.0)
    order: list[str] = []
    entrants = [Entrant(name, lambda: None, lambda _, patches, name=name: order.append(name)) for name in "abc"]
    turns = rounds_of_turns(entrants, {name: torch.zeros(2, 3) for name in "abc"}, 4, 3)
    assert "".join(order) == "abccbaabc"
    assert [len(turns[name]) for name in "abc"] == [3, 3, 3]
    assert ratios([Turn(6.0, 1.0), Turn(8.0, 1.0)], [Turn(2.0, 1.0), Turn(4.0, 1.0)]) == [3.0, 2.0]


def test_memory_growth_sees_an_allocation():
    _, memory = with_memory(lambda: float(torch.ones(1 << 25).sum()))
    assert memory.growth >= 120 << 20  # the 128 MiB were already free again
    assert memory.peak > memory.growth


def test_outlier_weights_have_a_few_loud_channels_and_stay_tied():
    decoder = small(QWEN).decoder
    loud = with_outliers(decoder)
    factor = (loud.W_E / decoder.W_E).median(0).values  # [d_model]
    assert sorted(set(factor.round().tolist())) == [1.0, 20.0]
    assert int((factor > 2).sum()) == 3
    assert loud.W_U.data_ptr() == loud.W_E.data_ptr()
    gains = loud.ln_final.w / decoder.ln_final.w
    assert int((gains > 2).sum()) == 3
    assert int(((gains > 2) & (factor > 2)).sum()) == 1


def test_autocircuit_stands_beside_the_engine_by_way_of_a_plain_forward():
    found = {"a": {"error": 0.0, "forwards_per_patch": 2.5}, "b": {"error": 0.1}, "c": {"forwards_per_patch": 3.0}}
    record = {"cases": [{"name": name, "ratios": {"loop": {"median": 40.0}}} for name in "ab"]}
    joined = patching_autocircuit.beside_the_engine(found, record)
    assert {name: case["over_engine"] for name, case in joined.items()} == {"a": 100.0, "b": None, "c": None}
    asked = patching_autocircuit.asked_of(["gpt2-20-last", "toy-64-last"])
    assert asked["gpt2-20-last"]["shape"]["d_vocab"] == 50257
    assert patching_autocircuit.asked_of(["toy-64-last"]).keys() == {"toy-64-last"}


def test_an_interpreter_without_autocircuit_is_named():
    with pytest.raises(UsageError, match=r"PackageNotFoundError.*auto-circuit"):
        patching_autocircuit.asked(sys.executable, ["-c", patching_autocircuit.VERSIONS])
