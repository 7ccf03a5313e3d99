"""What `interp patch` is asked for, checked before a run or torch is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import UnknownName, UsageError

HEADED = ("z", "q", "k", "v")
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
# What one effect belongs to, with the sites that can be asked for; the first is taken where none is named.
UNITS: dict[str, tuple[str, ...]] = {
    "head,position": HEADED,
    "layer,position": STREAM,
    "neuron,position": ("mlp_post",),
    "edge,position": (),
    "head": HEADED,
    "layer": STREAM,
    "edge": (),
}
FAMILIES = ("input", "state", "clock")
ABLATIONS = ("none", "zero", "mean", "resample")
DIRECTIONS = ("denoise", "noise")
METRICS = ("logit-diff", "log-prob", "kl", "accuracy")
PRECISIONS = ("fp32", "fp64", "tf32", "bf16")
COARSE = ("tf32", "bf16")
VERIFIED = 32  # effects that are rerun where a coarse precision was asked for and no number was named


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        unit: a key of UNITS.
        site: None for edges.
        direction: None for ablations, which act on the clean run.
        t: the step of the task, "all" of them, or None for all if there are not too many and else the middle one.
        step: the checkpoint; None for the newest.
    """

    unit: str
    site: str | None
    pairs: str
    length: int | None
    t: int | Literal["all"] | None
    ablation: str
    direction: str | None
    metric: str
    n: int
    precision: str
    seed: int
    verify: int
    step: int | None

    def options(self) -> dict[str, Any]:
        """Everything that decides the effects, for the key of the stored analysis."""
        return {name: value for name, value in vars(self).items() if name not in ("verify", "step")}


def request(
    *,
    by: str = "head,position",
    site: str | None = None,
    pairs: str = "input",
    length: int | None = None,
    t: str | None = None,
    ablation: str = "none",
    direction: str | None = None,
    metric: str = "logit-diff",
    n: int = 32,
    precision: str = "fp32",
    seed: int = 0,
    verify: int | None = None,
    checkpoint: str = "last",
) -> Request:
    """The request, from what stands on the command line.

    Raises:
        UsageError: naming the option that is wrong and what it can be.
    """
    unit = unit_of(by)
    known = (("pairs", pairs, FAMILIES), ("ablation", ablation, ABLATIONS), ("metric", metric, METRICS))
    for name, value, allowed in (*known, ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise UnknownName(f"--{name}", value, allowed)
    return Request(
        unit=unit,
        site=site_of(unit, site),
        pairs=pairs,
        length=length,
        t=step_of(t),
        ablation=ablation,
        direction=direction_of(direction, ablation, pairs),
        metric=metric,
        n=n,
        precision=precision,
        seed=seed,
        verify=verified(precision, verify),
        step=checkpoint_of(checkpoint),
    )


def unit_of(by: str) -> str:
    """The key of UNITS that a comma list means; a head or a neuron implies its layer.

    Raises:
        UsageError: for words and combinations without a meaning.
    """
    words = [word.strip() for word in by.split(",")]
    known = ("layer", "head", "position", "edge", "neuron")
    for word in words:
        if word not in known:
            raise UnknownName("word of --by", word, known)
    given = set(words) - ({"layer"} if {"head", "neuron"} & set(words) else set())
    unit = ",".join(sorted(given, key=lambda word: word == "position"))
    if unit == "position":
        raise UsageError(
            "--by position: names no activation; add layer, head, neuron or edge, as in --by head,position"
        )
    if unit not in UNITS:
        raise UsageError(f"--by {by}: expected {_either(UNITS)}")
    return unit


def site_of(unit: str, site: str | None) -> str | None:
    """The site to patch, which must be one that the unit has."""
    allowed = UNITS[unit]
    if site is None:
        return allowed[0] if allowed else None
    if not allowed:
        raise UsageError(f"--site {site}: an edge is named by its two ends and has no site; leave --site out")
    if site not in {one for sites in UNITS.values() for one in sites}:
        raise UnknownName("--site", site, sorted({one for sites in UNITS.values() for one in sites}))
    if site not in allowed:
        fitting = next(other for other, sites in UNITS.items() if site in sites and ("," in other) == ("," in unit))
        raise UsageError(
            f"--site {site}: with --by {unit} expected {_either(allowed)}; {site} goes with --by {fitting}"
        )
    return site


def direction_of(direction: str | None, ablation: str, pairs: str) -> str | None:
    """Which run is patched into; ablations have none.

    Raises:
        UsageError: for a direction that says nothing.
    """
    if direction is not None and direction not in DIRECTIONS:
        raise UnknownName("--direction", direction, DIRECTIONS)
    if ablation != "none":
        if direction is not None:
            raise UsageError(
                f"--direction {direction}: --ablation {ablation} acts on the clean run; leave one of them out"
            )
        return None
    if pairs != "clock":
        return direction or "denoise"
    if direction == "denoise":
        raise UsageError(
            "--direction denoise: the swapped answer of a clock pair is that of the clean run with one value of the "
            "donor; use --direction noise"
        )
    return "noise"


def verified(precision: str, verify: int | None) -> int:
    """How many effects to rerun; a coarse precision is never left unchecked."""
    return verify if verify is not None else VERIFIED if precision in COARSE else 0


def step_of(t: str | None) -> int | Literal["all"] | None:
    """The option --step."""
    if t is None or t == "all":
        return t
    if not t.isdecimal():
        raise UsageError(f"--step {t!r}: expected all, or a step of the task such as 3")
    return int(t)


def checkpoint_of(checkpoint: str) -> int | None:
    """The option --checkpoint; None for the newest."""
    if checkpoint == "last":
        return None
    if not checkpoint.isdecimal():
        raise UsageError(f"--checkpoint {checkpoint!r}: expected last, or a training step such as 5080")
    return int(checkpoint)


def _either(names: Sequence[str] | dict[str, Any]) -> str:
    *most, last = names
    return f"{'; '.join(most)}; or {last}" if any("," in name for name in names) else f"{', '.join(most)} or {last}"
