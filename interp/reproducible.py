"""Make a training repeatable without leaving a trace in the caller's process: random streams, threads, kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.errors import CheckpointError, ConfigError


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: if torch knows no such device or this machine has none.
    """
    try:
        device = torch.device(name)
        module = torch.get_device_module(device)
    except RuntimeError as error:
        raise ConfigError(f"train.device={name!r} is not a device to train on ({str(error)[:80]}); try cpu") from None
    if not module.is_available() or (device.index or 0) >= module.device_count():
        raise ConfigError(f"train.device={name!r} is not available on this machine; set train.device=cpu")
    return device


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of the global streams that dropout on this device draws from: `rng.torch`, `rng.device` off the CPU."""
    states = {"rng.torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["rng.device"] = torch.get_device_module(device).get_rng_state(*_argument(device))
    return states


def restore_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Set the streams to what `random_state` gave; other keys are ignored.

    Raises:
        CheckpointError: if a stream is missing or its state does not fit.
    """
    for name in ("rng.torch", "rng.device") if device.type != "cpu" else ("rng.torch",):
        if name not in states:
            raise CheckpointError(f"optim.safetensors: {name} is missing; training cannot go on from this checkpoint")
        try:
            if name == "rng.torch":
                torch.set_rng_state(states[name])
            else:
                torch.get_device_module(device).set_rng_state(states[name], *_argument(device))
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"optim.safetensors: {name} is not a random state ({str(error)[:80]})") from None


def _argument(device: torch.device) -> tuple[torch.device, ...]:
    """The device as torch's functions for random states want it; mps has one device and takes none."""
    return () if device.type == "mps" else (device,)


@contextmanager
def reproducible(device: torch.device, threads: int) -> Iterator[None]:
    """Inside the block, `threads` CPU threads and repeatable kernels; afterwards everything is as it was.

    Results depend on the number of threads, so it is fixed. On an accelerator torch warns of an operation that has no
    repeatable form, naming it; on the CPU all that we use are repeatable.
    """
    states, count = random_state(device), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if device.type != "cpu":
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
        torch.set_num_threads(count)
        restore_random_state(device, states)
