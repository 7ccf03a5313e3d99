"""Null distributions from untrained twins: the same configuration, fresh weights, some with sharpened attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp.config import ModelConfig
from interp.model import Transformer

# Untrained attention is nearly uniform, so plain twins alone would make any peaked head look significant.
GAINS = (1.0, 10.0, 30.0, 100.0)

# Patterns of stacked twins by length -> one scanned maximum per twin.
Scan = Callable[[dict[int, Float[Tensor, "_twin layer _batch head _q_pos _k_pos"]]], Float[Tensor, "twin *cell"]]


@dataclass(frozen=True)
class NullScan:
    """One maximum per twin and statistic; `gains[i]` multiplied the attention logits of twin i."""

    maxima: Float[Tensor, "twin *cell"]
    gains: Float[Tensor, "twin"]

    @property
    def n(self) -> int:
        """Number of null models."""
        return len(self.gains)

    @property
    def n_sharp(self) -> int:
        """How many of them have sharpened attention."""
        return int((self.gains > 1).sum())


def p_value(observed: float, maxima: Float[Tensor, "twin"]) -> tuple[float, int]:
    """Family-wise p = (1 + exceedances) / (1 + n), and the number of exceedances."""
    exceedances = int((maxima >= observed).sum())
    return (1 + exceedances) / (1 + len(maxima)), exceedances


def stacked_twins(cfg: ModelConfig, gains: Sequence[float], generator: Generator) -> dict[str, Tensor]:
    """Parameters of one untrained twin per gain, stacked along a first `twin` axis; W_Q is multiplied by the gain."""
    seeds = torch.randint(2**62, (len(gains),), generator=generator).tolist()
    columns: dict[str, list[Tensor]] = {}
    for seed, gain in zip(seeds, gains, strict=True):
        for name, value in Transformer(cfg, seed=seed).state_dict().items():
            sharpened = value * gain if name.endswith(("W_Q", "b_Q")) else value
            columns.setdefault(name, []).append(sharpened)
    return {name: torch.stack(values) for name, values in columns.items()}


@torch.no_grad()
def twin_patterns(
    cfg: ModelConfig, twins: dict[str, Tensor], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "twin layer batch head q_pos k_pos"]:
    """Attention patterns of every stacked twin on the same sequences, in one vectorised forward."""
    model = Transformer(cfg, seed=0).eval()

    def patterns(parameters: dict[str, Tensor]) -> Tensor:
        seen: list[Tensor] = []
        hooks = [
            (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: seen.append(pattern))
            for layer in range(cfg.n_layers)
        ]
        with model.hooks(fwd_hooks=hooks):
            torch.func.functional_call(model, parameters, (tokens,))
        return torch.stack(seen)

    return torch.func.vmap(patterns)(twins)


def null_scan(
    cfg: ModelConfig,
    sequences: dict[int, Int[Tensor, "_batch _pos"]],
    scan: Scan,
    *,
    n: int,
    generator: Generator,
    chunk: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> NullScan:
    """Scan `n` untrained twins exactly as the tested model is scanned; gains cycle through `GAINS`.

    Args:
        sequences: probe sequences by length, the same ones the tested model is scanned on.
        scan: reduces the patterns of stacked twins to one maximum each.
        progress: told (done, n) after each chunk.
    """
    gains = [GAINS[i % len(GAINS)] for i in range(n)]
    maxima = []
    for start in range(0, n, chunk):
        twins = stacked_twins(cfg, gains[start : start + chunk], generator)
        maxima.append(scan({length: twin_patterns(cfg, twins, tokens) for length, tokens in sequences.items()}))
        if progress:
            progress(min(start + chunk, n), n)
    return NullScan(torch.cat(maxima), torch.tensor(gains))
