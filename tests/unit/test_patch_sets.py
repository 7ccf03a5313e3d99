"""Sets of patches equal one forward with all of them in place, in float64."""

import pytest
import torch

from circuits.engine.record import record
from circuits.engine.sites import BY_COMPONENT, values
from circuits.patch_sets import At, patch_sets
from circuits.patching import patch_heads
from circuits.patching_reference import decoder_logits_patched
from interp.errors import UsageError
from tests.unit.small_decoders import FAMILIES, logit_diff, prompts, small_decoder
from tests.unit.test_patch_edges import metric_of


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def forward_with(decoder, tokens, source, places):
    """Logits with the source's values at every (site, layer, component, position); None is everything."""

    def edit(site, number, x):
        changed = x.clone()
        for one in places:
            if (one.site, one.layer) == (site, number):
                position = slice(None) if one.position is None else one.position
                component = slice(None) if one.component is None else one.component
                at = (slice(None), position, component) if site in BY_COMPONENT else (slice(None), position)
                changed[at] = values(source.layers[number], site)[at]
        return changed

    return decoder_logits_patched(decoder, tokens, edit)


def sites_of(name: str) -> list[str]:
    listed = ["z", "q", "k", "v", "resid_pre", "resid_post", "attn_out"]
    listed += [] if name == "attention only" else ["mlp_out", "mlp_post"]
    return listed + ([] if name == "attention only" or "parallel" in name else ["resid_mid"])


def drawn(name: str, n_sets: int, n_layers: int, length: int) -> list[list[At]]:
    """Random sets of one to five places, some of them whole sites."""
    stream, sites, sets = torch.Generator().manual_seed(4), sites_of(name), []
    for _ in range(n_sets):
        places = []
        for _ in range(int(torch.randint(1, 6, (), generator=stream))):
            pick = torch.randint(1 << 20, (4,), generator=stream).tolist()
            site = sites[pick[0] % len(sites)]
            component = pick[2] % 2 if site in BY_COMPONENT and pick[2] % 3 else (None if site in BY_COMPONENT else 0)
            places.append(At(site, pick[1] % n_layers, component, pick[3] % length if pick[3] % 4 else None))
        sets.append(places)
    return sets


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_random_sets_equal_a_forward_with_all_patches_in_place(name, positions):
    decoder, metric = small_decoder(name, n_layers=3), logit_diff(positions=positions)
    clean, corrupted = prompts(length=5)
    sets = [*drawn(name, 12, 3, 5), []]
    result = patch_sets(decoder, sets, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
    source, before = record(decoder, clean), metric_of(metric, decoder_logits_patched(decoder, corrupted))
    for index, places in enumerate(sets):
        expected = metric_of(metric, forward_with(decoder, corrupted, source, places)) - before
        assert (result.effect[:, index] - expected).abs().max() < 1e-10
    assert not bool(result.effect[:, -1].any())
    assert result.effect.abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_patching_everything_gives_the_other_run(name):
    decoder, metric = small_decoder(name), logit_diff()
    clean, corrupted = prompts()
    everything = [At("resid_pre", 0)]
    all_heads = [At("z", layer) for layer in range(2)] + [At("resid_pre", 0)]
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64"}
    result = patch_sets(decoder, [everything, all_heads], **runs)
    assert (result.effect - (result.source - result.base)[:, None]).abs().max() < 1e-10


def test_sets_of_one_site_are_the_single_patches():
    decoder, metric = small_decoder("preset", n_layers=3), logit_diff(positions="all")
    clean, corrupted = prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "precision": "fp64"}
    single = patch_heads(decoder, **runs)
    places = [(layer, head, pos) for layer in range(3) for head in range(2) for pos in range(6)]
    result = patch_sets(decoder, [[At("z", *place)] for place in places], **runs)
    tight = patch_sets(decoder, [[At("z", *place)] for place in places], **runs, max_bytes=1)
    assert (result.effect - single.effect.flatten(1)).abs().max() < 1e-12
    assert (tight.effect - result.effect).abs().max() < 1e-12


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_knocking_out_a_group_equals_writing_the_values_by_hand(ablation):
    decoder, metric = small_decoder("preset"), logit_diff(n=3)
    clean, _ = prompts(n=3)
    group = [At("z", 0), At("z", 1, 1)]
    result = patch_sets(decoder, [group], clean=clean, metric=metric, ablation=ablation, precision="fp64", seed=2)
    run, before = record(decoder, clean), metric_of(metric, decoder_logits_patched(decoder, clean))
    new = {
        "zero": [lambda z: torch.zeros_like(z)],
        "mean": [lambda z: z.mean((0, 1)).expand_as(z)],
        "resample": [lambda z: z[[1, 2, 0]], lambda z: z[[2, 0, 1]]],  # the two ways in which nobody keeps their own
    }
    errors = []
    for value in new[ablation]:

        def edit(site, number, x, value=value):
            if site != "z":
                return x
            heads, changed = ([0, 1] if number == 0 else [1]), x.clone()
            changed[:, :, heads] = value(run.layers[number].z)[:, :, heads]
            return changed

        expected = metric_of(metric, decoder_logits_patched(decoder, clean, edit)) - before
        errors.append(float((result.effect[:, 0] - expected).abs().max()))
    assert min(errors) < 1e-10


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (At("head", 0), "head"),
        (At("z", 5), "known layer"),
        (At("z", 0, 7), "2 components"),
        (At("z", 0, 0, 99), "6 positions"),
    ],
)
def test_places_that_do_not_exist_are_refused(place, message):
    clean, corrupted = prompts()
    with pytest.raises(UsageError, match=message):
        patch_sets(small_decoder("preset"), [[place]], clean=clean, corrupted=corrupted, metric=logit_diff())
