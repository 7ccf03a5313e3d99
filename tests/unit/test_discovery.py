"""A whole discovery: what each verdict takes, disjoint prompts, budgets that are kept, the same after JSON."""

from dataclasses import replace

import pytest
import torch

from circuits.circuit import Circuit
from circuits.discovery import circuit_of, discover, edges_of_graph, overlap, stable, verdict_of
from circuits.discovery_result import ControlSummary, DiscoveryFile
from circuits.find import Settings, find_circuit
from circuits.gate import behaviour
from circuits.judge import Judgement
from circuits.problem import Problem
from circuits.search.base import silent
from circuits.subject import Subject
from interp.errors import UsageError
from tests.unit.own_answers import own_pairs, own_problem
from tests.unit.small_circuits import circuit, interval, kept_share
from tests.unit.small_decoders import small_decoder

QUICK = Settings(reruns=2, controls=8, removals=60, top_k=10)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def subject(n: int = 160, seed: int = 2, **settings) -> Subject:
    decoder = small_decoder("grouped").to(torch.float32)
    return Subject(decoder, own_pairs(decoder, n=n, seed=seed, **settings), "small", 7, "ab", "its own answers")


@pytest.fixture(scope="module")
def whole() -> tuple[DiscoveryFile, Circuit]:
    """One discovery without positions."""
    torch.set_num_threads(1)
    one = subject()
    return discover(one, one.problem("resample", False), QUICK)


def test_a_discovery_says_everything_about_its_circuit(whole):
    found, kept = whole
    assert found.verdict in ("circuit", "candidate") and found.n_kept == kept.n_kept > 0
    assert found.n_kept <= found.n_live <= found.n_edges
    assert found.faithfulness.retained.n == 40, "a quarter of the sequences is held out"
    assert [one.name for one in found.controls if one.headline] == ["random paths"]
    assert {one.name for one in found.tests} == {"equivalence", "independence", "minimality", "completeness"}
    assert found.stability.reruns == 2 and len(found.stability.sizes) == 2
    assert kept.provenance.ablation == "resample" and "resample" in found.headline
    assert sum(one.chosen for one in found.rankings) == 1
    assert set(kept.frequency[kept.kept].tolist()) <= {0.0, 0.5, 1.0}


def test_a_discovery_and_its_circuit_are_the_same_after_json(whole):
    found, kept = whole
    again = DiscoveryFile.model_validate_json(found.model_dump_json())
    assert again == found
    back = again.circuit.circuit()
    for name in ("kept", "live", "scores", "frequency"):
        assert torch.equal(getattr(back, name), getattr(kept, name).to(getattr(back, name).dtype)), name


def test_the_same_seed_gives_the_same_discovery():
    one, settings = subject(), replace_settings(method="masks", reruns=0, controls=4, removals=20)
    first, again = (discover(one, one.problem("resample", False), settings)[0] for _ in range(2))
    ignored = {"timing", "peak_mib"}
    assert again.model_dump(exclude=ignored) == first.model_dump(exclude=ignored)


def test_no_sequence_serves_two_purposes():
    problem = own_problem(n=96)
    units = [set(part.pairs.unit.tolist()) for part in problem.parts.values()]
    assert [len(one) for one in units] == [48, 24, 24]
    assert not units[0] & units[1] and not units[0] & units[2] and not units[1] & units[2]
    halves = [problem.half(which) for which in (0, 1)]
    for name in ("score", "choose"):
        one, two = (set(half.parts[name].pairs.unit.tolist()) for half in halves)
        assert not one & two and one | two == set(problem.parts[name].pairs.unit.tolist())
    assert halves[0].parts["evaluate"] is problem.parts["evaluate"]


def test_without_behaviour_there_is_no_ratio():
    answers = torch.randint(7, (160,), generator=torch.Generator().manual_seed(5))
    one = subject(answers=answers)
    found, kept = discover(one, one.problem("resample", False), QUICK)
    assert kept is None and found.verdict == "no behaviour to explain"
    assert found.faithfulness is None and found.circuit is None and found.rankings == [] and not found.gate.passed


