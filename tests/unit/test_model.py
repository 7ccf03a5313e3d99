"""The transformer computes what its configuration says: checked against loops written from the definition."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from interp.config import ModelConfig, validated
from interp.errors import ConfigError, UsageError
from interp.model import Transformer

torch.set_num_threads(1)

SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_mlp": 12, "d_vocab": 7, "n_ctx": 6}
CASES = {
    "default": {},
    "one_head": {"n_heads": 1},
    "one_layer_wide_heads": {"n_layers": 1, "d_head": 6},
    "four_heads": {"n_heads": 4},
    "embed_norm": {"embed_norm": True},
    "embed_norm_rms": {"embed_norm": True, "norm": "rms"},
    "normed_residual": {"residual": "normed"},
    "normed_residual_rms_bias": {"residual": "normed", "norm": "rms", "norm_bias": True, "bias": True},
    "normed_attn_only": {"residual": "normed", "attn_only": True},
    "norm_bias": {"norm_bias": True},
    "rms": {"norm": "rms"},
    "no_norm": {"norm": "none"},
    "no_final_norm": {"final_norm": False},
    "large_eps": {"norm_eps": 0.1},
    "pos_dim": {"pos_dim": 3},
    "rotary": {"positions": "rotary"},
    "rotary_base": {"positions": "rotary", "rotary_base": 20.0, "d_head": 6, "bias": True},
    "no_positions": {"positions": "none"},
    "relu": {"activation": "relu"},
    "swiglu": {"activation": "swiglu"},
    "swiglu_bias": {"activation": "swiglu", "bias": True},
    "bias": {"bias": True},
    "attn_only": {"attn_only": True},
    "attn_only_no_norm": {"attn_only": True, "norm": "none", "bias": True},
    "tied": {"tied": True},
    "tied_bias": {"tied": True, "bias": True},
    "everything": {
        "embed_norm": True, "norm_bias": True, "bias": True, "pos_dim": 5, "residual": "normed",
        "activation": "swiglu", "tied": True, "norm_eps": 1e-3, "n_heads": 4,
    },
}  # fmt: skip


def config(**changes) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})


def random_model(cfg: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model whose norm weights and biases are not at their trivial starting values."""
    model = Transformer(cfg, seed=seed).to(dtype)
    draw = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return model.eval()


