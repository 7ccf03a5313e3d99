"""Find the first tensor that stopped being finite, so that a diverged run can say where it broke."""

import torch
from torch import Tensor

from interp.hooks import HookedModel


def all_finite(*tensors: Tensor) -> bool:
    """True when no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def bad_parameter(model: HookedModel) -> str | None:
    """The first parameter that is not finite."""
    return next((f"parameter {name}" for name, value in model.named_parameters() if not all_finite(value)), None)


@torch.no_grad()
def bad_activation(model: HookedModel, tokens: Tensor) -> str | None:
    """The first activation, in the order of computation, that is not finite on these tokens; the logits come last."""
    bad: list[str] = []

    def check(activation: Tensor, hook) -> None:
        # Masked attention scores are -inf by design, so there only NaN and +inf count as bad.
        masked = hook.name.endswith("hook_attn_scores")
        wrong = activation.isnan() | activation.isposinf() if masked else ~activation.isfinite()
        if bool(wrong.any()):
            bad.append(hook.name)

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, check) for name in model.hook_dict])
    if bad:
        return f"activation {bad[0]}"
    return None if all_finite(logits) else "logits"


def bad_gradient(model: HookedModel) -> str | None:
    """The first gradient that is not finite; they are computed from the last parameter to the first."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not all_finite(parameter.grad):
            return f"gradient of {name}"
    return None


def first_bad_tensor(model: HookedModel, tokens: Tensor, loss: Tensor) -> str:
    """What broke first in one update: a parameter, an activation, the loss, a gradient, or only the gradients' norm.

    A loss that is not finite makes every gradient so, and clipping by such a norm would too: call this before clipping.
    """
    forward = bad_parameter(model) or bad_activation(model, tokens)
    if forward or not all_finite(loss):
        return forward or "loss"
    return bad_gradient(model) or "norm of the gradients"
