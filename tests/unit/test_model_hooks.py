"""Hooks on the transformer read and change what they name, and leave no trace."""

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from interp.config import ModelConfig
from interp.errors import UnknownName
from interp.hooks import HookedModel, HookPoint
from interp.model import Transformer

torch.set_num_threads(1)

CASES = {
    "default": {},
    "embed_norm": {"embed_norm": True},
    "normed_rms": {"residual": "normed", "norm": "rms"},
    "rotary_swiglu_bias": {"positions": "rotary", "activation": "swiglu", "bias": True},
    "attn_only_tied": {"attn_only": True, "tied": True},
    "no_norm_pos_dim": {"norm": "none", "pos_dim": 3},
}
SHAPE_OF = {  # batch 3, pos 5, 2 heads of width 4, d_model 8, d_mlp 12
    **dict.fromkeys(("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k"), (3, 5, 2, 4)),
    **dict.fromkeys(("hook_attn_scores", "hook_pattern"), (3, 2, 5, 5)),
    **dict.fromkeys(("hook_pre", "hook_post", "hook_pre_linear"), (3, 5, 12)),
    "hook_scale": (3, 5, 1),
}


def build(case: str, seed: int = 0) -> Transformer:
    cfg = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_mlp=12, d_vocab=7, n_ctx=6, **CASES[case])
    return Transformer(cfg, seed=seed).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))


def everywhere(name: str) -> bool:
    return True


@pytest.mark.parametrize("case", CASES)
def test_cache_holds_every_name_with_its_documented_shape(case, tokens):
    model = build(case)
    _, cache = model.run_with_cache(tokens)
    assert list(cache) and set(cache) == set(model.hook_dict)
    for name, activation in cache.items():
        assert tuple(activation.shape) == SHAPE_OF.get(name.rsplit(".", 1)[-1], (3, 5, 8)), name


def test_hook_names_are_the_canonical_ones_in_the_order_of_computation():
    inside = [
        "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
        "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
        "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
    ]  # fmt: skip
    blocks = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in inside]
    final = ["ln_final.hook_scale", "ln_final.hook_normalized"]
    assert list(build("default").hook_dict) == ["hook_embed", "hook_pos_embed", *blocks, *final]


@pytest.mark.parametrize("case", CASES)
def test_cached_activations_fit_together(case, tokens):
    """The residual stream is the sum of what was written to it, and z is the pattern times the values."""
    model = build(case)
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}."
        pattern, values = cache[at + "attn.hook_pattern"], cache[at + "attn.hook_v"]
        assert (pattern.sum(-1) - 1).abs().max() < 1e-12
        assert torch.all(pattern.triu(1) == 0)
        assert torch.allclose(torch.einsum("bhqk,bkhd->bqhd", pattern, values), cache[at + "attn.hook_z"], atol=1e-12)
        base = cache[at + "hook_resid_pre"]
        if model.cfg.residual == "normed":
            base = cache[at + "ln1.hook_normalized"] * block.ln1.w
        middle = base + cache[at + "hook_attn_out"]
        if not model.cfg.attn_only:
            assert torch.allclose(middle, cache[at + "hook_resid_mid"], atol=1e-12)
            middle = middle + cache[at + "hook_mlp_out"]
        assert torch.allclose(middle, cache[at + "hook_resid_post"], atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_every_hook_point_changes_the_logits_and_leaves_no_trace(case, tokens):
    model = build(case)
    before = model(tokens)
    for name in model.hook_dict:
        # a position-dependent factor, because norms and softmax forget uniform ones
        changed = model.run_with_hooks(
            tokens, fwd_hooks=[(name, lambda a, hook: a * torch.linspace(0.5, 2, a.numel()).view_as(a))]
        )
        assert not torch.allclose(changed, before, atol=1e-6), name
        assert torch.equal(model(tokens), before), name
        assert not any(point.hooked for point in model.hook_dict.values())


@pytest.mark.parametrize("recording", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("case", CASES)
def test_an_edit_in_place_equals_returning_the_edited_copy(case, recording, tokens):
    """Also for views of parameters (positions) and for tensors autograd has saved (z, relu)."""
    model = build(case)
    weights = copy.deepcopy(model.state_dict())

    def in_place(activation: Tensor, hook: HookPoint) -> None:
        activation[0] = 0.25

    def returned(activation: Tensor, hook: HookPoint) -> Tensor:
        return torch.cat([torch.full_like(activation[:1], 0.25), activation[1:]])

    with torch.set_grad_enabled(recording):
        for name in model.hook_dict:
            logits = [model.run_with_hooks(tokens, fwd_hooks=[(name, fn)]) for fn in (in_place, returned)]
            assert torch.equal(*logits), name
            if recording:
                one, two = (torch.autograd.grad(out.sum(), model.embed.W_E)[0] for out in logits)
                assert torch.allclose(one, two, atol=1e-12), name
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_cached_activations_do_not_change_when_a_later_hook_edits_in_place(tokens):
    model, name = build("default"), "blocks.0.hook_resid_post"
    _, clean = model.run_with_cache(tokens, names_filter=name)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda a, hook: a.zero_())]):
        _, cache = model.run_with_cache(tokens, names_filter=name)
    assert torch.equal(cache[name], clean[name])


