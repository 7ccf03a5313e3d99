"""Calls without autograd's bookkeeping of views and versions, a seventh of the time of a call on small tensors."""

from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from circuits.engine.runs import as_metric
from circuits.metrics import UserMetric

Result = TypeVar("Result")


def without_autograd(metric: Any) -> AbstractContextManager:
    """Where the engine computes: inference mode, or only no gradients where a user's function may ask for some."""
    return torch.no_grad() if isinstance(as_metric(metric), UserMetric) else torch.inference_mode()


def ordinary(result: Result) -> Result:
    """The same dataclass with its tensors as ordinary ones: they may be written to, and take part in gradients."""
    found = ((field.name, getattr(result, field.name)) for field in fields(result))
    return replace(result, **{name: x.clone() for name, x in found if isinstance(x, Tensor) and x.is_inference()})
