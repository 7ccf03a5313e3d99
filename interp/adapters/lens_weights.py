"""The tensors of a HookedTransformer by key and shape, the decoder that they make, and what processing they show."""

import torch
from torch import Tensor

from interp.adapters.families.parts import ACTS
from interp.adapters.lens_config import LensConfig
from interp.adapters.opened import Flag, Processing
from interp.adapters.weight_files import Stored
from interp.decoder import MLP, Attention, Decoder, Layer, Norm, Rotary
from interp.errors import NotExpressible

BUFFERS = (".attn.mask", ".attn.IGNORE", ".attn.rotary_sin", ".attn.rotary_cos", ".attn.alibi")
NEGLIGIBLE = 1e-5  # of a mean, in parts of the largest value; processing leaves about 1e-7
Weights = dict[str, Tensor]


def lens_shapes(cfg: LensConfig, found: dict[str, Stored]) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Every key with its shape, and those that may be absent.

    Key and value heads of grouped queries are stored as `_W_K`, or repeated for each query head as `W_K`.
    """
    d, wide = cfg.d_model, (cfg.n_heads, cfg.d_model, cfg.d_head)
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (cfg.d_vocab, d), "unembed.W_U": (d, cfg.d_vocab_out)}
    shapes["unembed.b_U"] = (cfg.d_vocab_out,)
    optional = {"unembed.b_U"}
    if cfg.positional_embedding_type == "standard":
        shapes["pos_embed.W_pos"] = (cfg.n_ctx, d)
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}"
        mark, groups = ("_", cfg.n_key_value_heads) if f"{at}.attn._W_K" in found else ("", cfg.n_heads)
        shapes |= {f"{at}.attn.W_Q": wide, f"{at}.attn.W_O": (cfg.n_heads, cfg.d_head, d), f"{at}.attn.b_O": (d,)}
        shapes[f"{at}.attn.b_Q"] = (cfg.n_heads, cfg.d_head)
        for letter in "KV":
            shapes[f"{at}.attn.{mark}W_{letter}"] = (groups, d, cfg.d_head)
            shapes[f"{at}.attn.{mark}b_{letter}"] = (groups, cfg.d_head)
        if not cfg.attn_only:
            mlp = {"W_in": (d, cfg.d_mlp), "W_out": (cfg.d_mlp, d), "b_in": (cfg.d_mlp,), "b_out": (d,)}
            if cfg.gated_mlp:
                mlp["W_gate"] = (d, cfg.d_mlp)
                optional |= {f"{at}.mlp.b_in", f"{at}.mlp.b_out"}
            shapes |= {f"{at}.mlp.{name}": shape for name, shape in mlp.items()}
    norms = _norm_keys(cfg)
    bare = not any(f"{key}.w" in found for key in norms)
    for key in norms:
        if (kind := cfg.norm_of(key)) is not None:
            shapes |= {f"{key}.w": (d,), **({f"{key}.b": (d,)} if kind[0] else {})}
            optional |= {f"{key}.w", f"{key}.b"} if bare else set()
    return shapes, optional


def _norm_keys(cfg: LensConfig) -> list[str]:
    inner = [f"blocks.{layer}.{name}" for layer in range(cfg.n_layers) for name in ("ln1", "ln2")]
    return [key for key in inner if not (cfg.attn_only and key.endswith("ln2"))] + ["ln_final"]


def lens_decoder(cfg: LensConfig, weights: Weights, name: str) -> Decoder:
    """The decoder of these tensors.

    Raises:
        NotExpressible: for a gated MLP with biases after its product.
    """
    turn = None
    if cfg.positional_embedding_type == "rotary":
        half = torch.arange(0, cfg.rotary_dim, 2, dtype=torch.float64) / cfg.rotary_dim
        turn = Rotary((cfg.rotary_base**-half).float(), interleaved=cfg.rotary_adjacent_pairs)
    return Decoder(
        W_E=weights["embed.W_E"],
        W_pos=weights.get("pos_embed.W_pos"),
        ln_embed=None,
        layers=tuple(_layer(cfg, weights, layer, turn) for layer in range(cfg.n_layers)),
        ln_final=_norm(cfg, weights, "ln_final"),
        W_U=weights["unembed.W_U"],
        b_U=weights.get("unembed.b_U"),
        n_ctx=cfg.n_ctx,
        name=name,
    )


def _norm(cfg: LensConfig, weights: Weights, key: str) -> Norm | None:
    kind = cfg.norm_of(key)
    return None if kind is None else Norm(weights.get(f"{key}.w"), weights.get(f"{key}.b"), cfg.eps, centred=kind[0])


def _layer(cfg: LensConfig, weights: Weights, index: int, turn: Rotary | None) -> Layer:
    at = f"blocks.{index}"
    mark = "_" if f"{at}.attn._W_K" in weights else ""
    attn = Attention(
        W_Q=weights[f"{at}.attn.W_Q"],
        W_K=weights[f"{at}.attn.{mark}W_K"],
        W_V=weights[f"{at}.attn.{mark}W_V"],
        W_O=weights[f"{at}.attn.W_O"],
        b_Q=weights[f"{at}.attn.b_Q"],
        b_K=weights[f"{at}.attn.{mark}b_K"],
        b_V=weights[f"{at}.attn.{mark}b_V"],
        b_O=weights[f"{at}.attn.b_O"],
        scale=cfg.scale / (index + 1) if cfg.scale_by_layer else cfg.scale,
        rotary=turn,
    )
    if cfg.attn_only:
        return Layer(_norm(cfg, weights, f"{at}.ln1"), attn, None, None)
    return Layer(
        ln1=_norm(cfg, weights, f"{at}.ln1"),
        attn=attn,
        ln2=_norm(cfg, weights, f"{at}.ln2"),
        mlp=_mlp(cfg, weights, f"{at}.mlp"),
        parallel=cfg.parallel_attn_mlp,
    )


def _mlp(cfg: LensConfig, weights: Weights, at: str) -> MLP:
    b_in = weights.get(f"{at}.b_in")
    if cfg.gated_mlp and b_in is not None:
        if bool(b_in.any()):
            raise NotExpressible(f"{at}.b_in: TransformerLens adds it after the gate's product, a Decoder before it")
        b_in = None
    names = ("W_in", "W_out", "b_out", "W_gate")
    parts = {name: weights.get(f"{at}.{name}") for name in names}
    return MLP(**parts, b_in=b_in, b_gate=None, activation=ACTS[cfg.act_fn])


def lens_processing(cfg: LensConfig, weights: Weights) -> Processing:
    """What the tensors show of `load_and_process_state_dict`; "unknown" where an untouched model looks the same."""
    norms = [weights[f"{key}.w"] for key in _norm_keys(cfg) if f"{key}.w" in weights]
    folded: Flag = cfg.normalization_type is not None and not norms
    if norms and all(bool((w == 1).all()) for w in norms):
        folded = "unknown"
    ends = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
    writers = [value for key, value in weights.items() if key.endswith(ends)]
    value_biases = [value for key, value in weights.items() if key.endswith("b_V")]
    outputs = [value for key, value in weights.items() if key.endswith("attn.b_O")]
    moved: Flag = not any(bool(value.any()) for value in value_biases)
    if moved and not any(bool(value.any()) for value in outputs):
        moved = "unknown"
    side = cfg.padding_side if cfg.padding_side in ("left", "right") else "unknown"
    return Processing(
        bos="unknown" if cfg.prepend_bos is None else cfg.prepend_bos,
        padding_side=side,
        norms_folded=folded,
        centred_writing_weights=all(_centred(value) for value in writers),
        centred_unembed=_centred(weights["unembed.W_U"]),
        value_biases_folded=moved,
    )


def _centred(value: Tensor) -> bool:
    """Whether the mean over the last axis is zero beside the values themselves."""
    mean = value.double().mean(-1).abs().max()
    return bool(mean <= NEGLIGIBLE * value.abs().max())
