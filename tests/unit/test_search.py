"""Every search method ranks live edges only; exact ranks by exact effects; pruning keeps what it promises."""

import pytest
import torch

from circuits.find import Settings, _confirmed, _Course, find_circuit
from circuits.patch_edges import patch_edges
from circuits.problem import Part
from circuits.pruning import Keeping, joined, order_of, removed, smallest, top
from circuits.search.acdc import divergence, pruned
from circuits.search.base import Search, larger, silent
from circuits.search.masks import open_probability
from interp.errors import UsageError
from interp.registry import load, names
from tests.unit.own_answers import own_problem


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", names("search"))
def test_every_method_ranks_live_edges_only(name, by_position):
    method, problem = load("search", name), own_problem(by_position=by_position)
    search = Search(problem, steps=5)
    assert method.predicted_seconds(search) > 0
    if by_position and not method.by_position:
        with pytest.raises(UsageError, match="positions"):
            method.rank(search)
        return
    found = method.rank(search)
    assert found.scores.shape == problem.live.shape and bool(found.scores.isfinite().all())
    assert not found.scores[~problem.live].any()
    assert (found.scores[problem.live] != 0).float().mean() > 0.5 and found.method and found.kind


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_methods_without_corrupted_prompts_say_so(ablation):
    problem = own_problem(ablation=ablation)
    for name in names("search"):
        method = load("search", name)
        if method.needs_corrupted:
            with pytest.raises(UsageError, match="corrupted prompts"):
                find_circuit(problem, Settings(method=name))
        else:
            assert bool(method.rank(Search(problem, steps=3)).scores.any())


def test_exact_scores_are_the_larger_of_both_directions():
    problem = own_problem()
    part = problem.parts["score"]
    given = {"clean": part.pairs.clean, "corrupted": part.pairs.corrupted, "metric": part.metric, "resolve": "pooled"}
    noise = -patch_edges(problem.decoder, direction="noise", **given).effect.mean(0)
    denoise = patch_edges(problem.decoder, direction="denoise", **given).effect.mean(0)
    found = load("search", "exact").rank(Search(problem))
    expected = larger(noise, denoise) * problem.live
    assert (found.scores - expected).abs().max() < 1e-5
    assert (noise - denoise).abs().max() > 0.01, "both directions agree, so the test could not tell them apart"


def test_a_mask_at_a_high_price_closes_and_at_a_low_one_opens(monkeypatch):
    from circuits.search import masks

    problem = own_problem()
    open_share = {}
    for price in (0.001, 30.0):
        monkeypatch.setattr(masks, "PRICES", (price,))
        open_share[price] = float(load("search", "masks").rank(Search(problem, steps=40)).parts["gates"].mean())
    assert open_share[30.0] < 0.3 < open_share[0.001]
    assert 0 < float(open_probability(torch.tensor(-9.0))) < 0.01


@pytest.mark.parametrize("by_position", [False, True])
def test_masks_trained_one_price_at_a_time_are_those_of_all_prices_at_once(monkeypatch, by_position):
    from circuits.search import masks

    problem, found = own_problem(by_position=by_position), []
    for chunk in (1, 1 << 40):
        monkeypatch.setattr(masks, "CHUNK_BYTES", chunk)
        found.append(load("search", "masks").rank(Search(problem, steps=5)).parts["gates"])
    assert found[0].shape[0] == len(masks.PRICES)
    assert float((found[0] - found[1]).abs().max()) <= 1e-4


def test_masks_repeat_with_their_seed():
    problem, method = own_problem(), load("search", "masks")
    first, again, other = (method.rank(Search(problem, seed=seed, steps=5)).scores for seed in (1, 1, 2))
    assert bool((first == again).all()) and not bool((first == other).all())


def test_acdc_removes_what_costs_less_than_the_tolerance():
    problem = own_problem()
    runs = problem.parts["score"].runs
    scale = float(divergence(runs, torch.zeros_like(problem.live)[None])[0])
    strict, loose = (pruned(runs, problem.live.clone(), share * scale) for share in (1e-4, 0.2))
    assert int(loose.sum()) < int(strict.sum()) <= int(problem.live.sum())
    count = int(problem.live.sum() - strict.sum())
    assert float(divergence(runs, strict[None])[0]) <= 1e-4 * scale * max(1, count)


