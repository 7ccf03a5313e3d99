"""Patches through the hooks of a bridge equal their recomputation with the decoder's formulas."""

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.adapters.bridge import HOOKS, decoder_of_bridge, hook_name, site_hooks
from interp.adapters.decoders import decoder_for
from interp.config import ModelConfig
from interp.decoder import Decoder, affine, attend, normed, project
from interp.errors import UnknownName, UsageError
from interp.model import Transformer
from tests.unit.random_bridges import (
    LAYERS,
    N_CTX,
    PATCHED,
    VOCAB,
    assert_equal_to_rounding,
    bridge_of,
    shaken,
    some_tokens,
)

NONE = {("neox", "resid_mid")}  # attention and MLP in parallel


def run(decoder: Decoder, tokens: Tensor, edit) -> Tensor:
    """`forward` with edit(site, layer, activation) at every site."""
    x = decoder.embed(tokens)
    position = torch.arange(tokens.shape[1])[None]
    for index, layer in enumerate(decoder.layers):
        attn = layer.attn
        x = edit("resid_pre", index, x)
        y = normed(layer.ln1, x)
        q, k, v = (
            edit(letter.lower(), index, project(y, getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}")))
            for letter in "QKV"
        )
        if attn.rotary is not None:
            q, k = attn.rotary(q, position), attn.rotary(k, position)
        z = edit("z", index, attend(attn, q, k, v)[0])
        mid = x + edit("attn_out", index, affine(z.flatten(-2), attn.W_O.flatten(0, 1), attn.b_O))
        if not layer.parallel:
            mid = edit("resid_mid", index, mid)
        post = edit("mlp_post", index, layer.mlp.post(normed(layer.ln2, x if layer.parallel else mid)))
        x = mid + edit("mlp_out", index, affine(post, layer.mlp.W_out, layer.mlp.b_out))
        x = edit("resid_post", index, x)
    return decoder.logits(x)


def slot_of(site: str, where: int) -> tuple:
    """The last head or neuron 5, or else the whole activation, at one position."""
    component = {"z": (-1,), "q": (-1,), "k": (-1,), "v": (-1,), "mlp_post": (5,)}.get(site, ())
    return (slice(None), where, *component)


def put(activation: Tensor, slot: tuple, value: Tensor) -> Tensor:
    """A copy of the activation with the value in its slot."""
    changed = activation.clone()
    changed[slot] = value
    return changed


def recomputed(decoder: Decoder, source: Tensor, tokens: Tensor, site: str, layer: int, slot: tuple) -> Tensor:
    """Logits of `tokens` with one slot of one site from `source`, everything downstream recomputed."""
    kept: dict[tuple[str, int], Tensor] = {}
    run(decoder, source, lambda at, index, x: kept.setdefault((at, index), x))
    value = kept[site, layer][slot]
    return run(decoder, tokens, lambda at, index, x: put(x, slot, value) if (at, index) == (site, layer) else x)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[TransformerBridge, Decoder]]:
    """Every family once, for all sites."""
    bridges = {name: bridge_of(name) for name in PATCHED}
    return {name: (bridge, decoder_of_bridge(bridge)) for name, bridge in bridges.items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "site"), [(name, site) for name in PATCHED for site in HOOKS if (name, site) not in NONE]
)
def test_patch_through_the_hooks_of_a_bridge_equals_recomputation(pairs, name, site):
    bridge, decoder = pairs[name]
    tokens, source = some_tokens(), some_tokens(seed=6)
    clean = bridge(tokens)
    for layer, where in ((0, 3), (1, 8)):
        point, slot = hook_name(bridge, site, layer), slot_of(site, where)
        value = bridge.run_with_cache(source, names_filter=[point])[1][point][slot]
        hooks = site_hooks(bridge, site, layer, lambda x, slot=slot, value=value: put(x, slot, value))
        patched = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        assert_equal_to_rounding(
            patched,
            decoder,
            lambda some, layer=layer, slot=slot: recomputed(some, source, tokens, site, layer, slot),
        )
        assert (patched - clean).abs().max() > 1e-3, "this patch has an effect"
        assert (patched[:, :where] - clean[:, :where]).abs().max() < 1e-5, "and none before its position"


@torch.no_grad()
def test_what_is_written_at_resid_mid_of_a_bridge_itself_misses_the_residual_path(pairs):
    """Why `site_hooks` writes elsewhere; once this fails, a bridge can be hooked as our own model."""
    bridge, decoder = pairs["gpt2"]
    tokens, source, slot = some_tokens(), some_tokens(seed=6), slot_of("resid_mid", 3)
    point = hook_name(bridge, "resid_mid", 0)
    value = bridge.run_with_cache(source, names_filter=[point])[1][point][slot]
    direct = bridge.run_with_hooks(tokens, fwd_hooks=[(point, lambda x, hook: put(x, slot, value))])
    assert (direct - recomputed(decoder, source, tokens, "resid_mid", 0, slot)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("site", HOOKS)
def test_the_same_hooks_patch_our_own_model(site):
    cfg = ModelConfig(n_layers=LAYERS, n_heads=2, d_model=8, d_vocab=VOCAB, n_ctx=N_CTX, positions="rotary", bias=True)
    model = shaken(Transformer(cfg, seed=0).double())
    tokens, source, slot = some_tokens(), some_tokens(seed=6), slot_of(site, 3)
    point = hook_name(model, site, 1)
    value = model.run_with_cache(source, names_filter=[point])[1][point][slot]
    patched = model.run_with_hooks(tokens, fwd_hooks=site_hooks(model, site, 1, lambda x: put(x, slot, value)))
    assert (patched - recomputed(decoder_for(model), source, tokens, site, 1, slot)).abs().max() < 1e-10
    assert (patched - model(tokens)).abs().max() > 1e-3


def test_sites_that_a_model_does_not_have_are_named(pairs):
    with pytest.raises(UsageError, match="resid_mid of layer 0"):
        hook_name(pairs["neox"][0], "resid_mid", 0)
    with pytest.raises(UsageError, match=r"layer 2.* with 2 layers"):
        hook_name(pairs["gpt2"][0], "z", LAYERS)
    with pytest.raises(UsageError, match="mlp_post"):
        hook_name(bridge_of("native attention only"), "mlp_post", 0)
    with pytest.raises(UnknownName, match="did you mean 'resid_pre'"):
        hook_name(pairs["gpt2"][0], "residpre", 0)
