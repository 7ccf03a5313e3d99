"""Fixtures of the truth tests: quick settings, shared nulls, and detection without its slow end."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

from circuits.detectors import iteration_head
from tests.truth.detecting import Nulls


@pytest.fixture(scope="module", autouse=True)
def lean() -> Iterator[None]:
    """One thread, and no shape checks: half a million calls here would pay for what the unit tests check already."""
    threads, unchecked = torch.get_num_threads(), config.jaxtyping_disable
    torch.set_num_threads(1)
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", unchecked)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nulls() -> Nulls:
    return Nulls()


@pytest.fixture
def without_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what carries the input in a solved model without the head: it comes after the verdict, and is slow."""
    monkeypatch.setattr(iteration_head, "carriers", lambda *_: [])