def test_top_edges_come_in_order_and_only_live_ones():
    live = torch.tensor([[True, False], [True, True]])
    order = order_of(torch.tensor([[0.1, 9.0], [-3.0, 0.0]]), live)
    assert order.tolist() == [2, 0, 3]
    assert top(order, 2, live).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("by_position", [False, True])
def test_the_circuit_found_keeps_the_target_and_cannot_lose_an_edge(by_position):
    problem = own_problem(by_position=by_position)
    keeping = Keeping([problem.parts["score"], problem.parts["choose"]])
    scores = load("search", "exact").rank(Search(problem)).scores
    found = smallest(problem, scores, 0.9, keeping)
    kept, complete = removed(problem, found, scores, 0.9, keeping, most=5000)
    assert complete
    assert float(keeping.of(kept[None])[0]) >= 0.9
    assert int(kept.sum()) <= int(found.sum()) < int(problem.live.sum())
    places = kept.nonzero()
    less = kept.repeat(len(places), *([1] * kept.dim()))
    less[(torch.arange(len(places)), *places.T)] = False
    assert float(keeping.of(less).max()) < 0.9
    assert bool((joined(problem, kept) == kept).all())


def test_a_small_allowance_stops_the_removal():
    problem = own_problem()
    keeping = Keeping([problem.parts["score"]])
    scores = load("search", "exact").rank(Search(problem)).scores
    _, complete = removed(problem, problem.live, scores, 0.9, keeping, most=20)
    assert keeping.spent <= 40 and not complete


def test_the_pipeline_puts_kept_edges_first_and_names_what_it_left_out():
    problem = own_problem()
    found = find_circuit(problem, Settings())
    order = order_of(found.scores, problem.live)
    n = int(found.kept.sum())
    assert 0 < n < int(problem.live.sum())
    assert bool((top(order, n, problem.live) == found.kept).all())
    assert found.chosen in found.rankings and set(found.rankings) == {"exact", "masks", "average"}
    tight = find_circuit(problem, Settings(seconds=1e-9))
    assert "exact left out" in tight.notes[0] and set(tight.rankings) == {"eap"}


@pytest.mark.parametrize("name", ["grouped", "rms swiglu rotary"])
def test_screening_by_gradients_scores_the_top_edges_exactly_in_both_directions(name):
    problem = own_problem(name)
    screened, exact = (load("search", one).rank(Search(problem)) for one in ("eap", "exact"))
    problem = own_problem(name)  # without the effects that exact patching has left there
    found = _confirmed(_Course(problem, Settings(top_k=12), silent), screened)
    first = torch.zeros_like(problem.live).flatten()
    first[order_of(screened.scores, problem.live)[:12]] = True
    first = first.view(problem.live.shape)
    unit = exact.scores.abs().max()
    for direction in ("noise", "denoise"):
        assert (found.parts[direction] - exact.parts[direction] * first).abs().max() < 1e-5 * unit
    assert (found.scores - exact.scores)[first].abs().max() < 1e-5 * unit
    noise, denoise = (exact.parts[direction].mean(0)[first].abs() for direction in ("noise", "denoise"))
    assert bool((noise > 1.01 * denoise).any()) and bool((denoise > 1.01 * noise).any()), "either direction decides"
    others = problem.live & ~first
    ratio = found.scores[others] / screened.scores[others]
    assert (ratio / ratio.mean() - 1).abs().max() < 1e-4, "edges that were not confirmed keep the screening's order"
    share = exact.scores[first].abs().sum() / screened.scores[first].abs().sum()
    assert float(ratio.mean()) == pytest.approx(float(share), rel=1e-4), "in the unit of exact effects"


def test_with_all_edges_confirmed_a_screening_is_exact_patching():
    problem, exact = own_problem(), load("search", "exact").rank(Search(own_problem()))
    screened = load("search", "eap").rank(Search(problem))
    found = _confirmed(_Course(problem, Settings(top_k=10**6), silent), screened)
    assert bool(problem.live.any()) and (screened.scores - exact.scores).abs().max() > 0.1
    assert (found.scores - exact.scores).abs().max() < 1e-5 * exact.scores.abs().max()


