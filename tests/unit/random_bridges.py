"""Small random models of every family that a decoder can express, in TransformerBridges, with the rule of equality."""

import torch
import transformers
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from interp.decoder import Decoder

torch.set_num_threads(1)

VOCAB, N_CTX, HEADS, LAYERS = 23, 12, 4, 2
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": LAYERS, "n_head": HEADS, "n_positions": N_CTX, "n_inner": 24}
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": N_CTX}
GROUPED = {**SIZES, "num_key_value_heads": 2}
NATIVE = {
    "d_model": 16,
    "d_head": 4,
    "n_layers": LAYERS,
    "n_ctx": N_CTX,
    "n_heads": HEADS,
    "d_vocab": VOCAB,
    "d_mlp": 24,
}
ROTARY = {"positional_embedding_type": "rotary"}


def rope(kind: str, **settings) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
HUGGING_FACE = {
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "gpt2 untied, relu, large eps, scores scaled by layer": (
        "GPT2",
        "LMHeadModel",
        {**GPT2, "tie_word_embeddings": False, "activation_function": "relu", "layer_norm_epsilon": 0.1}
        | {"scale_attn_by_inverse_layer_idx": True},
    ),
    "neox": ("GPTNeoX", "ForCausalLM", {**SIZES, **rope("default", partial_rotary_factor=0.5)}),
    "neox sequential, all rotary, large eps": (
        "GPTNeoX",
        "ForCausalLM",
        {**SIZES, **rope("default", partial_rotary_factor=1.0), "use_parallel_residual": False, "layer_norm_eps": 0.1},
    ),
    "llama": ("Llama", "ForCausalLM", GROUPED),
    "llama with biases, tied, wide heads, llama3 angles": (
        "Llama",
        "ForCausalLM",
        {**GROUPED, **rope("llama3", **LLAMA3), "attention_bias": True, "mlp_bias": True, "head_dim": 6}
        | {"tie_word_embeddings": True},
    ),
    "llama with linear angles": ("Llama", "ForCausalLM", {**GROUPED, **rope("linear", factor=2.0)}),
    "llama with yarn": (
        "Llama",
        "ForCausalLM",
        {**GROUPED, **rope("yarn", factor=4.0, original_max_position_embeddings=8)},
    ),
    "qwen2": ("Qwen2", "ForCausalLM", GROUPED),
    "mistral": ("Mistral", "ForCausalLM", {**GROUPED, "sliding_window": None}),
    "mistral with a window of n_ctx": ("Mistral", "ForCausalLM", {**GROUPED, "sliding_window": N_CTX}),
}
NATIVES = {
    "native": {"act_fn": "gelu"},
    "native attention only": {"attn_only": True, "act_fn": "gelu"},
    "native without norms": {"normalization_type": None, "act_fn": "gelu_new"},
    "native with plain norms, own scale": {"normalization_type": "LNPre", "act_fn": "relu", "attn_scale": 3.0},
    "native grouped": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "act_fn": "silu",
        "n_key_value_heads": 2,
        **ROTARY,
    },
    "native with half rotary": {"act_fn": "gelu", "rotary_dim": 2, "rotary_base": 50, **ROTARY},
    "native with llama3 angles": {"act_fn": "gelu", "rope_scaling": {"rope_type": "llama3", **LLAMA3}, **ROTARY},
}
# Families that compute in float64 throughout, but for rotary angles, which a decoder takes in float32 as they do.
# The others compute norms, attention weights or tables of angles in float32 whatever the dtype.
DOUBLE = {name for name in HUGGING_FACE if name.startswith(("gpt2", "neox"))}
DOUBLE |= {name for name in NATIVES if "grouped" not in name and "rotary" not in name and "angles" not in name}
FAMILIES = ["gpt2", "neox", "neox sequential, all rotary, large eps", "llama", "qwen2", "mistral"]
PATCHED = [*FAMILIES, "native", "native grouped"]


def shaken(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The same model with every norm weight and bias away from its neutral value."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream).to(parameter.dtype))
    return model.eval()


def hugging_face(stem: str, ending: str, settings: dict, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A random model of a class of transformers."""
    config = getattr(transformers, f"{stem}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(getattr(transformers, stem + ending)(config).to(dtype))


def wrapped(model: torch.nn.Module) -> TransformerBridge:
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def native(settings: dict, dtype: torch.dtype = torch.float32) -> TransformerBridge:
    settings = dict(settings)
    scaling = settings.pop("rope_scaling", None)
    config = TransformerBridgeConfig(**NATIVE, **settings, seed=0)
    config.rope_scaling = scaling
    return shaken(TransformerBridge.boot_native(config, dtype=dtype))


def bridge_of(name: str, dtype: torch.dtype | None = None) -> TransformerBridge:
    """A bridge by its name in the tables above; float64 where that is what it computes in."""
    dtype = dtype or (torch.float64 if name in DOUBLE else torch.float32)
    return native(NATIVES[name], dtype) if name in NATIVES else wrapped(hugging_face(*HUGGING_FACE[name], dtype))


def some_tokens(batch: int = 3, length: int = N_CTX, seed: int = 5) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def assert_equal_to_rounding(got: Tensor, decoder: Decoder, compute) -> None:
    """`got` of a model against compute(decoder): below 1e-10 in float64, else at most twice the eager error.

    The eager error is that of compute with the decoder as it is (float32) from compute in float64, root mean square.
    """
    if got.dtype == torch.float64:
        assert (got - compute(decoder)).abs().max() < 1e-10
        return
    exact = compute(decoder.to(torch.float64))
    assert rms(got - exact) <= 2 * rms(compute(decoder) - exact)