@pytest.mark.parametrize(
    ("part", "what"), [("evaluate", "evaluate"), ("score", "rank edges"), ("choose", "choose the size")]
)
def test_every_part_of_the_prompts_has_to_show_behaviour(part, what):
    one = subject()
    pairs, stream = one.pairs, torch.Generator().manual_seed(5)
    mine = torch.tensor([name == part for name in pairs.part])
    answers = torch.where(mine[:, None, None], torch.randint(7, pairs.answers.shape, generator=stream), pairs.answers)
    other = torch.stack([torch.tensor([t for t in range(7) if t != int(right)]) for right in answers])
    one = replace(one, pairs=replace(pairs, answers=answers, wrong=other[:, None]))
    found, kept = discover(one, one.problem("resample", False), QUICK)
    assert kept is None and found.verdict == "no behaviour to explain" and not found.gate.passed
    assert found.headline.endswith(f"on the prompts that {what}.")


def test_too_few_prompts_are_a_verdict_of_their_own():
    one = subject(n=24)
    found, kept = discover(one, one.problem("resample", False), QUICK)
    assert kept is None and found.verdict == "too few prompts to tell"
    needed = found.gate.needed
    assert found.headline.startswith(
        f"Too few prompts to tell (n = 6 on the prompts that evaluate; at least {needed} needed at the 99.9 % level): "
    )


def test_a_part_with_prompts_enough_that_shows_no_behaviour_decides_over_one_with_too_few():
    answers = torch.randint(7, (24,), generator=torch.Generator().manual_seed(5))
    one = subject(n=24, answers=answers)
    found, _ = discover(one, one.problem("resample", False), QUICK)
    assert found.gate.accuracy.n == 12 and found.verdict == "no behaviour to explain"
    assert found.headline.endswith("on the prompts that rank edges.")


def test_a_ratio_that_cannot_be_computed_ends_the_discovery_before_the_search(monkeypatch):
    def never(*given, **options):
        raise AssertionError("searched for a circuit whose share kept cannot be computed")

    monkeypatch.setattr("circuits.discovery.find_circuit", never)
    passed = behaviour(own_problem(n=96).parts["evaluate"])
    assert passed.passed
    monkeypatch.setattr("circuits.discovery.behaviour", lambda part: passed)
    answers = torch.randint(7, (160,), generator=torch.Generator().manual_seed(5))
    one = subject(answers=answers)
    with pytest.raises(UsageError, match="may not differ between clean and ablated"):
        discover(one, one.problem("resample", False), QUICK)


def test_halves_of_a_part_with_a_single_sequence_are_left_out_and_named(monkeypatch):
    one = subject()
    passed = behaviour(own_problem(n=96).parts["evaluate"])
    monkeypatch.setattr("circuits.discovery.behaviour", lambda part: passed)
    pairs = one.pairs
    first = next(i for i, part in enumerate(pairs.part) if part == "choose")
    unit = torch.tensor([first if part == "choose" else int(u) for part, u in zip(pairs.part, pairs.unit, strict=True)])
    one = replace(one, pairs=replace(pairs, unit=unit))
    problem = one.problem("resample", False)
    assert problem.parts["choose"].pairs.n_units == 1 and len(problem.parts["choose"].pairs) == 40
    found, kept = discover(one, problem, replace_settings(method="eap", halves=True, reruns=0))
    assert kept is not None and found.split_half is None
    assert any("no overlap of two halves" in note and "single sequence" in note for note in found.notes)
    several = discover(
        subject(), subject().problem("resample", False), replace_settings(method="eap", halves=True, reruns=0)
    )
    assert 0 <= several[0].split_half <= 1 and not any("halves" in note for note in several[0].notes)


def test_edges_of_the_graph_count_every_causal_pair_of_keys_and_values():
    decoder = small_decoder("preset", n_layers=1, n_heads=1).to(torch.float32)
    pairs = own_pairs(decoder, length=4)
    # embed to q, k, v and MLP, head to MLP, embed, head and MLP to logits
    assert edges_of_graph(Problem(decoder, pairs)) == 8
    assert edges_of_graph(Problem(decoder, pairs, "resample", True)) == 2 * 10 + 6 * 4


def test_overlap_is_the_share_of_the_union():
    one, two = torch.tensor([True, True, True, False]), torch.tensor([False, True, True, True])
    assert overlap(one, two) == 0.5 and overlap(one, one) == 1.0 and overlap(one, ~one) == 0.0
    assert overlap(one & ~one, two & ~two) == 1.0, "two empty circuits agree"


def judgement(kept: float, low: float, largest: float | None, n: int = 19, high: float | None = None) -> Judgement:
    bounds = {"low": low, "high": kept if high is None else high}
    share = kept_share().model_copy(update={"retained": interval(kept).model_copy(update=bounds)})
    if largest is None:
        return Judgement(share, (), ())
    given = {"name": "random paths", "what": "random unions", "n": n, "mean": 0.1, "largest": largest, "headline": True}
    return Judgement(share, (ControlSummary(**given),), ())


