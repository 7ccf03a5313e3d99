"""Exact effects of a circuit's edges as they are kept in its file, in units of the metric; no torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from interp.config import Frozen

RANKS = (
    "the mean of what the rankings give, each divided by its largest, and 1 more in size for kept edges, so that they "
    "come first"
)
RANK_SCORE = f"rank score, without a unit: {RANKS}"
KIND = "metric lost when this edge alone is left out of the clean run, everything downstream recomputed"


class EdgeEffect(Frozen):
    """One kept edge; of a circuit by position one place of it."""

    edge: str = Field(description="sender->receiver, as L0.H1->L1.H3.q")
    place: tuple[int, int] | None = Field(None, description="[position of the sender, position of the reader]")
    value: float = Field(description="mean over held-out prompts; positive where leaving the edge out costs")
    low: float
    high: float


class EdgeEffects(Frozen):
    """What leaving out single kept edges costs on the held-out prompts; the effects of several do not add up."""

    kind: str = KIND
    unit: str = Field(description="the metric")
    n: int = Field(description="sequences")
    n_prompts: int
    method: str = "bootstrap over sequences"
    level: float = 0.95
    measured: int = Field(description="kept edges with an effect; all, or those with the largest rank scores")
    of: int = Field(description="kept edges")
    edges: list[EdgeEffect] = Field(description="largest first")

    @property
    def counted(self) -> str:
        """How many of how many are measured."""
        return "all" if self.measured == self.of else f"{self.measured:,} of {self.of:,}"


def by_place(effects: Mapping[str, Any] | None) -> dict[tuple[str, tuple[int, int] | None], tuple[float, float, float]]:
    """(value, low, high) by edge and place, from the JSON of `EdgeEffects`; empty for none."""
    rows = [] if effects is None else effects["edges"]
    return {
        (one["edge"], None if one.get("place") is None else tuple(one["place"])): (
            one["value"],
            one["low"],
            one["high"],
        )
        for one in rows
    }
