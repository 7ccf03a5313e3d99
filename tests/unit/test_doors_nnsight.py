"""Modules of any library, through nnsight: sites are read and patched as hand-written forwards say."""

import warnings

import pytest
import torch
from torch import nn

from circuits.metrics import LogitDiff
from circuits.patching import patch_heads
from interp.adapters.bridge import site_hooks
from interp.adapters.nnsight import Place, with_sites
from interp.errors import UnknownName, UsageError
from tests.unit.random_bridges import HUGGING_FACE, LAYERS, N_CTX, VOCAB, hugging_face, shaken, some_tokens, wrapped

SHAPE = {"n_layers": LAYERS, "n_heads": 4, "d_vocab": VOCAB, "n_ctx": N_CTX}
GPT2_SITES = {
    "resid_pre": "transformer.h.{layer}.input",
    "q": Place("transformer.h.{layer}.attn.c_attn", columns=(0, 16)),
    "v": Place("transformer.h.{layer}.attn.c_attn", columns=(32, 48)),
    "z": "transformer.h.{layer}.attn.c_proj.input",
    "attn_out": "transformer.h.{layer}.attn.output.0",
    "mlp_post": "transformer.h.{layer}.mlp.c_proj.input",
    "mlp_out": "transformer.h.{layer}.mlp.output",
}


class Window(nn.Module):
    """Attention that a Decoder cannot express: each query sees itself and the two places before it."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        near = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(-2)
        z = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near)
        return self.o(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.attn, self.up, self.down = Window(d, heads), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """A model of nobody's library, with windows and tanh neurons."""

    def __init__(self, vocab: int = 9, d: int = 8, heads: int = 2):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(vocab, d), nn.ModuleList(Block(d, heads) for _ in range(2))
        self.unembed = nn.Linear(d, vocab)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


NET_SITES = {"z": "blocks.{layer}.attn.o.input", "attn_out": "blocks.{layer}.attn.output"}
NET_SITES |= {"resid_pre": "blocks.{layer}.input", "mlp_post": "blocks.{layer}.down.input"}
NET = {"n_layers": 2, "n_heads": 2, "d_vocab": 9, "n_ctx": 6}
CLEAN, CORRUPTED = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1, 0, 3, 4], [5, 6, 0, 8]])
METRIC = LogitDiff(torch.tensor([1, 2]), torch.tensor([3, 4]), "last")


@pytest.fixture(scope="module")
def net():
    return shaken(Net()).double()


@torch.no_grad()
def test_activations_are_those_of_a_bridge_over_the_same_model():
    model, tokens = hugging_face(*HUGGING_FACE["gpt2"]), some_tokens()
    ours = with_sites(model, GPT2_SITES, **SHAPE)
    logits, cache = ours.run_with_cache(tokens)
    bridge = wrapped(hugging_face(*HUGGING_FACE["gpt2"]))
    expected, other = bridge.run_with_cache(tokens)
    assert (logits - expected).abs().max() < 1e-5
    assert set(cache) == {name for name in ours.hook_dict if "resid_mid" not in name} and len(cache) == 7 * LAYERS
    for name, value in cache.items():
        assert value.shape == other[name].shape and (value - other[name]).abs().max() < 1e-5, name


@torch.no_grad()
@pytest.mark.parametrize("site", ["z", "resid_pre", "resid_mid", "attn_out", "mlp_post"])
def test_patches_of_a_module_that_no_decoder_expresses_equal_hand_written_forwards(net, site):
    model = with_sites(net, NET_SITES, **NET)
    with pytest.warns(UserWarning, match="full forwards.*SitedModule cannot be written as a Decoder"):
        found = patch_heads(model, clean=CLEAN, corrupted=CORRUPTED, metric=METRIC, site=site)
    assert found.backend == "full forwards through hooks" and found.verify(4).max_error < 1e-12
    layer, component, pos = 0, found.effect.shape[2] - 1, 2
    held = {}

    def change(value, put):
        held.setdefault("clean", value.clone())
        width = value.shape[-1] // found.effect.shape[2]
        new, part = value.clone(), slice(component * width, (component + 1) * width)
        new[:, pos, part] = held["clean"][:, pos, part]
        return new if put else value

    def by_hand(tokens, put):
        x = net.embed(tokens)
        for index, block in enumerate(net.blocks):
            here = index == layer
            x = change(x, put) if here and site == "resid_pre" else x
            q, k, v = (
                one(x).unflatten(-1, (2, -1)).transpose(1, 2) for one in (block.attn.q, block.attn.k, block.attn.v)
            )
            near = torch.ones(4, 4, dtype=torch.bool).tril().triu(-2)
            scores = (q @ k.mT / 2).masked_fill(~near, -torch.inf).softmax(-1)
            z = (scores @ v).transpose(1, 2).flatten(2)
            out = block.attn.o(change(z, put) if here and site == "z" else z)
            x = x + (change(out, put) if here and site == "attn_out" else out)
            x = change(x, put) if here and site == "resid_mid" else x
            post = torch.tanh(block.up(x))
            x = x + block.down(change(post, put) if here and site == "mlp_post" else post)
        return net.unembed(x)

    def metric(logits):
        last = logits[:, -1]
        return last[torch.arange(2), torch.tensor([1, 2])] - last[torch.arange(2), torch.tensor([3, 4])]

    by_hand(CLEAN, put=False)
    expected = metric(by_hand(CORRUPTED, put=True)) - metric(net(CORRUPTED))
    assert expected.abs().max() > 1e-3
    assert (found.effect[:, layer, component, pos] - expected).abs().max() < 1e-10


