"""Find the first tensor that stopped being finite, so that a diverged run can say where it broke."""

import torch
from torch import Tensor

from interp.hooks import HookedModel


def all_finite(*tensors: Tensor) -> bool:
    """True when no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@torch.no_grad()
def first_bad_tensor(model: HookedModel, tokens: Tensor) -> str:
    """Name of the first non-finite tensor in the order of computation: parameters, activations, then gradients."""
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            return f"parameter {name}"
    bad: list[str] = []

    def check(activation: Tensor, hook) -> None:
        # Masked attention scores are -inf by design, so only NaN and +inf count as bad.
        if bool((activation.isnan() | activation.isposinf()).any()):
            bad.append(hook.name)

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, check) for name in model.hook_dict])
    if bad:
        return f"activation {bad[0]}"
    if not all_finite(logits):
        return "logits"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not all_finite(parameter.grad):
            return f"gradient of {name}"
    return "loss"
