"""A TransformerLens TransformerBridge as a `Decoder`, with the names of its hook points."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interp.adapters.agreement import require_agreement
from interp.adapters.limits import reasons
from interp.decoder import ACTIVATIONS, MLP, Activation, Attention, Decoder, Layer, Norm, Rotary
from interp.errors import NotExpressible, UnknownName, UsageError
from interp.hooks import Hook
from interp.model import Transformer

HOOKS = {
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
}


def hook_name(model: Any, site: str, layer: int) -> str:
    """Hook point where a site of a layer is read, on a bridge or a `Transformer`; to write, take `site_hooks`.

    Shapes and meaning are the same on all of them; the bridge itself splits its flat activations into heads for
    hooks, and joins what they return:

    - z [batch pos head d_head]: attention output of each head before W_O.
    - q [batch pos head d_head], k and v [batch pos kv_head d_head]: projections with their biases, before rotary
      positions; grouped-query models have one k and one v per group of query heads. (The points after rotary
      positions are listed by a GPT-NeoX bridge but never fire there.)
    - resid_pre, resid_post [batch pos d_model]: the residual stream around the block.
    - resid_mid [batch pos d_model]: the residual stream between attention and MLP. Blocks whose attention and MLP
      run in parallel have none, nor have those without an MLP.
    - attn_out, mlp_out [batch pos d_model]: what is added to the residual stream, bias included.
    - mlp_post [batch pos d_mlp]: what W_out reads; in a gated MLP after the product with the gate.

    In a processed bridge the values are those of the processed weights.

    Raises:
        UnknownName: for another site.
        UsageError: for a layer, or a site in it, that the model does not have.
    """
    if site not in HOOKS:
        raise UnknownName("site", site, HOOKS)
    name = f"blocks.{layer}.{HOOKS[site]}"
    if name not in model.hook_dict:
        raise UsageError(
            f"{site} of layer {layer}: this {type(model).__name__} with {len(model.blocks)} layers has no {name}; "
            "blocks without an MLP, or with one beside attention, have no resid_mid"
        )
    return name


def site_hooks(model: Any, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> list[Hook]:
    """Hooks for `run_with_hooks` under which a site holds change(what it held), and all that follows is recomputed.

    One hook at `hook_name`, but for resid_mid of a bridge: its `hook_resid_mid` is the input of ln2 alone, so that
    what a hook writes there never reaches the residual path. There the change goes into attn_out, as
    change(resid_pre + attn_out) - resid_pre.

    Args:
        change: given the activation in the shape that `hook_name` states; returns a new tensor of that shape.

    Raises:
        UnknownName: for another site.
        UsageError: for a layer, or a site in it, that the model does not have.
    """
    name = hook_name(model, site, layer)
    if site != "resid_mid" or isinstance(model, Transformer):
        return [(name, lambda activation, hook: change(activation))]
    before: dict[str, Tensor] = {}

    def keep(resid_pre: Tensor, hook) -> None:
        before["attention"] = resid_pre

    def write(attn_out: Tensor, hook) -> Tensor:
        resid_pre = before.pop("attention")
        return change(resid_pre + attn_out) - resid_pre

    return [(hook_name(model, "resid_pre", layer), keep), (hook_name(model, "attn_out", layer), write)]


def decoder_of_bridge(bridge: Any) -> Decoder:
    """The decoder that a TransformerBridge computes in eval mode; where the layout allows, tensors are shared.

    Weights come from the modules that the bridge itself runs (`block.attn.q.original_component` and so on), not from
    the Hugging Face model: wrapping splits the fused matrices of GPT-2 and GPT-NeoX into new parameters, and
    `enable_compatibility_mode` writes folded and centred weights into these modules only. So a processed bridge gives
    the processed weights, and no flag has to be asked. Norms, scores and rotary angles follow the bridge's formulas
    too: GPT-2 without `scale_attn_weights` is still scaled, as the bridge does. Position 0 is the first column, as
    for the bridge unless an attention mask hides a token before a visible one.

    Args:
        bridge: from `boot_native`, `boot_transformers` or `build_bridge_from_module`.

    Raises:
        NotExpressible: for parts that `Decoder` has no formula for, each named, or logits that differ from the
            bridge's by more than rounding (`interp.adapters.agreement`).
        UsageError: for a bridge in training mode with dropout, or whose logits are not finite.
    """
    name = f"{bridge.cfg.architecture} ({bridge.cfg.model_name})"
    if found := reasons(bridge):
        raise NotExpressible(f"{name} cannot be written exactly as a Decoder: {'; '.join(found)}")
    if dropping := _active_dropout(bridge):
        raise UsageError(f"{name} is in training mode with dropout at {dropping}; call .eval() on it first")
    positions = getattr(bridge, "pos_embed", None)
    w_pos = None if positions is None else _plain(positions.original_component.weight)
    w_u, b_u = _affine(bridge.unembed)
    rotary = _rotary(bridge)
    decoder = Decoder(
        W_E=_plain(bridge.embed.original_component.weight),
        W_pos=w_pos,
        ln_embed=None,
        layers=tuple(_layer(block, index, rotary) for index, block in enumerate(bridge.blocks)),
        ln_final=_norm(bridge.ln_final),
        W_U=w_u,
        b_U=None if b_u is None or not b_u.any() else b_u,  # every bridge has one, of zeros where the model has none
        n_ctx=bridge.cfg.n_ctx if w_pos is None else len(w_pos),
        name=name,
    )
    require_agreement(decoder, bridge)
    return decoder


def _active_dropout(bridge: Any) -> str | None:
    """Name of a module that drops activations now."""
    for name, module in bridge.named_modules():
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if module.training and isinstance(rate, float) and rate > 0:
            return name
    return None


def _plain(weight: Any) -> Tensor:
    """A weight without its graph.

    Raises:
        NotExpressible: for packed integers and for weights that are not in memory.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
        kind = getattr(weight, "dtype", type(weight).__name__)
        raise NotExpressible(f"a weight of {kind} cannot be read: load the model unquantised and into memory")
    return weight.detach()


