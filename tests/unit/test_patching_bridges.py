"""Outside models: engine effects equal the bridge's own hooked forwards, and what cannot be written falls back."""

import warnings

import pytest
import torch

from circuits.engine.runs import Given
from circuits.metrics import LogitDiff
from circuits.patch_by_forwards import patch_by_forwards
from circuits.patch_edges import patch_edges
from circuits.patch_verify import rerun
from circuits.patching import patch_heads
from interp.errors import NotExpressible
from tests.unit.random_bridges import LAYERS, VOCAB, bridge_of, hugging_face, wrapped

SLIDING = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "sliding_window": 3,
}


def pairs(n: int = 2, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted tokens that differ from position 1 on."""
    stream = torch.Generator().manual_seed(3)
    clean, corrupted = (torch.randint(VOCAB, (n, length), generator=stream) for _ in range(2))
    corrupted[:, 0] = clean[:, 0]
    return clean, corrupted


METRIC = LogitDiff(torch.tensor([1, 2]), torch.tensor([3, 4]), "all")


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen2"])
@pytest.mark.parametrize("site", ["z", "k", "resid_mid", "mlp_post"])
def test_bridge_patches_equal_the_bridge_s_own_hooks(name, site):
    bridge = bridge_of(name)
    if name == "neox" and site == "resid_mid":
        return
    clean, corrupted = pairs()
    result = patch_heads(bridge, clean=clean, corrupted=corrupted, metric=METRIC, site=site)
    exact = patch_heads(bridge, clean=clean, corrupted=corrupted, metric=METRIC, site=site, precision="fp64").effect
    places = [(layer, component, pos) for layer in range(LAYERS) for component in (0, -1) for pos in (1, 3)]
    places = [(la, c % len(result.components), p) for la, c, p in places]
    truth = torch.stack([exact[(slice(None), *place)] for place in places])
    hooked = torch.stack([rerun(result, *place) for place in places]).double()
    ours = torch.stack([result.effect[(slice(None), *place)] for place in places]).double()
    assert (ours - truth).abs().max() <= 2 * (hooked - truth).abs().max() + 1e-7
    assert result.verify(4).max_error < 1e-4 * float(result.effect.abs().max())


def test_a_model_that_cannot_be_written_runs_by_forwards_and_says_so():
    bridge, (clean, corrupted) = wrapped(hugging_face("Mistral", "ForCausalLM", SLIDING)), pairs()
    with pytest.warns(UserWarning, match="full forwards.*window"):
        result = patch_heads(bridge, clean=clean, corrupted=corrupted, metric=METRIC)
    assert result.backend == "full forwards through hooks"
    assert result.effect.shape == (2, LAYERS, 4, 5)
    assert result.skipped["no difference"] >= 2 * LAYERS * 4  # position 0
    assert result.verify(6).max_error < 1e-5
    assert result.effect.abs().max() > 1e-3
    with pytest.raises(NotExpressible, match="window"):
        patch_edges(bridge, clean=clean, corrupted=corrupted, metric=METRIC)


@pytest.mark.parametrize("ablation", ["none", "zero", "mean", "resample"])
@pytest.mark.parametrize("site", ["z", "k", "resid_mid", "mlp_out"])
def test_forwards_and_engine_agree_on_a_model_that_both_can_run(ablation, site):
    bridge, (clean, corrupted) = bridge_of("llama"), pairs()
    given = {"clean": clean, "metric": METRIC, "site": site, "ablation": ablation}
    given["corrupted"] = corrupted if ablation == "none" else None
    everything = dict.fromkeys(("layers", "components", "positions"))
    slow = patch_by_forwards(bridge, clean, given["corrupted"], METRIC, site, everything, Given(ablation=ablation))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = patch_heads(bridge, **given)
    assert slow.positions == fast.positions and slow.components == fast.components
    assert (slow.effect - fast.effect).abs().max() < 1e-5
    assert fast.effect.abs().max() > 1e-3
