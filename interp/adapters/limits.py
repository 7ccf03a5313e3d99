"""Why a TransformerBridge cannot be written exactly as a `Decoder`."""

from collections.abc import Iterator
from typing import Any

ARCHITECTURES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "TransformerLensNative",
)
FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # speeds and one scale that no input changes
NEUTRAL = {
    "residual_multiplier": "residual scaling",
    "embedding_multiplier": "embedding scaling",
    "logits_scaling": "logit scaling",
    "logit_scale": "logit scaling",
}


def reasons(bridge: Any) -> list[str]:
    """Everything in this bridge that `Decoder` has no formula for; empty when there is nothing known against it.

    Only the architectures in `ARCHITECTURES` have been read line by line, so any other one is itself a reason.
    """
    config = getattr(bridge.original_model, "config", None)  # the Hugging Face one; native models have none
    found = [*_attention(bridge, config), *_blocks(bridge), *_scaling(bridge, config), *_positions(bridge, config)]
    if not found and bridge.cfg.architecture not in ARCHITECTURES:
        found.append(f"this architecture has not been checked; those that have are {', '.join(ARCHITECTURES)}")
    return found


def _attention(bridge: Any, config: Any) -> Iterator[str]:
    """Which keys a query may see."""
    causal = bridge.cfg.attention_dir == "causal" and bridge.adapter.supports_causal_loss
    if getattr(config, "is_encoder_decoder", False) or not causal:
        yield "an encoder, whose attention is not causal"
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        yield "cross-attention"
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    slides = "sliding_attention" in kinds if kinds else window is not None
    if slides and (window or 0) < bridge.cfg.n_ctx:
        yield f"a sliding attention window of {window} positions, shorter than n_ctx={bridge.cfg.n_ctx}"
    others = set(kinds) - {"full_attention", "sliding_attention"}
    if others or "local" in (getattr(config, "attention_layers", None) or ()):
        yield f"attention layers of another kind ({', '.join(sorted(others)) or 'local'})"


def _blocks(bridge: Any) -> Iterator[str]:
    """Parts of a block beside two norms, plain attention and one MLP."""
    blocks = list(getattr(bridge, "blocks", ()))
    if not blocks or any("attn" not in block.submodules for block in blocks):
        yield "layers without plain attention"
    inner = {name for block in blocks for name in block.submodules}
    attention = {name for block in blocks for name in getattr(block.submodules.get("attn"), "submodules", ())}
    if attention & {"q_norm", "k_norm"}:
        yield "a norm on queries and keys (qk-norm)"
    if inner & {"ln1_post", "ln2_post"}:
        yield "norms after attention or the MLP (post-norm)"
    if "cross_attn" in inner:
        yield "cross-attention"
    if any("MoE" in type(block.submodules.get("mlp")).__name__ for block in blocks):
        yield "a mixture of experts"
    if "ln" in {name for block in blocks for name in getattr(block.submodules.get("mlp"), "submodules", ())}:
        yield "a norm inside the MLP"


def _scaling(bridge: Any, config: Any) -> Iterator[str]:
    """Factors and caps on what flows through."""
    for field, what in (("attn_scores_soft_cap", "attention scores"), ("output_logits_soft_cap", "logits")):
        cap = getattr(bridge.cfg, field, None)
        if cap is not None and cap > 0:
            yield f"a soft cap of {cap:g} on the {what}"
    for field, what in NEUTRAL.items():
        factor = getattr(config, field, None)
        if factor is not None and factor != 1:
            yield f"{what} by {factor:g}"


def _positions(bridge: Any, config: Any) -> Iterator[str]:
    """Position schemes that are neither an embedding nor fixed rotary angles."""
    kind = bridge.cfg.positional_embedding_type
    if kind == "alibi" or getattr(config, "alibi", False):
        yield "ALiBi biases on the attention scores"
    elif kind not in ("standard", "rotary"):
        yield f"positions of the kind {kind!r}"
    parameters = getattr(config, "rope_parameters", None) or {}
    rope = parameters.get("rope_type", "default")
    if rope not in FIXED_ROPE:
        yield f"rotary scaling {rope!r}, whose angles depend on the length of the input"
