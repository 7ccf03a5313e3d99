"""What a patching call gives back: effects with the reason of every zero, as tensor, table and self-check."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

    from circuits.patch_verify import Checks

REASONS = (
    "",
    "before the first difference",
    "after the metric",
    "last layer, row not read",
    "no difference",
    "padding",
)
HEADED = {"z", "q", "k", "v"}
COARSE = ("tf32", "bf16")


@dataclass(frozen=True)
class Verification:
    """Effects of `n` patches rerun through plain hooks, against those of the engine."""

    n: int
    max_error: float
    l2_error: float
    largest_effect: float

    def __str__(self) -> str:
        return (
            f"{self.n} patches rerun through hooks: largest difference {self.max_error:.1e}, relative to all of them "
            f"{self.l2_error:.1e} (largest effect {self.largest_effect:.3g})"
        )


def described(result: Any, effects: str, graph: str = "") -> str:
    """Lines about a result: what was done, at which cost, by what and, in a coarse precision, with which error."""
    lines = [
        f"{effects} ({result.kind}) in {result.precision}, {result.seconds:.3g} s",
        str(result.plan),
        "; ".join(part for part in (result.backend, graph) if part),
    ]
    return "\n".join([*lines, str(result.verify())] if result.precision in COARSE else lines)


@dataclass(frozen=True)
class PatchResult:
    """Effects of single patches.

    Attributes:
        effect: [prompt, layer, component, pos], metric(patched) - metric(base); never NaN, exactly 0 where `reason` is
            not 0. The component is a head for z and q, a key-value head for k and v, a neuron for mlp_post, else 1.
        reason: index into REASONS: why a patch has exactly no effect and was not run; 0 for those that were.
        layers, components, positions: what the axes of `effect` stand for.
        base, source: metric of the run that is patched into, and of the run that is patched from (None for ablations).
        drift: metric of the base run minus its value in the model's own 16-bit format; None for 32-bit weights. The
            engine runs such a model in float32.
        kind: what an effect is.
        backend: what computed it.
        graph: whether chunks were replayed as a CUDA graph, and how many; else why not.
        plan: chunks, floating-point operations and memory as predicted before the run.
        flops: floating-point operations as counted in the run, 2 per multiply-add of products and attention.
    """

    effect: Float[Tensor, "prompt layer component pos"]
    reason: Int[Tensor, "prompt layer component pos"]
    site: str
    layers: tuple[int, ...]
    components: tuple[int, ...]
    positions: tuple[int, ...]
    base: Float[Tensor, "prompt"]
    source: Float[Tensor, "prompt"] | None
    direction: str
    ablation: str
    precision: str
    backend: str
    plan: Plan
    flops: int
    seconds: float
    drift: Float[Tensor, "prompt"] | None = None
    graph: str = "no graph: full forwards"
    kind: str = "single site, everything downstream recomputed"
    patches: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        """What was done, by what and at which cost; in tf32 and bf16 with the error of `verify`, which reruns some."""
        ran = int((self.reason == 0).sum())
        return described(self, f"{ran:,} effects of {self.site}", self.graph)

    @property
    def normalised(self) -> Float[Tensor, "prompt layer component pos"]:
        """Effect as a share of metric(source) - metric(base): 1 where one patch gives the whole difference.

        NaN for prompts where the two runs have the same metric, and for ablations, which have no other run.
        """
        whole = torch.full_like(self.base, torch.nan) if self.source is None else self.source - self.base
        whole = torch.where(whole == 0, torch.nan, whole)
        return self.effect / whole[:, None, None, None]

    @property
    def skipped(self) -> dict[str, int]:
        """How many effects are exactly zero without having been run, by reason."""
        counts = torch.bincount(self.reason.flatten().long(), minlength=len(REASONS)).tolist()
        return {name: count for name, count in zip(REASONS, counts, strict=True) if name and count}

    def to_frame(self) -> "pd.DataFrame":
        """One row per (prompt, layer, component, pos) with the effect and the reason of a skipped zero."""
        import pandas as pd

        prompts = range(len(self.effect))
        names = ["prompt", "layer", "head" if self.site in HEADED else "component", "pos"]
        index = pd.MultiIndex.from_product([prompts, self.layers, self.components, self.positions], names=names)
        return pd.DataFrame(
            {
                "effect": self.effect.flatten().cpu().numpy(),
                "reason": [REASONS[i] for i in self.reason.flatten().tolist()],
            },
            index=index,
        ).reset_index()

    def verify(self, n: int = 32, seed: int = 0) -> Verification:
        """Rerun n random patches (for all prompts each) through plain hooks of the model, one forward per patch."""
        from circuits.patch_verify import verify

        return verify([self.checks()], n, seed)

    def checks(self) -> "Checks":
        """What `verify` can rerun."""
        from circuits.patch_verify import head_checks

        return head_checks(self)
