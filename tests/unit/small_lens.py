"""Small state dicts of a HookedTransformer for tests: weights of a bridge under their legacy names, with a config."""

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tests.unit.random_bridges import HEADS, LAYERS, N_CTX, VOCAB, bridge_of

PLAIN = {"d_model": 16, "d_head": 4, "n_heads": HEADS, "n_layers": LAYERS, "n_ctx": N_CTX, "d_mlp": 24}
PLAIN |= {"d_vocab": VOCAB, "dtype": "torch.float32", "device": "cpu", "seed": 0, "default_prepend_bos": True}
GATED = {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS", "n_key_value_heads": 2}
CONFIGS = {
    "gpt2": {"act_fn": "gelu_new"},
    "gpt2 untied, relu, large eps, scores scaled by layer": {
        "act_fn": "relu",
        "eps": 0.1,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "neox": {
        "act_fn": "gelu",
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
        "rotary_base": 100,
        "parallel_attn_mlp": True,
    },
    "llama": {**GATED, "eps": 1e-6, "positional_embedding_type": "rotary", "rotary_dim": 4, "final_rms": True},
    "native attention only": {"attn_only": True, "act_fn": "gelu"},
    "native without norms": {"act_fn": "gelu_new", "normalization_type": None},
    "native with plain norms, own scale": {"act_fn": "relu", "normalization_type": "LNPre", "attn_scale": 3.0},
    "native grouped": {**GATED, "positional_embedding_type": "rotary", "rotary_adjacent_pairs": True},
    "native with half rotary": {
        "act_fn": "gelu",
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
        "rotary_base": 50,
        "rotary_adjacent_pairs": True,
    },
}


def lens_model(name: str) -> tuple[TransformerBridge, dict[str, Tensor], dict]:
    """A bridge by its name in CONFIGS, its weights under legacy names with the buffers beside them, and its config."""
    bridge = bridge_of(name, torch.float32)
    return bridge, legacy(bridge, CONFIGS[name]), {**PLAIN, **CONFIGS[name]}


def legacy(bridge: TransformerBridge, config: dict) -> dict[str, Tensor]:
    """What `HookedTransformer.state_dict()` would hold: grouped keys and values once, masks as buffers."""
    found = {key: value.detach().clone().contiguous() for key, value in bridge.tl_parameters().items()}
    groups = config.get("n_key_value_heads", HEADS)
    for layer in range(LAYERS):
        at = f"blocks.{layer}.attn"
        if groups != HEADS:
            for name in ("W_K", "W_V", "b_K", "b_V"):
                found[f"{at}._{name}"] = found.pop(f"{at}.{name}")[:: HEADS // groups].clone()
        found[f"{at}.mask"] = torch.ones(N_CTX, N_CTX, dtype=torch.bool).tril()
        found[f"{at}.IGNORE"] = torch.tensor(-torch.inf)
    if config.get("attn_only"):
        found = {key: value for key, value in found.items() if ".mlp." not in key and ".ln2" not in key}
    if config.get("normalization_type", "LN") in (None, "LNPre", "RMSPre"):
        found = {key: value for key, value in found.items() if ".ln" not in key and "ln_final" not in key}
    return found