def test_a_pattern_put_in_place_decides_what_is_read(tokens):
    """With all attention on the first key, z at every position is the first value."""
    model, names = build("default"), ["blocks.0.attn.hook_v", "blocks.0.attn.hook_z"]

    def first_key(pattern: Tensor, hook: HookPoint) -> Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([0]), 1.0)

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", first_key)]):
        _, cache = model.run_with_cache(tokens, names_filter=names)
    values, z = (cache[name] for name in names)
    assert torch.equal(z, values[:, :1].expand_as(z))


def test_a_hook_is_removed_even_when_it_raises(tokens):
    model = build("default")

    def broken(activation: Tensor, hook: HookPoint) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(tokens, fwd_hooks=[(everywhere, broken)])
    assert not any(point.hooked for point in model.hook_dict.values())


def test_unknown_hook_name_suggests_the_nearest(tokens):
    with pytest.raises(UnknownName, match=r"unknown hook 'blocks.0.attn.hook_patern'; did you mean .*hook_pattern'"):
        build("default").run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_patern", lambda a, hook: None)])


def test_backward_hooks_see_the_gradient_of_their_activation(tokens):
    model, seen = build("default"), {}
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_post", lambda g, hook: seen.update({hook.name: g}))]):
        model(tokens)[0, 4, 2].backward()
    gradient = seen["blocks.1.hook_resid_post"]
    assert gradient[0, 4].abs().sum() > 0
    assert gradient.abs().sum() == gradient[0, 4].abs().sum()


def test_an_unhooked_point_returns_its_argument_itself():
    point, x = HookPoint(), torch.ones(2)
    assert point(x) is x
    point.add_hook(lambda activation, hook: None)
    assert point(x) is not x
    assert torch.equal(point(x), x)


def test_transformer_is_a_hooked_model():
    assert isinstance(build("default"), HookedModel)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_stacked_models_under_vmap_equal_a_loop_over_models(case, tokens):
    """Logits and patterns of three models at once, with shared and with separate tokens."""
    models = [build(case, seed) for seed in range(3)]
    parameters, _ = stack_module_state(models)

    def one(weights: dict[str, Tensor], sequence: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        patterns = {}
        hook = (lambda name: name.endswith("hook_pattern"), lambda a, hook: patterns.update({hook.name: a}))
        with models[0].hooks(fwd_hooks=[hook]):
            logits = functional_call(models[0], weights, (sequence,))
        return logits, patterns

    separate = torch.stack([tokens, tokens.flip(0), tokens.flip(1)])
    shared_logits, _ = vmap(one, in_dims=(0, None))(parameters, tokens)
    logits, patterns = vmap(one)(parameters, separate)
    for i, model in enumerate(models):
        expected, cache = model.run_with_cache(separate[i])
        assert torch.allclose(shared_logits[i], model(tokens), rtol=0, atol=1e-12)
        assert torch.allclose(logits[i], expected, rtol=0, atol=1e-12)
        assert len(patterns) == 2
        assert all(torch.allclose(patterns[name][i], cache[name], rtol=0, atol=1e-12) for name in patterns)


@pytest.mark.filterwarnings("error::UserWarning")
def test_functional_gradients_equal_backward_and_need_no_fallback(tokens):
    model = build("default")
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sequence: Tensor) -> Tensor:
        return functional_call(model, parameters, (sequence[None],)).square().sum()

    per_sequence = vmap(grad(loss), in_dims=(None, 0))(weights, tokens)
    model(tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(per_sequence[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-10), name
    _, slope = jvp(lambda w: loss(w, tokens[0]), (weights,), (weights,))
    expected = sum((per_sequence[name][0] * weights[name]).sum() for name in weights)
    assert torch.allclose(slope, expected, rtol=1e-10)


def test_a_deep_copy_has_its_own_hooks(tokens):
    model = build("default")
    twin = copy.deepcopy(model)
    twin.add_hook("blocks.0.hook_attn_out", lambda a, hook: a.zero_())
    assert not any(point.hooked for point in model.hook_dict.values())
    assert not torch.equal(model(tokens), twin(tokens))
