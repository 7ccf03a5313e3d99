"""Several sites in one call have the results of separate calls, between runs that are recorded once."""

import pytest
import torch

from circuits import patching
from circuits.engine import runs as runs_module
from circuits.metrics import LogProb
from circuits.patch_sites import patch_sites
from circuits.patching import patch_heads
from interp.errors import UsageError
from tests.unit.random_bridges import VOCAB, hugging_face, wrapped
from tests.unit.small_decoders import logit_diff, prompts, small_decoder
from tests.unit.test_patching_bridges import METRIC, SLIDING, pairs

SITES = ["v", "z", "mlp_out", "resid_pre", "mlp_post"]


@pytest.mark.parametrize("ablation", ["none", "zero", "resample"])
@pytest.mark.parametrize("metric", [logit_diff(3, "all"), LogProb(torch.tensor([1, 2, 3]))], ids=["linear", "log"])
def test_each_site_has_exactly_the_result_of_a_call_of_its_own(ablation, metric):
    decoder, (clean, corrupted) = small_decoder("grouped", n_layers=3), prompts(n=3)
    given = {"clean": clean, "metric": metric, "ablation": ablation, "precision": "fp64", "layers": [0, 2]}
    given["corrupted"] = corrupted if ablation == "none" else None
    found = patch_sites(decoder, SITES, **given, positions=[2, 4, 5])
    assert list(found) == SITES
    for site, result in found.items():
        alone = patch_heads(decoder, site=site, **given, positions=[2, 4, 5])
        assert torch.equal(result.effect, alone.effect) and torch.equal(result.reason, alone.reason)
        assert (result.site, result.layers, result.positions) == (site, (0, 2), (2, 4, 5))
        assert torch.equal(result.base, alone.base)
        assert result.verify(5).max_error < 1e-10
        assert result.effect.abs().max() > 1e-4


def test_the_runs_are_recorded_once_and_counted_once(monkeypatch):
    decoder, clean = small_decoder("preset", n_layers=3), prompts()[0]
    given = {"clean": clean, "corrupted": (clean + 1) % 7, "metric": logit_diff()}
    alone = [patch_heads(decoder, site=site, **given) for site in SITES]
    recorded, real = [], runs_module.record

    def counting(*arguments):
        recorded.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(runs_module, "record", counting)
    found = patch_sites(decoder, SITES, **given)
    assert len(recorded) == 1
    recording = found[SITES[0]].patches.runs.recording_flops
    assert recording > 0
    saved = sum(one.flops for one in alone) - sum(one.flops for one in found.values())
    assert saved == (len(SITES) - 1) * recording
    for result in found.values():
        assert result.plan.flops == pytest.approx(result.flops, rel=0.01)
    assert found[SITES[0]].flops == alone[0].flops


def test_a_model_that_runs_by_forwards_gives_every_site_and_one_warning():
    bridge, (clean, corrupted) = (
        wrapped(hugging_face("Mistral", "ForCausalLM", {**SLIDING, "vocab_size": VOCAB})),
        pairs(),
    )
    with pytest.warns(UserWarning, match="full forwards") as said:
        found = patch_sites(bridge, ["z", "mlp_out"], clean=clean, corrupted=corrupted, metric=METRIC, positions=[3])
    assert len(said) == 1
    assert found["mlp_out"].effect.shape == (2, 2, 1, 1)
    assert found["z"].effect.abs().max() > 1e-4


@pytest.mark.parametrize("sites", [[], "z", ["z", "z"]])
def test_no_site_and_a_site_that_is_named_twice_are_refused(sites):
    clean, corrupted = prompts()
    with pytest.raises(UsageError, match=r"sites: .*expected a list of different sites"):
        patch_sites(small_decoder("preset"), sites, clean=clean, corrupted=corrupted, metric=logit_diff())


def test_a_site_that_the_model_lacks_is_refused_before_anything_runs(monkeypatch):
    clean, corrupted = prompts()
    monkeypatch.delattr(patching, "run_plan")
    with pytest.raises(UsageError, match="resid_mid does not exist"):
        patch_sites(
            small_decoder("parallel"), ["z", "resid_mid"], clean=clean, corrupted=corrupted, metric=logit_diff()
        )
