"""The transformer equals TransformerLens' own native model wherever that one can express the configuration."""

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from interp.config import ModelConfig
from interp.model import Transformer

torch.set_num_threads(1)

EXACT = 1e-10  # relative to the largest value, in float64: only another formula can reach it
SINGLE = 1e-5  # the same where the native model itself rounds to float32: in its RMS norm and rotary tables
CASES = {
    "default": {},
    "preset_without_embed_norm": {"d_model": 32, "n_heads": 1, "d_mlp": 0, "d_vocab": 14, "n_ctx": 35},
    "one_layer": {"n_layers": 1},
    "wide_heads": {"d_head": 6, "n_heads": 3},
    "norm_bias": {"norm_bias": True},
    "rms": {"norm": "rms"},
    "no_norm": {"norm": "none"},
    "large_eps": {"norm_eps": 0.1},
    "relu": {"activation": "relu"},
    "bias": {"bias": True},
    "swiglu": {"activation": "swiglu"},
    "attn_only": {"attn_only": True},
    "attn_only_no_norm_bias": {"attn_only": True, "norm": "none", "bias": True},
    "rotary": {"positions": "rotary"},
    "rotary_base_rms_swiglu": {"positions": "rotary", "rotary_base": 50.0, "norm": "rms", "activation": "swiglu"},
    "no_positions": {"positions": "none"},
    "pos_dim": {"pos_dim": 3},
    "tied": {"tied": True},
}
KINDS = {"layer": "LN", "rms": "RMS", "none": None}