def random_tokens(cfg: ModelConfig, batch: int = 2, pos: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(cfg.d_vocab, (batch, pos), generator=torch.Generator().manual_seed(seed))


class Reference:
    """The definition in scalar and vector loops over float64 parameters: one sequence and one position at a time."""

    def __init__(self, cfg: ModelConfig, parameters: dict[str, Tensor]):
        self.cfg, self.p = cfg, parameters

    def norm(self, name: str, x: Tensor) -> Tensor:
        if name + ".w" not in self.p:
            return x
        n = self.cfg.d_model
        mean = sum(x[i] for i in range(n)) / n if self.cfg.norm == "layer" else 0.0
        variance = sum((x[i] - mean) ** 2 for i in range(n)) / n
        y = torch.einsum("d,d->d", (x - mean) / (variance + self.cfg.norm_eps) ** 0.5, self.p[name + ".w"])
        return y + self.p.get(name + ".b", 0.0)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | float) -> Tensor:
        return torch.einsum("i,io->o", x, weight) + bias

    def turned(self, x: Tensor, pos: int) -> Tensor:
        """Rotary positions as a product of complex numbers."""
        if self.cfg.positions != "rotary":
            return x
        pairs = [torch.complex(x[2 * i], x[2 * i + 1]) for i in range(len(x) // 2)]
        angles = [pos * self.cfg.rotary_base ** (-2 * i / len(x)) for i in range(len(x) // 2)]
        turned = [pair * complex(math.cos(angle), math.sin(angle)) for pair, angle in zip(pairs, angles, strict=True)]
        return torch.stack([part for pair in turned for part in (pair.real, pair.imag)])

    def head(self, at: str, h: int, letter: str, x: Tensor) -> Tensor:
        bias = self.p[f"{at}.b_{letter}"][h] if self.cfg.bias else 0.0
        return self.linear(x, self.p[f"{at}.W_{letter}"][h], bias)

    def attention(self, layer: int, xs: list[Tensor]) -> list[Tensor]:
        at, outs = f"blocks.{layer}.attn", []
        for query in range(len(xs)):
            out = torch.zeros(self.cfg.d_model, dtype=torch.float64) + self.p.get(f"{at}.b_O", 0.0)
            for h in range(self.cfg.n_heads):
                q = self.turned(self.head(at, h, "Q", xs[query]), query)
                weights, values = [], []
                for key in range(query + 1):
                    k = self.turned(self.head(at, h, "K", xs[key]), key)
                    weights.append(torch.exp(torch.einsum("d,d->", q, k) / len(q) ** 0.5))
                    values.append(self.head(at, h, "V", xs[key]))
                z = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                out = out + torch.einsum("e,ed->d", z, self.p[f"{at}.W_O"][h])
            outs.append(out)
        return outs

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        at, kind = f"blocks.{layer}.mlp", self.cfg.activation
        inner = self.linear(x, self.p[f"{at}.W_in"], self.p.get(f"{at}.b_in", 0.0))
        if kind == "gelu":
            post = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        elif kind == "relu":
            post = torch.where(inner > 0, inner, torch.zeros_like(inner))
        else:
            gate = self.linear(x, self.p[f"{at}.W_gate"], self.p.get(f"{at}.b_gate", 0.0))
            post = gate / (1 + torch.exp(-gate)) * inner
        return self.linear(post, self.p[f"{at}.W_out"], self.p.get(f"{at}.b_out", 0.0))

    def embedded(self, token: int, pos: int) -> Tensor:
        x = self.p["embed.W_E"][token]
        if self.cfg.positions == "learned":
            row = self.p["pos_embed.W_pos"][pos]
            x = x + torch.cat([row, torch.zeros(self.cfg.d_model - len(row), dtype=torch.float64)])
        return self.norm("ln_embed", x)

    def sequence(self, tokens: list[int]) -> Tensor:
        xs = [self.embedded(token, pos) for pos, token in enumerate(tokens)]
        for layer in range(self.cfg.n_layers):
            normed = [self.norm(f"blocks.{layer}.ln1", x) for x in xs]
            base = normed if self.cfg.residual == "normed" else xs
            xs = [x + out for x, out in zip(base, self.attention(layer, normed), strict=True)]
            if not self.cfg.attn_only:
                xs = [x + self.mlp(layer, self.norm(f"blocks.{layer}.ln2", x)) for x in xs]
        unembedding = self.p["embed.W_E"].T if self.cfg.tied else self.p["unembed.W_U"]
        bias = self.p.get("unembed.b_U", 0.0)
        return torch.stack([self.linear(self.norm("ln_final", x), unembedding, bias) for x in xs])

    def logits(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.sequence(row) for row in tokens.tolist()])


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_float64_reference(case):
    """Rule: both sides are float64, so they agree to 1e-11 of the largest value."""
    cfg = config(**CASES[case])
    model, tokens = random_model(cfg), random_tokens(cfg, pos=4)
    own = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    ours, expected = model(tokens), Reference(cfg, own).logits(tokens)
    assert (ours - expected).abs().max() <= 1e-11 * expected.abs().max()
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((ours * direction).sum(), list(model.parameters()))
    references = torch.autograd.grad((expected * direction).sum(), list(own.values()), materialize_grads=True)
    for name, got, wanted in zip(own, gradients, references, strict=True):
        assert (got - wanted).abs().max() <= 1e-11 * max(1.0, wanted.abs().max()), name


@pytest.mark.parametrize("case", CASES)
def test_fused_and_explicit_paths_agree_in_value_and_gradient(case):
    cfg = config(**CASES[case])
    model, tokens = random_model(cfg), random_tokens(cfg, pos=6)
    fused = model(tokens)
    wanted = torch.autograd.grad(fused.square().sum(), list(model.parameters()))
    explicit = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda activation, hook: None)])
    got = torch.autograd.grad(explicit.square().sum(), list(model.parameters()))
    assert (fused - explicit).abs().max() <= 1e-12 * fused.abs().max()
    for a, b in zip(wanted, got, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(1.0, a.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_later_token_never_changes_earlier_logits(case):
    cfg = config(**CASES[case])
    model, tokens = random_model(cfg), random_tokens(cfg, batch=1, pos=6)
    before = model(tokens)
    for changed in range(1, 6):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % cfg.d_vocab
        after = model(other)
        assert torch.equal(before[0, :changed], after[0, :changed])
        assert not torch.equal(before[0, changed], after[0, changed])


@pytest.mark.parametrize("case", ["default", "rotary", "everything"])
def test_a_prefix_has_the_logits_of_the_whole_sequence(case):
    cfg = config(**CASES[case])
    model, tokens = random_model(cfg), random_tokens(cfg, pos=6)
    whole = model(tokens)
    for n_pos in range(1, 6):
        assert (model(tokens[:, :n_pos]) - whole[:, :n_pos]).abs().max() <= 1e-12 * whole.abs().max()


def test_rotary_attention_sees_only_the_distance_between_positions():
    cfg = config(positions="rotary", n_layers=1)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 2]])
    _, whole = random_model(cfg).run_with_cache(tokens, names_filter="blocks.0.attn.hook_attn_scores")
    _, tail = random_model(cfg).run_with_cache(tokens[:, 2:], names_filter="blocks.0.attn.hook_attn_scores")
    scores, shifted = whole["blocks.0.attn.hook_attn_scores"], tail["blocks.0.attn.hook_attn_scores"]
    seen = torch.ones(4, 4).tril().bool()
    assert (scores[0, :, 2:, 2:][:, seen] - shifted[0][:, seen]).abs().max() <= 1e-12


