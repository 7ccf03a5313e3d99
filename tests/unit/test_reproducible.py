"""Random streams, threads and deterministic kernels of a training, on the CPU and on a stand-in for an accelerator."""

import pytest
import torch
from torch import Tensor

from interp.errors import CheckpointError, ConfigError
from interp.reproducible import random_state, reproducible, restore_random_state, usable_device

CPU = torch.device("cpu")
OTHER = torch.device("xpu:1")


class Accelerator:
    """What torch keeps of a device type: which devices there are and one random stream for each."""

    def __init__(self, takes_device: bool = True):
        self.takes_device = takes_device
        self.states = {index: torch.full((8,), index, dtype=torch.uint8) for index in range(2)}

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.states)

    def _index(self, given: tuple[torch.device, ...]) -> int:
        assert len(given) == int(self.takes_device)
        return given[0].index if given else 0

    def get_rng_state(self, *device: torch.device) -> Tensor:
        return self.states[self._index(device)].clone()

    def set_rng_state(self, state: Tensor, *device: torch.device) -> None:
        self.states[self._index(device)] = state.clone()


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    stand_in = Accelerator()
    real = torch.get_device_module
    monkeypatch.setattr(torch, "get_device_module", lambda d: stand_in if torch.device(d).type == "xpu" else real(d))
    return stand_in


def test_cpu_is_always_usable():
    assert usable_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "", "cpu:x", "meta"])
def test_unknown_device_is_a_configuration_error(name: str):
    with pytest.raises(ConfigError, match=r"train\.device='.*' is not a device to train on"):
        usable_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "xpu:2"])
def test_missing_device_is_a_configuration_error(name: str, accelerator: Accelerator):
    with pytest.raises(ConfigError, match=rf"train\.device='{name}' is not available on this machine"):
        usable_device(name)


def test_streams_of_cpu_and_device_are_saved_and_restored(accelerator: Accelerator):
    assert usable_device("xpu:1") == OTHER
    before = torch.get_rng_state()
    states = random_state(OTHER)
    assert set(states) == {"rng.torch", "rng.device"} and states["rng.device"].tolist() == [1] * 8
    torch.rand(1)
    accelerator.states[1] += 5
    restore_random_state(OTHER, states)
    assert torch.equal(torch.get_rng_state(), before)
    assert accelerator.states[1].tolist() == [1] * 8 and accelerator.states[0].tolist() == [0] * 8


def test_device_type_with_a_single_device_takes_no_index(monkeypatch: pytest.MonkeyPatch):
    single = Accelerator(takes_device=False)
    monkeypatch.setattr(torch, "get_device_module", lambda device: single)
    states = random_state(torch.device("mps"))
    single.states[0] += 3
    restore_random_state(torch.device("mps"), states)
    assert single.states[0].tolist() == [0] * 8


def test_cpu_run_stores_no_device_stream():
    assert set(random_state(CPU)) == {"rng.torch"}


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({}, r"rng\.torch is missing"),
        ({"rng.torch": torch.zeros(3, dtype=torch.uint8)}, r"rng\.torch is not a random state"),
        ({"rng.torch": torch.zeros(3)}, r"rng\.torch is not a random state"),
    ],
)
def test_streams_that_do_not_fit_are_a_checkpoint_error(states: dict[str, Tensor], message: str):
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message):
        restore_random_state(CPU, states)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_device_stream_is_a_checkpoint_error(accelerator: Accelerator):
    with pytest.raises(CheckpointError, match=r"rng\.device is missing"):
        restore_random_state(OTHER, random_state(CPU))


def test_block_sets_threads_and_gives_everything_back():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), reproducible(CPU, threads + 2):
        assert torch.get_num_threads() == threads + 2
        assert not torch.are_deterministic_algorithms_enabled()
        torch.rand(1)
        raise ZeroDivisionError
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_accelerator_gets_deterministic_kernels_inside_the_block_only(accelerator: Accelerator):
    with reproducible(OTHER, torch.get_num_threads()):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        accelerator.states[1] += 7
    assert not torch.are_deterministic_algorithms_enabled()
    assert accelerator.states[1].tolist() == [1] * 8