def build(case: str) -> Transformer:
    """A model with non-trivial norm weights and biases; the native unembedding has no bias, so ours is zero."""
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_mlp": 12, "d_vocab": 7, "n_ctx": 10, **CASES[case]}
    model = Transformer(ModelConfig(**sizes), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "unembed.b_U":
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def boot(cfg: ModelConfig) -> TransformerBridge:
    """An empty native model of this shape; it has biases and positions everywhere, which start at zero here."""
    bridge = TransformerBridge.boot_native(
        TransformerBridgeConfig(
            d_model=cfg.d_model,
            d_head=cfg.head_width,
            n_layers=cfg.n_layers,
            n_ctx=cfg.n_ctx,
            n_heads=cfg.n_heads,
            d_vocab=cfg.d_vocab,
            d_mlp=cfg.mlp_width,
            act_fn={"swiglu": "silu"}.get(cfg.activation, cfg.activation),
            gated_mlp=cfg.activation == "swiglu",
            normalization_type=KINDS[cfg.norm],
            eps=cfg.norm_eps,
            attn_only=cfg.attn_only,
            positional_embedding_type="rotary" if cfg.positions == "rotary" else "standard",
            rotary_base=cfg.rotary_base,
        )
    )
    for parameter in bridge.parameters():
        nn.init.zeros_(parameter)
    return bridge.eval()


def native_names(cfg: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> theirs, in their flat naming."""
    names = {"embed.W_E": ("tok_embed.weight",), "ln_final.w": ("ln_out.weight",), "ln_final.b": ("ln_out.bias",)}
    names |= {"pos_embed.W_pos": ("pos.weight",), "unembed.W_U": ("head.weight",)}
    if cfg.tied:
        names["embed.W_E"] = ("tok_embed.weight", "head.weight")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}.", f"layers.{layer}."
        for norm in ("ln1", "ln2"):
            names |= {f"{ours}{norm}.w": (f"{theirs}{norm}.weight",), f"{ours}{norm}.b": (f"{theirs}{norm}.bias",)}
        for letter in "QKVO":
            linear = f"{theirs}attn.{letter.lower()}"
            names |= {f"{ours}attn.W_{letter}": (f"{linear}.weight",), f"{ours}attn.b_{letter}": (f"{linear}.bias",)}
        if cfg.activation == "swiglu":
            inner = {"W_gate": "gate.weight", "W_in": "in.weight", "W_out": "out.weight"}
        else:
            inner = {"W_in": "fc_in.weight", "b_in": "fc_in.bias", "W_out": "fc_out.weight", "b_out": "fc_out.bias"}
        names |= {f"{ours}mlp.{name}": (f"{theirs}mlp.{other}",) for name, other in inner.items()}
    return names


def as_native(name: str, value: Tensor, d_model: int) -> Tensor:
    """One of our tensors in the layout of `nn.Linear` ([out, in]) or `nn.Embedding`."""
    letter = name.rsplit(".", 1)[1]
    if letter in ("W_Q", "W_K", "W_V"):
        return value.transpose(1, 2).flatten(0, 1)  # [head*d_head d_model]
    if letter == "W_O":
        return value.flatten(0, 1).T  # [d_model head*d_head]
    if letter in ("b_Q", "b_K", "b_V"):
        return value.flatten()
    if letter == "W_pos":
        return nn.functional.pad(value, (0, d_model - value.shape[1]))
    return value.T if letter in ("W_in", "W_gate", "W_out", "W_U") else value


def native_parameters(bridge: TransformerBridge) -> dict[str, nn.Parameter]:
    return {name.replace("_original_component.", ""): p for name, p in bridge.original_model.named_parameters()}


@pytest.fixture(params=CASES)
def pair(request) -> tuple[Transformer, TransformerBridge]:
    """Our model and a native one with the same weights."""
    ours = build(request.param).double()
    bridge, names = boot(ours.cfg).double(), native_names(ours.cfg)
    theirs = native_parameters(bridge)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            for target in names.get(name, ()):
                theirs[target].copy_(as_native(name, parameter, ours.cfg.d_model))
    return ours, bridge


def close(cfg: ModelConfig, got: Tensor, wanted: Tensor) -> bool:
    tolerance = SINGLE if cfg.norm == "rms" or cfg.positions == "rotary" else EXACT
    return float((got - wanted).detach().abs().max()) <= tolerance * max(1.0, float(wanted.detach().abs().max()))


def tokens_for(cfg: ModelConfig) -> Tensor:
    return torch.randint(cfg.d_vocab, (3, cfg.n_ctx), generator=torch.Generator().manual_seed(2))


def test_logits_and_gradients_equal_the_native_model(pair):
    ours, bridge = pair
    cfg, tokens = ours.cfg, tokens_for(ours.cfg)
    logits, expected = ours(tokens), bridge(tokens)
    assert close(cfg, logits, expected)
    for out in (logits, expected):
        nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    names, theirs = native_names(cfg), native_parameters(bridge)
    compared = 0
    for name, parameter in ours.named_parameters():
        targets = names.get(name, ())
        if not targets:
            assert name == "unembed.b_U"
            continue
        wanted = sum(theirs[target].grad for target in targets)
        got = as_native(name, parameter.grad, cfg.d_model)
        if name == "pos_embed.W_pos" and cfg.pos_dim:
            wanted = wanted * (torch.arange(cfg.d_model) < cfg.pos_dim)
        assert close(cfg, got, wanted), name
        assert wanted.abs().max() > 0 or name.endswith("b_K"), name  # a bias on all keys cannot change a softmax
        compared += 1
    assert compared >= 5 * cfg.n_layers + 2


def test_activations_of_every_shared_hook_name_equal_the_native_model(pair):
    ours, bridge = pair
    tokens = tokens_for(ours.cfg)
    with torch.no_grad():
        _, mine = ours.run_with_cache(tokens)
        _, native = bridge.run_with_cache(tokens)
    own_kind = ("hook_rot_q", "hook_rot_k", "hook_attn_scores")  # the native hook_attn_scores carries the pattern
    absent = {"hook_pos_embed"} if ours.cfg.positions != "learned" else set()
    shared = [n for n in mine if n in native.keys() and not n.endswith(own_kind)]  # noqa: SIM118
    unshared = {n for n in mine if n not in shared and not n.endswith(own_kind)} - absent
    assert not unshared, unshared
    for name in shared:
        assert close(ours.cfg, mine[name], native[name].view_as(mine[name])), name


def test_the_native_model_cannot_check_a_norm_after_the_embedding():
    """Why that option is checked against the hand-written reference only."""
    fields = TransformerBridgeConfig(
        d_model=8, d_head=4, n_layers=1, n_ctx=10, n_heads=2, d_vocab=7, d_mlp=12, post_embedding_ln=True
    )
    names = [name for name, _ in TransformerBridge.boot_native(fields).original_model.named_parameters()]
    assert sum("ln" in name for name in names) == 2 * 3  # ln1, ln2 and the final one, weight and bias each
