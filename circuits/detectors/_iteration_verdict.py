"""The verdict of the iteration-head detector, from statistic, causal checks and accuracy, in words."""

from dataclasses import dataclass

from circuits.detectors._iteration_carriers import BROUGHT, shared_roles
from circuits.detectors._iteration_interchange import INTERCHANGE_BAR
from circuits.detectors._iteration_scan import Sequences
from circuits.detectors.base import Carrier, CausalCheck, LengthAccuracy, NullSummary, Statistic, Verdict
from interp.hooks import HookedModel

ALPHA = 0.01
ARGMAX_BAR = 0.5
SOLVED = 0.99


def attends(summary: list[NullSummary], rows: list[Statistic]) -> bool:
    """True when the pair's joint mass is significant and its targets are the most attended keys at half the queries."""
    joint = next(row for row in summary if row.role == "joint")
    rates = argmax_rates(joint, rows)
    return significant(summary) and all(rate >= ARGMAX_BAR for rate in rates.values())


def significant(summary: list[NullSummary]) -> bool:
    """True when the joint mass reaches the level over its whole scan; rounding does not decide."""
    return next(row for row in summary if row.role == "joint").p_value <= ALPHA + 1e-12


def argmax_rates(joint: NullSummary, rows: list[Statistic]) -> dict[str, float]:
    """Role -> share of targets that are the most attended key of the pair's head, averaged over lengths."""
    rates = {}
    for role, component in zip(("clock", "reading"), joint.component.split("+"), strict=True):
        own = [row.argmax_rate.value for row in rows if (row.component, row.role) == (component, role)]
        rates[role] = sum(own) / len(own)
    return rates


@dataclass(frozen=True)
class Outcome:
    """A verdict with the reasons that kept a stronger one away."""

    verdict: Verdict
    solved: bool
    missing: list[str]


def decide(
    summary: list[NullSummary],
    rows: list[Statistic],
    checks: list[CausalCheck],
    lengths: list[LengthAccuracy],
    chance: float,
) -> Outcome:
    """Combine statistic, causal checks and accuracy into one verdict."""
    missing = []
    joint = next(row for row in summary if row.role == "joint")
    if not attends(summary, rows):
        missing.append(
            f"attention: joint mass {joint.observed:.2f} on the clock and reading targets, p = {joint.p_value:.3g} "
            f"(needs <= {ALPHA}); target is the most attended key at "
            + " and ".join(f"{rate:.2f} ({role})" for role, rate in argmax_rates(joint, rows).items())
            + f" of the queries (needs {ARGMAX_BAR})"
        )
    if failed := [_failed(check) for check in checks if not check.passed]:
        missing.append("causal checks that did not pass: " + "; ".join(failed))
    if not checks:
        missing.append("no causal check was run")
    unsolved = [row for row in lengths if row.sequence.value < SOLVED]
    solved = not unsolved
    step = sum(row.step.value for row in lengths) / len(lengths)
    if unsolved:
        worst = min(lengths, key=lambda row: (row.sequence.value, -row.length))
        missing.append(
            f"accuracy: {len(unsolved)} of {len(lengths)} lengths below {SOLVED:.0%}; lowest "
            f"{worst.sequence.value:.3f} at length {worst.length} (n = {worst.n}); step accuracy {step:.3f}, "
            f"without input {chance:.3f}"
        )
    if attends(summary, rows) and checks and all(check.passed for check in checks):
        return Outcome("iteration head", solved, missing)
    if solved and (checks or not attends(summary, rows)):
        return Outcome("solved without the textbook head", True, missing)
    if attends(summary, rows):
        return Outcome("candidate", solved, missing)
    return Outcome("not solved" if step > chance + 0.1 else "none", False, missing)


def _failed(check: CausalCheck) -> str:
    """Which check did not pass, with its number."""
    e = check.effect
    number = f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}], n = {e.n}" if check.passed is not None else "not tested"
    return f"{check.name} of the {check.role} head {check.component} ({number})"


def statistic_pair(summary: list[NullSummary]) -> dict[str, str]:
    """Heads named by the statistic alone."""
    joint = next(row for row in summary if row.role == "joint")
    clock, reading = joint.component.split("+")
    return {"clock": clock, "reading": reading}


def headline(
    outcome: Outcome,
    heads: dict[str, str],
    summary: list[NullSummary],
    checks: list[CausalCheck],
    carried: list[Carrier],
    checkpoints: int = 1,
) -> str:
    """The verdict in one sentence, with the number that carries it.

    Args:
        checkpoints: for how many looks p is corrected.
    """
    joint = next(row for row in summary if row.role == "joint")
    p = f"p = {joint.p_value:.3g}, smallest possible {joint.smallest_p:.3g}, n = {joint.n} null models"
    p += f", corrected for {checkpoints} checkpoints" if checkpoints > 1 else ""
    swaps = {c.role: c.effect for c in checks if c.name == "interchange"}
    if outcome.verdict == "iteration head":
        read, clock = swaps["reading"], swaps["clock"]
        return (
            f"Iteration head found: clock {heads['clock']}, reading {heads['reading']}; interchange accuracy "
            f"{read.value:.3f} (reading, n = {read.n}) and {clock.value:.3f} (clock, n = {clock.n}); {p}"
            + ("." if outcome.solved else "; the task is not solved at every length.")
        )
    if outcome.verdict == "candidate":
        return (
            f"Candidate only: {heads['clock']} and {heads['reading']} attend as claimed ({p}), not confirmed causally."
        )
    if outcome.verdict == "solved without the textbook head":
        return f"Solved without the textbook iteration head{instead(carried)}; {p}."
    if outcome.verdict == "not solved":
        return f"Not solved, and no iteration head ({p})."
    return f"No iteration head ({p})."


def instead(carried: list[Carrier]) -> str:
    """What carries the two roles instead, as far as interventions show it; empty where nothing was looked for."""
    if not carried:
        return ""
    roles = shared_roles(carried)
    parts = [f"{heads} {'carry' if '+' in heads else 'carries'} the {BROUGHT[r]}" for r, heads in roles.items()]
    parts += [f"no head or group of heads carries the {BROUGHT[role]}" for role in BROUGHT if role not in roles]
    return ": " + ", ".join(parts)


def limits(model: HookedModel, sequences: Sequences) -> list[str]:
    """What the reader must not conclude from this detection."""
    cfg = model.cfg
    found = [
        "Patching is single-site and teacher-forced; it says nothing of interactions between components.",
        f"Interchange bar {INTERCHANGE_BAR}, significance level {ALPHA}; solved means {SOLVED:.0%} of the sequences of "
        "every length.",
    ]
    found.append(
        "That the residual stream carries s_t and the MLP applies the update is not tested by an intervention."
    )
    found.append("The first held-out sequences of each length also decided when training stopped.")
    if cfg.n_layers * cfg.n_heads < 4:
        found.append("No random-head control is possible: it takes at least two heads besides the two tested.")
    small = [length for length, tokens in sequences.items() if len(tokens) < 30]
    if small:
        found.append(f"Lengths {small} have fewer than 30 distinct held-out sequences.")
    return found
