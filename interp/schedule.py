"""When to save a checkpoint: logarithmic steps, plus extra ones when a tracked score moves."""

from interp.config import TrainConfig


def logarithmic_steps(config: TrainConfig) -> list[int]:
    """Steps 0, first, first*ratio, first*ratio^2, ... below the last step, and the last step itself.

    Linear spacing misses events: attention heads of small models form within the first few per cent of training.
    """
    steps, value = [0], float(config.checkpoint_first)
    while round(value) < config.steps:
        steps.append(round(value))
        value = max(value * config.checkpoint_ratio, value + 1)
    return sorted({*steps, config.steps})


def moved(previous: dict[str, float], current: dict[str, float], by: float) -> list[str]:
    """Names of the tracked scores that changed by more than `by` since the last checkpoint."""
    return [name for name, value in current.items() if abs(value - previous.get(name, value)) > by]