def _affine(linear: Any) -> tuple[Tensor, Tensor | None]:
    """Matrix [n_in n_out] and bias of a wrapped projection."""
    component = linear.original_component
    if isinstance(component, nn.Linear):
        matrix = _plain(component.weight).mT
    elif type(component).__name__ == "Conv1D":  # of Hugging Face's GPT-2, stored as [n_in n_out]
        matrix = _plain(component.weight)
    else:
        raise NotExpressible(f"a projection is a {type(component).__name__}, expected a Linear or a Conv1D")
    return matrix, None if component.bias is None else _plain(component.bias)


def _norm(norm: Any) -> Norm | None:
    """A wrapped LayerNorm or RMSNorm; bridges that compute a norm themselves take eps from their own config."""
    component = norm.original_component
    if isinstance(component, nn.Identity):
        return None
    delegates = norm.use_native_layernorm_autograd or getattr(norm.config, "layer_norm_folding", False)
    eps = norm.config.eps
    if delegates:
        eps = component.eps if hasattr(component, "eps") else component.variance_epsilon
    weight, bias = getattr(component, "weight", None), getattr(component, "bias", None)
    w, b = (None if value is None else _plain(value) for value in (weight, bias))
    if w is not None and norm.uses_weight_offset:
        w = 1 + w
    return Norm(w, b, float(eps), centred=not norm.uses_rms_norm)


def _layer(block: Any, index: int, rotary: Rotary | None) -> Layer:
    mlp = block.mlp if "mlp" in block.submodules else None
    return Layer(
        ln1=_norm(block.ln1),
        attn=_attention(block.attn, index, rotary),
        ln2=None if mlp is None else _norm(block.ln2),
        mlp=None if mlp is None else _mlp(mlp),
        parallel=bool(getattr(block.original_component, "use_parallel_residual", False)),
    )


