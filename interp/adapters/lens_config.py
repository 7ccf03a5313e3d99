"""The configuration of a TransformerLens HookedTransformer: what `Decoder` needs of it, and what it cannot express."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.adapters.families.parts import ACTS
from interp.adapters.weight_files import shown
from interp.errors import NotExpressible, StoreError

MOST, MOST_LAYERS = 1 << 31, 4096
NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)
# Fields that decide the formulas; a value other than the one given here has none in `Decoder`.
PLAIN: dict[str, Any] = {
    "attention_dir": "causal",
    "use_local_attn": False,
    "use_normalization_before_and_after": False,
    "post_embedding_ln": False,
    "num_experts": None,
    "use_NTK_by_parts_rope": False,
    "use_yarn_rope": False,
    "use_qk_norm": False,
    "rotary_base_local": None,
    "rotary_scaling_factor": 1.0,
}
CAPS = ("attn_scores_soft_cap", "output_logits_soft_cap")  # off where they are not positive
# Fields that change nothing that is computed from given weights.
NEUTRAL = """
model_name original_architecture from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value tokenizer_name
use_attn_result use_split_qkv_input use_hook_mlp_in use_attn_in ungroup_grouped_query_attention init_mode device
n_devices seed initializer_range init_weights n_params use_hook_tokens default_prepend_bos default_padding_side dtype
tokenizer_prepends_bos trust_remote_code load_in_4bit experts_per_token window_size attn_types norm_topk_prob
relative_attention_max_distance relative_attention_num_buckets decoder_start_token_id tie_word_embeddings
NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor NTK_by_parts_factor NTK_original_ctx_len yarn_factor
yarn_attention_factor yarn_beta_fast yarn_beta_slow yarn_original_max_position_embeddings uses_rms_norm
layer_norm_folding
"""


@dataclass(frozen=True)
class LensConfig:
    """The fields by their TransformerLens names, every default filled in."""

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    n_heads: int
    n_key_value_heads: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    act_fn: str
    normalization_type: Literal["LN", "LNPre", "RMS", "RMSPre"] | None
    final_rms: bool
    eps: float
    attn_only: bool
    gated_mlp: bool
    parallel_attn_mlp: bool
    positional_embedding_type: Literal["standard", "rotary", "none"]
    rotary_dim: int
    rotary_base: float
    rotary_adjacent_pairs: bool
    scale: float
    scale_by_layer: bool
    prepend_bos: bool | None
    padding_side: str | None

    @property
    def grouped(self) -> bool:
        """Whether key and value heads are fewer, or are at least stored under their own names."""
        return self.n_key_value_heads != self.n_heads

    def norm_of(self, key: str) -> tuple[bool, bool] | None:
        """(centred, has weights) of a norm by its key; None where there is no norm."""
        kind = self.normalization_type
        if kind is None:
            return None
        rms = kind.startswith("RMS") or (key == "ln_final" and self.final_rms)
        return not rms, not kind.endswith("Pre")


def is_lens_config(body: Any) -> bool:
    """Whether a JSON object or dictionary is the configuration of a HookedTransformer."""
    return isinstance(body, dict) and {"n_layers", "d_model", "n_ctx", "d_head"} <= body.keys()


def lens_config(body: dict, where: str | Path, shapes: dict[str, tuple[int, ...]]) -> LensConfig:
    """The checked configuration; sizes that it leaves open come from the shapes of the tensors.

    Raises:
        StoreError: for a value of the wrong type, or sizes that make no model.
        NotExpressible: for parts that `Decoder` has no formula for, each named.
    """
    _require_expressible(body, where)
    whole = {name: _whole(body, name, where) for name in ("n_layers", "d_model", "n_ctx", "d_head")}
    if whole["n_layers"] > MOST_LAYERS:
        raise StoreError(f"{where}: n_layers is {whole['n_layers']}, at most {MOST_LAYERS} are accepted")
    heads = _whole(body, "n_heads", where, whole["d_model"] // whole["d_head"])
    vocab = shapes.get("embed.W_E", (0,))[0]
    d_vocab = _whole(body, "d_vocab", where, vocab)
    group = _whole(body, "n_key_value_heads", where, heads)
    if heads % group:
        raise StoreError(f"{where}: n_heads {heads} is no multiple of n_key_value_heads {group}")
    rotary_dim = _whole(body, "rotary_dim", where, whole["d_head"])
    if rotary_dim % 2 or rotary_dim > whole["d_head"]:
        raise StoreError(f"{where}: rotary_dim is {rotary_dim}, expected an even number up to d_head")
    rotary_base = _real(body, "rotary_base", where, 10000.0)
    if rotary_base <= 0:
        raise StoreError(f"{where}: rotary_base is {rotary_base:g}, expected a number above 0")
    given = _real(body, "attn_scale", where, -1.0)
    scale = 1 / (given if given > 0 else whole["d_head"] ** 0.5)
    return LensConfig(
        **whole,
        n_heads=heads,
        n_key_value_heads=group,
        d_mlp=_whole(body, "d_mlp", where, 4 * whole["d_model"]),
        d_vocab=d_vocab,
        d_vocab_out=_whole(body, "d_vocab_out", where, d_vocab),
        act_fn=str(body.get("act_fn")),
        normalization_type=body.get("normalization_type", "LN"),
        final_rms=_flag(body, "final_rms", where),
        eps=_real(body, "eps", where, 1e-5),
        attn_only=_flag(body, "attn_only", where),
        gated_mlp=_flag(body, "gated_mlp", where),
        parallel_attn_mlp=_flag(body, "parallel_attn_mlp", where),
        positional_embedding_type=body.get("positional_embedding_type", "standard"),
        rotary_dim=rotary_dim,
        rotary_base=rotary_base,
        rotary_adjacent_pairs=_flag(body, "rotary_adjacent_pairs", where),
        scale=scale if _flag(body, "use_attn_scale", where, True) else 1.0,
        scale_by_layer=_flag(body, "scale_attn_by_inverse_layer_idx", where),
        prepend_bos=body.get("default_prepend_bos") if isinstance(body.get("default_prepend_bos"), bool) else None,
        padding_side=body.get("default_padding_side"),
    )


USED = frozenset(LensConfig.__dataclass_fields__) | {"attn_scale", "use_attn_scale", "scale_attn_by_inverse_layer_idx"}


def _require_expressible(body: dict, where: str | Path) -> None:
    found = [
        f"{name}={body[name]!r:.40}" for name, plain in PLAIN.items() if body.get(name, plain) not in (plain, None)
    ]
    found += [f"{name}={body[name]}" for name in CAPS if isinstance(body.get(name), int | float) and body[name] > 0]
    kind = body.get("positional_embedding_type", "standard")
    if kind not in ("standard", "rotary", "none"):
        found.append(f"positions of the kind {kind!r:.40}")
    if body.get("normalization_type", "LN") not in NORMS:
        found.append(f"norms of the kind {body['normalization_type']!r:.40}")
    if not body.get("attn_only") and str(body.get("act_fn")) not in ACTS:
        found.append(f"the activation function {body.get('act_fn')!r:.40}")
    known = USED | PLAIN.keys() | set(CAPS) | set(NEUTRAL.split())
    for name, value in body.items():
        if name not in known and value not in (None, False):
            found.append(f"{shown(str(name))}={value!r:.40}, which is not known here")
    if found:
        raise NotExpressible(f"{where}: cannot be written exactly as a Decoder: {'; '.join(found)}")


def _whole(body: dict, name: str, where: str | Path, default: int | None = None) -> int:
    value = body.get(name)
    if default is not None and (value is None or value == -1):
        value = default
    if type(value) is not int or not 1 <= value <= MOST:
        raise StoreError(f"{where}: {name} is {value!r:.40}, expected a whole number from 1")
    return value


def _flag(body: dict, name: str, where: str | Path, default: bool = False) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise StoreError(f"{where}: {name} is {value!r:.40}, expected true or false")
    return default if value is None else bool(value)


def _real(body: dict, name: str, where: str | Path, default: float) -> float:
    value = body.get(name, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST:
        raise StoreError(f"{where}: {name} is {value!r:.40}, expected a number")
    return float(value)
