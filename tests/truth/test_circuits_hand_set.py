"""Circuit discovery against hand-set circuits: exact and gradient rankings, the pipeline, what single edges miss."""

from functools import cache

import pytest
import torch

from tests.truth import hand_circuits
from tests.truth.circuit_families import INTERACTING, PLAIN
from tests.truth.circuit_measuring import Known, does_its_task, hand_set
from tests.truth.hand_circuits import FORMS, packed, rotation

MISSED = 0.05  # of clean minus ablated: the size from which the pipeline calls something an effect
BLIND = {  # family: ranking of single edges, edges of the circuit that it cannot see
    "conjunction": ("denoise", ["embed->L0.H0", "L0.H0->M0", "L0.H1->M0", "M0->M1", "embed->L1.H1", "L1.H1->M1"]),
    "disjunction": ("noise", ["embed->L0.H0", "embed->L0.H2", "L0.H0->M0", "L0.H2->M0"]),
    "nested": ("exact", [f"embed->L0.H{head}" for head in range(4)] + [f"L0.H{head}->M0" for head in range(4)]),
    "backup": ("exact", ["L1.H1->logits"]),
    "negative_head": ("exact", ["embed->L0.H0"]),
    "self_repair": ("noise", ["embed->L0.H0"]),
}
QUICK = ("plain", "all")  # forms whose tests are not slow; "all" puts the others together but for superposition


@cache
def known(family: str, form: str) -> Known:
    return hand_set(family, form)


def slow_unless_quick(families, quick: tuple[str, ...] = QUICK) -> list:
    """Every family in every form; forms besides the quick ones are slow."""
    return [
        pytest.param(family, form, marks=() if form in quick else pytest.mark.slow, id=f"{family}-{form}")
        for family in families
        for form in FORMS
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [*PLAIN, *INTERACTING])
def test_a_hand_set_model_does_its_task(family, form):
    assert does_its_task(known(family, form), known(family, "plain"))


def test_another_machine_s_rounding_gives_the_same_directions():
    stream = torch.Generator().manual_seed(0)
    for n, width in ((25, 23), (40, 36), (40, 40)):
        start = torch.randn(n, width, generator=stream)
        near = start * (1 + 1e-6 * torch.randn(n, width, generator=stream))
        found, again = (packed(one) if width < n else rotation(one) for one in (start, near))
        assert 0 < (found - again).abs().max() < 1e-4
        assert (found.norm(dim=1) - 1).abs().max() < 1e-5
        assert (found @ found.T - torch.eye(n)).abs().max() < (0.09 if width < n else 1e-5)


@pytest.mark.parametrize("family, form", slow_unless_quick(PLAIN, ("plain", "superposed", "layernorm", "all")))
def test_exact_patching_and_eap_ig_find_additive_and_serial_circuits(family, form):
    case = known(family, form)
    assert bool(case.scored[case.edges].all()), "an edge of the circuit is not exercised by the prompts"
    assert case.score("exact").auroc >= 0.99
    assert case.score("eap_ig").auroc >= 0.97


@pytest.mark.parametrize("family, form", slow_unless_quick(PLAIN, ("all",)))
def test_the_pipeline_finds_additive_and_serial_circuits(family, form):
    case = known(family, form)
    assert case.score("pipeline").auroc >= 0.99
    negative = [node for node, role, _ in case.named_roles() if role == "negative"]
    assert form == "superposed" or not negative
    assert all(hurts(case, node) for node in negative), "a head is called negative that does not hurt"
    assert set(case.roles) <= case.named_roles()


def hurts(case: Known, node: str) -> bool:
    """Whether ablating a node raises the metric on held-out prompts too, beyond twice its standard error.

    Superposed features leak into one another, so that a head of no circuit can really hurt a little.
    """
    runs, kept = case.problem.parts["evaluate"].runs, case.problem.live.clone()
    kept[case.graph.senders.index(node)] = False
    gain = runs.values(kept[None])[0] - runs.clean
    return float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5


@pytest.mark.parametrize("family, form", slow_unless_quick(INTERACTING))
def test_the_pipeline_finds_circuits_whose_edges_interact(family, form):
    case = known(family, form)
    assert bool(case.scored[case.edges].all()), "an edge of the circuit is not exercised by the prompts"
    assert case.score("pipeline").auroc >= 0.95
    assert set(case.roles) <= case.named_roles()


@pytest.mark.parametrize("family", INTERACTING)
def test_single_edges_miss_circuits_whose_edges_interact(family):
    case = known(family, "plain")
    method, edges = BLIND[family]
    assert set(edges) <= set(case.true)
    sizes = {edge: abs(case.effect(method, edge)) for edge in edges}
    assert max(sizes.values()) < MISSED
    assert case.score(method).auroc < case.score("pipeline").auroc


@pytest.mark.parametrize("family", ["conjunction", "disjunction"])
def test_one_direction_falls_below_the_bar_where_the_other_one_sees_everything(family):
    case = known(family, "plain")
    blind, seeing = {"conjunction": ("denoise", "noise"), "disjunction": ("noise", "denoise")}[family]
    assert case.score(blind).auroc < 0.8
    assert case.score(seeing).auroc == 1.0


def test_signed_scores_put_the_negative_head_last():
    case = known("negative_head", "plain")
    assert case.score("exact", signed=True).auroc < 0.8
    assert case.effect("exact", "L1.H1->logits") < -0.3


def test_a_negative_head_is_no_backup_of_what_feeds_it():
    assert ("L1.H1", "backup", "L0.H0") not in known("negative_head", "plain").named_roles()


@pytest.mark.parametrize("family", ["backup", "self_repair"])
def test_a_complete_backup_hides_all_of_what_ablating_the_primary_does(family):
    case = known(family, "plain")
    assert abs(case.effect("noise", "embed->L0.H0")) < MISSED
    assert not [role for role in case.named_roles() if role[:2] == ("L0.H0", "backup")]


def test_five_steps_of_eap_ig_miss_the_switches_of_very_sharp_attention(monkeypatch):
    monkeypatch.setattr(hand_circuits, "SHARP", 14.0)
    case = hand_set("iteration", "plain")
    assert case.score("exact").precision == 1.0 > case.score("eap_ig").precision
    assert abs(case.effect("exact", "embed->L0.H0")) > 0.3
    assert abs(case.effect("eap_ig", "embed->L0.H0")) < 0.001
