"""The decoder of any model that can be written as one."""

from typing import TYPE_CHECKING, Any

from interp.errors import NotExpressible

if TYPE_CHECKING:
    from interp.decoder import Decoder


def decoder_for(model: Any) -> "Decoder":
    """Plain weights and formulas of a `Transformer` or of a TransformerLens TransformerBridge, in eval mode.

    Nothing is imported for a model of neither kind; TransformerLens is, only when the model comes from it.

    Raises:
        NotExpressible: when the model cannot be written exactly as a `Decoder`; the message says why.
        UsageError: for a bridge in training mode with dropout, or whose logits are not finite.
    """
    kinds = {(base.__module__.partition(".")[0], base.__name__) for base in type(model).__mro__}
    if ("interp", "Transformer") in kinds:
        from interp.decoder import decoder_of

        return decoder_of(model)
    if ("transformer_lens", "TransformerBridge") in kinds:
        from interp.adapters.bridge import decoder_of_bridge

        return decoder_of_bridge(model)
    raise NotExpressible(
        f"a model of type {type(model).__name__} cannot be written as a Decoder: expected a Transformer, or a "
        "TransformerBridge, which TransformerLens builds around a Hugging Face model; any other module is patched by "
        "full forwards through `interp.adapters.nnsight.with_sites`"
    )