@torch.no_grad()
def test_columns_of_a_fused_matrix_are_patched_without_touching_the_rest():
    model, tokens = hugging_face(*HUGGING_FACE["gpt2"]), some_tokens()
    ours, bridge = with_sites(model, GPT2_SITES, **SHAPE), wrapped(hugging_face(*HUGGING_FACE["gpt2"]))
    for site in ("q", "v"):
        hooks = [site_hooks(each, site, 1, lambda value: 2 * value) for each in (ours, bridge)]
        got, expected = (
            ours.run_with_hooks(tokens, fwd_hooks=hooks[0]),
            bridge.run_with_hooks(tokens, fwd_hooks=hooks[1]),
        )
        assert (got - expected).abs().max() < 1e-5 and (got - ours(tokens)).abs().max() > 1e-3


@torch.no_grad()
def test_nothing_stays_behind_after_a_run_or_an_error(net):
    model = with_sites(net, NET_SITES, **NET)
    before = model(CLEAN)

    def fails(activation, hook):
        raise ZeroDivisionError(hook.name)

    with pytest.raises(ZeroDivisionError, match=r"blocks\.1\.attn\.hook_z"):
        model.run_with_hooks(CLEAN, fwd_hooks=[("blocks.1.attn.hook_z", fails)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.run_with_hooks(CLEAN, fwd_hooks=[(lambda name: "hook_z" in name, lambda value, hook: 0 * value)])
    assert torch.equal(net(CLEAN), before) and torch.equal(model.run_with_hooks(CLEAN), before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ({"zz": "blocks.{layer}.attn.o.input"}, UnknownName, "unknown site 'zz'"),
        (
            {"z": "blocks.{layer}.attn.proj.input"},
            UnknownName,
            r"module for z 'blocks\.0\.attn\.proj'; .*blocks\.0\.attn",
        ),
        ({"z": "blocks.0.attn.o.input"}, UsageError, "has no {layer}"),
        ({"z": "blocks.{layer}.attn.o"}, UsageError, "expected a module's name and"),
        ({"z": "blocks.{layer}.attn.output.0"}, UsageError, r"blocks\.0\.attn\.hook_z: has the shape"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_by_site(net, sites, error, message):
    with pytest.raises(error, match=message):
        with_sites(net, sites, **NET).run_with_cache(CLEAN)


@torch.no_grad()
def test_tuples_wrong_shapes_and_unknown_hooks_are_said(net):
    model = with_sites(hugging_face(*HUGGING_FACE["gpt2"]), {"attn_out": "transformer.h.{layer}.attn.output"}, **SHAPE)
    with pytest.raises(UsageError, match=r"the output of .* is a tuple; for a tuple name the item"):
        model.run_with_cache(some_tokens())
    model = with_sites(net, NET_SITES, **NET)
    with pytest.raises(UnknownName, match=r"hook point 'blocks\.0\.hook_zz'"):
        model.run_with_hooks(CLEAN, fwd_hooks=[("blocks.0.hook_zz", lambda value, hook: None)])
    with pytest.raises(UsageError, match=r"returned \[1\], expected \[2, 4, 2, 4\]"):
        model.run_with_hooks(CLEAN, fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: value.new_zeros(1))])
    with (
        pytest.warns(UserWarning, match="full forwards"),
        pytest.raises(UsageError, match="q of layer 0: this SitedModule with 2 layers has no"),
    ):
        patch_heads(model, clean=CLEAN, corrupted=CORRUPTED, metric=METRIC, site="q")
    with pytest.raises(UsageError, match=r"call \.eval\(\)"):
        with_sites(hugging_face(*HUGGING_FACE["gpt2"]).train(), GPT2_SITES, **SHAPE)