@pytest.mark.parametrize(
    ("kept", "low", "largest", "verdict", "why"),
    [
        (0.97, 0.96, 0.40, "circuit", "the best of 19 random unions keeps 40.0%"),
        (0.94, 0.93, 0.40, "candidate", "less than the 95% asked for"),
        (0.97, 0.96, 0.96, "candidate", "that random circuit is as good"),
        (1.40, 1.30, 0.40, "candidate", "40% more than the model has"),
        (0.97, 0.96, None, "candidate", "no matched control"),
    ],
)
def test_a_circuit_keeps_the_target_and_beats_every_matched_control(kept, low, largest, verdict, why):
    found, headline = verdict_of(circuit(), judgement(kept, low, largest), Settings())
    assert found == verdict and why in headline


def test_few_controls_or_a_wide_interval_make_no_circuit():
    for given, why in (
        (judgement(0.97, 0.96, 0.4, n=18), "18 random circuits are too few"),
        (judgement(0.97, 0.60, 0.4, high=1.20), "the interval is too wide"),
    ):
        found, headline = verdict_of(circuit(), given, Settings())
        assert found == "candidate" and why in headline


def test_a_control_that_reaches_the_interval_but_for_rounding_is_as_good():
    near = judgement(0.97, 0.96, 0.96 - 1e-8)
    (control,) = near.controls
    verdicts = []
    for tie in (None, 1e-7):
        again = replace(near, controls=(control.model_copy(update={"tie": tie}),))
        verdicts.append(verdict_of(circuit(), again, Settings())[0])
    assert verdicts == ["circuit", "candidate"]


def test_reruns_that_would_take_too_long_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr("circuits.discovery.RERUN_STAGES", 0)
    one = subject()
    found, kept = discover(one, one.problem("resample", False), replace_settings(method="eap"))
    assert found.stability is None and kept.frequency is None
    assert any("0 searches rerun" in note for note in found.notes)


def test_removal_and_confirmation_keep_to_the_budget(monkeypatch):
    monkeypatch.setattr("circuits.find.seconds_per_run", lambda problem, parts: 1.0)
    problem = own_problem(n=96)
    few, all_of_them = (replace_settings(method="eap", removals=40, seconds=seconds) for seconds in (4.0, 400.0))
    found = find_circuit(problem, few, look_for_interactions=False)
    assert any("removal stopped, as 4 runs pay for no finer blocks" in note for note in found.notes)
    assert any("with 4 runs of circuits, 40 asked for" in note for note in found.notes)
    whole = find_circuit(problem, all_of_them, look_for_interactions=False)
    assert not any("asked for" in note for note in whole.notes) and int(whole.kept.sum()) <= int(found.kept.sum())


def replace_settings(**changes) -> Settings:
    return QUICK.model_copy(update=changes)


def test_a_method_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="eap_ig ranks no edges with positions"):
        find_circuit(own_problem(by_position=True), replace_settings(method="eap_ig"))
    with pytest.raises(UsageError, match="needs corrupted prompts"):
        find_circuit(own_problem(ablation="mean"), replace_settings(method="eap"))


def test_prompts_of_unequal_length_have_no_positions():
    pairs = own_pairs(small_decoder("grouped").to(torch.float32))
    shorter = pairs.mask.clone()
    shorter[0, 0] = False
    with pytest.raises(UsageError):
        Problem(small_decoder("grouped"), replace(pairs, mask=shorter), "resample", True)


def test_stability_counts_how_often_each_edge_is_kept_again():
    problem, settings = own_problem(n=96), replace_settings(method="eap")
    found = find_circuit(problem, settings, look_for_interactions=False)
    result, frequency = stable(problem, found, settings, silent)
    assert result.overlap.low <= result.overlap.value <= result.overlap.high
    expected = sum(result.sizes) / 2
    assert float(frequency.sum()) == pytest.approx(expected), "each rerun's edges count one half"
    assert stable(problem, found, replace_settings(reruns=0), silent) == (None, None)


def test_a_circuit_knows_where_it_comes_from():
    one = subject()
    problem = one.problem("mean", False)
    found = find_circuit(problem, replace_settings(method="exact"), look_for_interactions=False)
    about = circuit_of(one, problem, QUICK, found).provenance
    assert (about.model, about.step, about.ablation, about.seed) == ("small", 7, "mean", 0)
    assert about.n_units == {"score": 80, "choose": 40, "evaluate": 40} and len(about.pairs_fingerprint) >= 16