def _attention(attn: Any, index: int, rotary: Rotary | None) -> Attention:
    """Projections split into heads; grouped-query models have fewer heads for keys and values."""
    d_head = attn.config.d_head
    matrices, biases = {}, {}
    for letter in "QKV":
        matrix, bias = _affine(getattr(attn, letter.lower()))  # [d_model head*d_head]
        matrices[f"W_{letter}"] = matrix.unflatten(1, (-1, d_head)).transpose(0, 1)  # [head d_model d_head]
        biases[f"b_{letter}"] = None if bias is None else bias.unflatten(0, (-1, d_head))  # [head d_head]
    w_o, b_o = _affine(attn.o)  # [head*d_head d_model]
    return Attention(
        **matrices,
        W_O=w_o.unflatten(0, (-1, d_head)),  # [head d_head d_model]
        **biases,
        b_O=b_o,
        scale=_scale(attn, index),
        rotary=rotary,
    )


def _scale(attn: Any, index: int) -> float:
    """Factor on q k: native models divide by theirs, bridges that split a fused matrix ignore the wrapped module's."""
    component = attn.original_component
    if attn.config.architecture == "TransformerLensNative":
        return 1 / component.scale
    if hasattr(attn, "split_qkv_matrix"):
        by_layer = getattr(attn.config, "scale_attn_by_inverse_layer_idx", False)
        return attn.config.d_head**-0.5 / (index + 1 if by_layer else 1)
    return float(component.scaling)


def _mlp(mlp: Any) -> MLP:
    w_in, b_in = _affine(getattr(mlp, "in"))
    w_out, b_out = _affine(mlp.out)
    w_gate, b_gate = _affine(mlp.gate) if "gate" in mlp.submodules else (None, None)
    inner = mlp.original_component
    act = inner.act_fn if hasattr(inner, "act_fn") else inner.act
    return MLP(w_in, w_out, b_in, b_out, w_gate, b_gate, activation=_activation(act))


def _activation(act: Any) -> Activation:
    """The name of a pointwise function, told by its values.

    Raises:
        NotExpressible: if it is none of ours.
    """
    grid = torch.linspace(-6, 6, 97, dtype=torch.float64)
    values = act(grid)
    for name, ours in ACTIVATIONS.items():
        if (ours(grid) - values).abs().max() < 1e-9:
            return name
    kind = getattr(act, "__name__", type(act).__name__)
    raise NotExpressible(f"the activation function {kind} is none of {', '.join(ACTIVATIONS)}")


def _rotary(bridge: Any) -> Rotary | None:
    """Rotary positions of every layer; Hugging Face pairs coordinate i with i + half, native models 2i with 2i + 1."""
    if bridge.cfg.positional_embedding_type != "rotary":
        return None
    if bridge.cfg.architecture == "TransformerLensNative":
        table = bridge.original_model.rotary
        return Rotary(_speed(table.cos_cached[:, ::2], table.sin_cached[:, ::2]), interleaved=True)
    component = bridge.rotary_emb.original_component
    return Rotary(component.inv_freq.detach().float(), interleaved=False, scale=float(component.attention_scaling))


def _speed(cos: Tensor, sin: Tensor) -> Tensor:
    """Angle per position, in radians, of a table [pos pair] of cosines and sines.

    The angle at position 1 is known to the table's rounding; that at 2, 4, 8, ... corrects it to an ever smaller one.
    """
    angle = torch.atan2(sin.double(), cos.double())  # [pos pair], in (-pi, pi]
    speed, position = torch.zeros_like(angle[0]), 1
    while position < len(angle):
        missing = torch.remainder(angle[position] - position * speed + torch.pi, 2 * torch.pi) - torch.pi
        speed, position = speed + missing / position, 2 * position
    return speed.float()
