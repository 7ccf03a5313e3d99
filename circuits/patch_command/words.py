"""What is said about the patches of a run, in the same words on the terminal, in the page and in the figure."""

from circuits.patch_command.cells import Cell, Cells, of_runs, resolution, strongest
from circuits.patch_command.panels import left_out, number, words
from circuits.patch_command.planning import RunPlan
from circuits.patch_command.run import EVERYWHERE, RunPatches
from circuits.report.heatmap import Legend
from circuits.report.numbers import count, sample
from probes.intervals import Estimate

TOP = 10
METRICS = {
    "logit-diff": "logit of the clean answer - logit of the swapped answer",
    "log-prob": "log-probability (nats) of the clean answer",
    "kl": "KL(base run || patched run) in nats",
    "accuracy": "share of prompts where the clean answer has the largest logit",
}
PAIRS = {
    "input": "the input that the step reads differs",
    "state": "the state that the step reads differs",
    "clock": "the donor is a sequence of another length, at another step",
}
ABLATIONS = {
    "zero": "zero",
    "mean": "its mean over prompts and positions",
    "resample": "its value in another prompt",
}


def heading(found: RunPatches | RunPlan) -> str:
    """What was patched, in one line."""
    request = found.request
    unit = {"position": "at each position"}.get(request.unit.rpartition(",")[2], f"at {EVERYWHERE}")
    site = "" if request.site is None else f", site {request.site}"
    return f"Patching each {request.unit.partition(',')[0]} {unit}{site}: {found.run}, checkpoint {count(found.step)}"


def facts(found: RunPatches) -> list[tuple[str, str]]:
    """Name and value of everything that an effect depends on."""
    request = found.request
    runs = of_runs(found)
    lines = [
        ("Task", f"{found.task}, length {found.length}, {_steps(found)}"),
        ("Pairs", f"{request.pairs} ({PAIRS[request.pairs]}), {_prompts(found)}; {_right(runs['right'])}"),
        ("Intervention", f"{intervention(found)}; {found.kind}"),
        ("Metric", f"{METRICS[request.metric]}, where the step's state is written"),
        ("Runs", "; ".join(f"{name} run {_estimate(runs[name])}" for name in ("base", "source") if name in runs)),
        ("Plan", f"{found.plan}; {request.precision}, {found.backend}"),
    ]
    if least := max(resolution(found, step) for step in found.steps):
        rounding = f"effects of at most {number(least)} may be rounding in {request.precision} and count as 0"
        lines.append(("Resolution", rounding))
    if found.verification is not None:
        lines.append(("Check", str(found.verification)))
    return lines


def intervention(found: RunPatches) -> str:
    """Direction or ablation."""
    request = found.request
    if request.ablation != "none":
        return f"{request.ablation} ablation: in the clean run an activation becomes {ABLATIONS[request.ablation]}"
    if request.direction == "denoise":
        return "denoise: an activation of the donor's run becomes that of the clean run"
    return "noise: an activation of the clean run becomes that of the donor's run"


def reading() -> str:
    """How to read an effect."""
    return (
        "An effect is the metric with this one intervention minus the metric of the base run, as a mean over prompts "
        "with its 95 % bootstrap interval. The intervals are those of single cells: of a hundred cells without an "
        "effect about five leave zero out. Single effects say nothing of interactions."
    )


def caption(found: RunPatches, cells: Cells) -> str:
    """What stands below the heatmap."""
    said = "Point at a cell for its effect, interval, n and, where it has one, its share of the whole difference."
    return " ".join(part for part in (said, left_out(found, cells)) if part)


def legend(found: RunPatches) -> Legend:
    """What the colours of the heatmap mean."""
    neutral = "95 % interval covers 0" + (", or not resolved" if found.request.metric != "accuracy" else "")
    return Legend(f"change of: {METRICS[found.request.metric]}", "raises it", "lowers it", neutral)


def table(found: RunPatches, cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the largest effects."""
    has_place, best = found.request.unit.endswith("position"), strongest(cells, TOP)
    has_share = any(cell.share is not None for cell in best)
    names = ["step", "component", *(["position"] if has_place else []), "effect (95 % interval)", "n"]
    return names + (["of the whole difference"] if has_share else []), [
        _line(cell, has_place, has_share) for cell in best
    ]


def _line(cell: Cell, has_place: bool, has_share: bool) -> list[str]:
    place = [f"{cell.place} ({cell.pos})"] if has_place else []
    part = [] if not has_share else [words(cell.share) if cell.share is not None else ""]
    return [f"t={cell.t}", cell.component, *place, words(cell.effect), str(cell.effect.n), *part]


def _steps(found: RunPatches) -> str:
    """The steps that were patched, and those that were not."""
    ts = [step.t for step in found.steps]
    said = f"step t={ts[0]}" if len(ts) == 1 else f"steps t={ts[0]} to {ts[-1]}"
    written = (
        "step t writes s_{t+1}" if found.chain_of_thought else f"step t reads x_{{t+1}} and writes s_{found.length}"
    )
    said += f", where {written}"
    if found.left_out:
        said += f" (the middle one; --step all for the other {len(found.left_out)})"
    if found.refused:
        said += f"; no such pairs at t={', '.join(map(str, found.refused))}"
    return said


def _prompts(found: RunPatches) -> str:
    counts = [len(step.base) for step in found.steps]
    if min(counts) == max(counts):
        return f"{counts[0]} prompts" + (" at each step" if len(counts) > 1 else "")
    return f"{min(counts)} to {max(counts)} prompts at each step"


def _right(right: Estimate) -> str:
    return f"the clean run answers right on {_estimate(right)}"


def _estimate(estimate: Estimate) -> str:
    return f"{words(estimate)}, {sample(estimate.n)}"
