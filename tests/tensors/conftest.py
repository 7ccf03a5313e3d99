"""The GPU of the tests that need one."""

import pytest
import torch


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The first CUDA or ROCm device; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")  # most machines have none, and tests marked `gpu` are only run on demand
    return torch.device("cuda", 0)