def test_positions_live_in_the_first_pos_dim_coordinates_only():
    cfg = config(pos_dim=3)
    _, cache = random_model(cfg).run_with_cache(random_tokens(cfg))
    assert torch.all(cache["hook_pos_embed"][..., 3:] == 0)
    assert torch.all(cache["hook_pos_embed"][..., :3] != 0)
    assert Transformer(cfg, seed=0).pos_embed.W_pos.shape == (6, 3)


def test_model_that_copies_the_previous_token_by_hand():
    """One head, no norm: key p says 'I am p', query p asks for p - 1, the value is the token, written 10 times."""
    cfg = ModelConfig(
        n_layers=1, n_heads=1, d_model=7, d_head=4, d_vocab=3, n_ctx=4, norm="none", attn_only=True, final_norm=False
    )
    model = Transformer(cfg, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :3] = torch.eye(3)
        model.pos_embed.W_pos[:, 3:] = torch.eye(4)
        model.blocks[0].attn.W_K[0, 3:] = 100 * torch.eye(4)
        model.blocks[0].attn.W_Q[0, 3:] = torch.diag(torch.ones(3), -1)  # position p asks for p - 1
        model.blocks[0].attn.W_V[0, :3, :3] = torch.eye(3)
        model.blocks[0].attn.W_O[0, :3, :3] = 10 * torch.eye(3)
        model.unembed.W_U[:3] = torch.eye(3)
    tokens = torch.tensor([[2, 0, 1, 1]])
    logits = model(tokens)[0, 1:] - torch.eye(3)[tokens[0, 1:]]  # the residual still holds the token itself
    assert torch.allclose(logits, 10 * torch.eye(3)[tokens[0, :-1]], atol=1e-6)
    pattern = model.run_with_cache(tokens)[1]["blocks.0.attn.hook_pattern"][0, 0]
    assert torch.allclose(pattern[1:, :3], torch.eye(3), atol=1e-6)


def test_weights_depend_on_the_seed_alone():
    first = Transformer(config(bias=True), seed=3).state_dict()
    torch.manual_seed(99)
    torch.randn(17)
    again = Transformer(config(bias=True), seed=3).state_dict()
    other = Transformer(config(bias=True), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".W_" in name)
    assert all(torch.all(first[name] == 0) for name in first if ".b_" in name)


def test_no_two_matrices_start_alike():
    """One draw behind two matrices, such as W_Q and W_K of a head, would give an untrained model structure."""
    model = Transformer(ModelConfig(n_layers=3, d_model=8, d_mlp=8, d_vocab=8, n_ctx=8, activation="swiglu"), seed=0)
    matrices = [p.flatten() for name, p in model.named_parameters() if ".W_" in name]
    assert len(matrices) == 3 + 3 * 7
    assert len({p.numel() for p in matrices}) == 1
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(matrices, 2))


def test_an_added_part_leaves_the_other_initial_weights_alone():
    plain, more = Transformer(config(), seed=3).state_dict(), Transformer(config(bias=True, embed_norm=True), seed=3)
    assert all(torch.equal(plain[name], more.state_dict()[name]) for name in plain)


