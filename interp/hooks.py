"""The only file that imports transformer_lens: hook points, their root module and the protocol of a hooked model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint as BaseHookPoint

__all__ = ["Hook", "HookPoint", "HookedModel", "HookedRootModule", "NamesFilter"]

Hook = tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]
NamesFilter = str | list[str] | Callable[[str], bool] | None


class HookPoint(BaseHookPoint):
    """A named activation: free while nothing is attached, and safe to edit in place while something is.

    Without hooks the call returns its argument at once. With hooks they get a copy, because the activation may be a
    view of a parameter or a tensor that autograd has saved; what they return, or leave in the copy, is used onwards.
    """

    @property
    def hooked(self) -> bool:
        """Whether any forward or backward hook is attached."""
        return bool(self._forward_hooks or self._backward_hooks or self._forward_pre_hooks or self._backward_pre_hooks)

    def __call__(self, x: Tensor) -> Tensor:
        if self._forward_hooks or self._backward_hooks or self._forward_pre_hooks or self._backward_pre_hooks:
            return super().__call__(x.clone())
        return x


@runtime_checkable
class HookedModel(Protocol):
    """What probes and circuits need from a model; `Transformer` and the adapters of outside models provide it.

    Hook functions are called as `fn(activation, hook=point)`, where `point.name` is the hook name; returning a tensor
    replaces the activation, returning None keeps it.
    """

    cfg: Any
    hook_dict: Mapping[str, Any]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits."""

    def run_with_cache(
        self, tokens: Int[Tensor, "batch pos"], *, names_filter: NamesFilter = None
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Mapping[str, Tensor]]:
        """Logits and the detached activations whose names pass the filter; None keeps all."""

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch pos"], *, fwd_hooks: Sequence[Hook] = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of one run with these hooks, which are removed afterwards."""