def test_a_budget_for_few_edges_confirms_few_and_says_so(monkeypatch):
    problem = own_problem()
    screened = load("search", "eap").rank(Search(problem))
    monkeypatch.setattr("circuits.find.seconds_each", lambda search: 1.0)
    course = _Course(problem, Settings(top_k=10, seconds=4.5), silent)
    found = _confirmed(course, screened)
    assert int((found.parts["noise"] != 0).any(0).sum()) == 4
    assert course.notes == ["4 edges confirmed exactly in both directions, 10 asked for"]
    none = _Course(problem, Settings(top_k=10, seconds=0.5), silent)
    assert _confirmed(none, screened) is None and "0 edges confirmed" in none.notes[0]


def test_the_screening_stays_a_ranking_beside_its_confirmed_one(monkeypatch):
    method = load("search", "exact")
    monkeypatch.setattr(type(method), "predicted_seconds", lambda self, search: 1e9)
    found = find_circuit(own_problem(), Settings(top_k=5), look_for_interactions=False)
    assert list(found.rankings) == ["eap_ig", "confirmed", "masks", "average"]
    assert "confirmed and masks" in found.rankings["average"].method
    assert "top 5 exactly in both directions" in found.rankings["confirmed"].method


def test_nothing_is_found_where_not_even_all_live_edges_suffice():
    problem = own_problem()
    found = find_circuit(problem, Settings(target=0.95))
    assert found.kept.any()
    problem.__dict__["live"] = torch.zeros_like(problem.live)
    problem.live[problem.parts["score"].runs.graph.index("embed->logits")] = True
    nothing = find_circuit(problem, Settings(target=0.95))
    assert not nothing.kept.any() and "not even all of them" in nothing.notes[-1]


def test_resampled_problems_draw_units_within_their_parts():
    problem = own_problem()
    other = problem.resampled(torch.Generator().manual_seed(0))
    for part in ("score", "choose"):
        drawn, given = other.parts[part], problem.parts[part]
        assert set(drawn.pairs.unit.tolist()) < set(given.pairs.unit.tolist())
        assert float(drawn.weight.sum()) == len(given.pairs) and float(drawn.weight.min()) >= 1
    assert other.parts["evaluate"] is problem.parts["evaluate"]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", [*names("search")])
def test_a_prompt_that_counts_twice_is_one_that_is_there_twice(name, known):
    """Ranking and share kept on drawn prompts, against copies of them; also with effects known from before."""
    problem = own_problem()
    if known:
        load("search", "exact").rank(Search(problem))
    drawn = problem.resampled(torch.Generator().manual_seed(3))
    copies = drawn._with_parts(*(copied(drawn, part) for part in ("score", "choose")))
    assert float(drawn.parts["score"].weight.max()) > 1
    found = [load("search", name).rank(Search(one, steps=5)).scores for one in (drawn, copies)]
    assert found[0].abs().max() > 0
    assert float((found[0] - found[1]).abs().max()) <= 1e-4 * float(found[1].abs().max())
    circuits = (torch.rand(6, *problem.live.shape, generator=torch.Generator().manual_seed(0)) < 0.7) & problem.live
    shares = [Keeping([one.parts["score"], one.parts["choose"]]).of(circuits) for one in (drawn, copies)]
    assert float((shares[0] - shares[1]).abs().max()) <= 1e-4


def copied(problem, name: str) -> Part:
    """A part whose prompts are there as often as they count."""
    part = problem.parts[name]
    index = torch.arange(len(part.pairs)).repeat_interleave(part.weight.long())
    return Part(problem, part.pairs.subset(index))


def test_prompts_that_are_ablated_to_their_mean_are_drawn_as_copies():
    problem = own_problem(ablation="mean")
    drawn = problem.resampled(torch.Generator().manual_seed(0)).parts["score"]
    assert drawn.weight is None and len(drawn.pairs) == len(problem.parts["score"].pairs)


@pytest.mark.parametrize(("name", "ablation", "seed"), [("preset", "mean", 0), ("rms swiglu rotary", "zero", 0)])
def test_what_is_returned_keeps_the_target_under_every_ablation(name, ablation, seed):
    """A sender with ablated inputs still writes something of its own there, so edges off any path can act."""
    problem = own_problem(name, ablation=ablation, n=48, seed=seed)
    found = find_circuit(problem, Settings(method="exact"), look_for_interactions=False)
    parts = [problem.parts[one] for one in ("score", "choose")]
    assert found.kept.any() and float(Keeping(parts).of(found.kept[None])[0]) >= 0.95
