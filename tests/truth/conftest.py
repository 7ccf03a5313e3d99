"""One thread for every test here: the models are tiny, and the suite runs several processes."""

from collections.abc import Iterator

import pytest
import torch

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
