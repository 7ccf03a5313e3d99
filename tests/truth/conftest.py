"""Fixtures of the truth tests: one thread (the models are tiny), shared nulls, and detection without its slow end."""

from collections.abc import Iterator

import pytest
import torch

from circuits.detectors import iteration_head
from tests.truth.detecting import Nulls


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nulls() -> Nulls:
    return Nulls()


@pytest.fixture
def without_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what carries the input in a solved model without the head: it comes after the verdict, and is slow."""
    monkeypatch.setattr(iteration_head, "carriers", lambda *_: [])
