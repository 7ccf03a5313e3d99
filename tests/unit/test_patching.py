"""Every patch of small models equals the same patch by one hooked forward, in float64."""

import itertools

import pytest
import torch

from circuits.metrics import LogitDiff
from circuits.patch_verify import rerun
from circuits.patching import patch_heads
from tests.unit.test_decoder import VARIANTS, random_model

SITES = ("z", "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post")


def prompts(n: int = 2, length: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted tokens that share their first two."""
    stream = torch.Generator().manual_seed(seed)
    clean, corrupted = (torch.randint(7, (n, length), generator=stream) for _ in range(2))
    corrupted[:, :2] = clean[:, :2]
    corrupted[:, 2] = (clean[:, 2] + 1) % 7
    return clean, corrupted


def logit_diff(n: int = 2, positions="last") -> LogitDiff:
    return LogitDiff(torch.arange(n) % 7, (torch.arange(n) + 3) % 7, positions)


def largest_error(result) -> float:
    """Over every patch, skipped or not, against one forward pass each."""
    shape = result.effect.shape[1:]
    errors = []
    for index in itertools.product(*(range(size) for size in shape)):
        errors.append((result.effect[(slice(None), *index)] - rerun(result, *index)).abs().max())
    return float(torch.stack(errors).max())


def has_site(settings: dict, site: str) -> bool:
    return not (settings.get("attn_only") and site in ("resid_mid", "mlp_out", "mlp_post"))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_head_patch_of_every_configuration_equals_its_forward(name, positions):
    for n_layers in (1, 2, 4):
        model = random_model(**{**VARIANTS[name], "n_layers": n_layers})
        clean, corrupted = prompts()
        result = patch_heads(
            model, clean=clean, corrupted=corrupted, metric=logit_diff(positions=positions), precision="fp64"
        )
        assert largest_error(result) < 1e-10
        assert result.effect.abs().max() > 1e-3


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_site_equals_its_forward(name, site):
    if not has_site(VARIANTS[name], site):
        return
    model = random_model(**{**VARIANTS[name], "n_layers": 3, "d_mlp": 5})
    clean, corrupted = prompts()
    for positions in ("last", "all"):
        metric = logit_diff(positions=positions)
        result = patch_heads(model, clean=clean, corrupted=corrupted, metric=metric, site=site, precision="fp64")
        assert largest_error(result) < 1e-10
        assert result.effect.abs().max() > 1e-3