def test_matrices_start_with_variance_one_over_their_inputs():
    """10,000 or more normal draws each: the estimated scale is within 5 % of the stated one."""
    cfg = ModelConfig(n_layers=1, n_heads=2, d_model=100, d_head=80, d_vocab=150, n_ctx=120, activation="swiglu")
    model = Transformer(cfg, seed=0)
    inputs = {"W_Q": 100, "W_K": 100, "W_V": 100, "W_O": 160, "W_in": 100, "W_gate": 100, "W_out": 400, "W_U": 100}
    inputs |= {"W_E": 1, "W_pos": 1}
    for name, parameter in model.named_parameters():
        if (letter := name.rsplit(".", 1)[1]) in inputs:
            assert abs(parameter.std() * math.sqrt(inputs.pop(letter)) - 1) < 0.05, name
    assert not inputs


@pytest.mark.parametrize("pattern", ["embed.*", "blocks.*.attn.W_Q", "pos_embed.W_pos"])
def test_frozen_patterns_stop_exactly_the_parameters_they_name(pattern):
    free = dict(Transformer(config(), seed=0).named_parameters())
    model = Transformer(config(frozen=(pattern,)), seed=0)
    prefix, _, suffix = pattern.partition("*")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (name.startswith(prefix) and name.endswith(suffix)), name
        assert torch.equal(parameter, free[name])


def test_frozen_pattern_without_a_match_is_refused():
    with pytest.raises(ConfigError, match=r"model\.frozen: 'blocks\.7\.\*' matches no parameter; names are embed\.W_E"):
        Transformer(config(frozen=("embed.*", "blocks.7.*")), seed=0)


@pytest.mark.parametrize("missing", ["d_vocab", "n_ctx"])
def test_sizes_that_come_from_the_task_must_be_filled_in(missing):
    with pytest.raises(ConfigError, match=f"{missing}=0"):
        Transformer(config(**{missing: 0}), seed=0)


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({"norm": "none", "embed_norm": True}, "embed_norm needs norm"),
        ({"norm": "none", "residual": "normed"}, "residual='normed' needs norm"),
        ({"positions": "rotary", "pos_dim": 3}, "pos_dim=3 needs positions='learned'"),
    ],
)
def test_options_that_would_be_ignored_are_refused(changes, needs):
    with pytest.raises(ConfigError, match=f"model: .*{needs}"):
        validated(ModelConfig, {**SMALL, **changes}, "model")


@pytest.mark.parametrize("shape", [(2, 7), (1, 100)])
def test_too_many_positions_are_refused_with_the_limit(shape):
    with pytest.raises(UsageError, match=r"expected \[batch, pos\] with at most n_ctx=6 pos"):
        Transformer(config(), seed=0)(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("token", [-1, 7, 1000])
def test_unknown_tokens_are_refused_with_the_range(token):
    with pytest.raises(UsageError, match=f"tokens run from .*{token}.*, but this model knows 0 to 6"):
        Transformer(config(), seed=0)(torch.tensor([[0, token]]))


def test_dropout_acts_in_training_only_and_follows_the_default_generator():
    model = Transformer(config(dropout=0.5), seed=0)
    tokens = random_tokens(model.cfg)
    calm = Transformer(config(), seed=0)
    torch.manual_seed(5)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(5)
    assert torch.equal(first, model(tokens))
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(tokens), calm(tokens))


@pytest.mark.parametrize(("heads", "gated"), itertools.product([1, 2], [False, True]))
def test_parameter_names_and_shapes_are_those_documented(heads, gated):
    cfg = config(n_layers=1, n_heads=heads, d_head=4, activation="swiglu" if gated else "relu")
    shapes = {name: tuple(p.shape) for name, p in Transformer(cfg, seed=0).named_parameters()}
    expected = {
        "embed.W_E": (7, 8), "pos_embed.W_pos": (6, 8), "ln_final.w": (8,), "unembed.W_U": (8, 7),
        "blocks.0.ln1.w": (8,), "blocks.0.ln2.w": (8,),
        **{f"blocks.0.attn.W_{letter}": (heads, 8, 4) for letter in "QKV"}, "blocks.0.attn.W_O": (heads, 4, 8),
        "blocks.0.mlp.W_in": (8, 12), "blocks.0.mlp.W_out": (12, 8),
        **({"blocks.0.mlp.W_gate": (8, 12)} if gated else {}),
    }  # fmt: skip
    assert shapes == expected
