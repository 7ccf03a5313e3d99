"""How discoveries are shown on a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from circuits.circuit_effects import RANK_SCORE
from circuits.cli_text import estimate
from circuits.discovery_result import CurvePoint, DiscoveryFile
from circuits.outputs import CircuitOutput
from circuits.trajectory import Trajectory, TrajectoryPoint
from interp.console import out, say, visible
from probes.percent import counted, percent, percents

TOP_EDGES = 25
SHADES = " ▁▂▃▄▅▆▇█"
SHORT = {
    "no behaviour to explain": "no behaviour",
    "no faithful circuit": "no circuit",
    "too few prompts to tell": "too few prompts",
}
BARS = 40  # of a curve
REACHED = (0.5, 0.9, 0.95)  # shares of the metric whose smallest size is named


def told(text: str) -> None:
    """Print one line of a result: broken between words in a terminal, whole in a file or pipe."""
    if out().is_terminal:
        out().print(Text(visible(text)))
    else:
        say(text)


def show_discovery(output: CircuitOutput) -> None:
    """Headline, behaviour, faithfulness, controls, tests, edges and what was left out."""
    found = output.discovery
    told(found.headline)
    gate = found.gate
    level = "" if gate.accuracy.level is None else f", {100 * gate.accuracy.level:g} % interval"
    told(
        f"behaviour: share of single answers right {estimate(gate.accuracy)} (each read position by itself{level}); "
        f"without a look at the prompt {gate.constant:.3f}"
    )
    if found.circuit is not None:
        about = found.circuit.provenance
        told(
            f"pairs: {about.pairs}; metric: {about.metric}; {about.ablation} ablation; "
            f"chosen along the ranking by {about.method}"
        )
        told(f"nodes: {', '.join(found.nodes)}")
    if found.faithfulness is not None:
        _faithfulness(found)
    if found.controls:
        _controls(found)
    if found.tests:
        _tests(found)
    _roles(found)
    if found.stability is not None and found.stability.overlap is not None:
        again = found.stability
        told(
            f"stability: {again.reruns} whole searches on resampled prompts keep {min(again.sizes)} to "
            f"{max(again.sizes)} edges; overlap with this circuit {again.overlap.value:.2f} "
            f"[{again.overlap.low:.2f}, {again.overlap.high:.2f}]"
        )
    if found.circuit is not None:
        _edges(found)
    for text in found.notes:
        told(f"note: {text}")
    for text in found.limits:
        told(f"limit: {text}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.timing.items())
    told(f"processor time: {spent}; peak memory {found.peak_mib:,.0f} MiB")


def _faithfulness(found: DiscoveryFile) -> None:
    one = found.faithfulness

    def of(name: str, form: str = ".3f") -> str:
        value, known = format(getattr(one, name), form), one.intervals.get(name)
        return value if known is None else f"{value} [{known.low:{form}}, {known.high:{form}}]"

    n = f"n={one.retained.n}, {'95 % intervals' if one.intervals else 'no intervals are stored for these'}"
    told(f"faithfulness on held-out prompts: {estimate(one.retained)}")
    told(
        f"metric {of('metric_circuit')} of {of('metric_model')} (all ablated: {of('metric_ablated')}); "
        f"KL {of('kl', '.3g')} nats; single answers right {of('accuracy_circuit')} of {of('accuracy_model')} ({n})"
    )
    if one.cmd is not None:
        beats = " (above 1: circuits that beat the model)" if one.cpr is not None and one.cpr > 1 else ""
        cpr = "" if one.cpr is None else f", beside it CPR {of('cpr')}{beats}"
        told(f"MIB: CMD {of('cmd')} (0 is best){cpr} ({n})")
    if one.curve:
        told(_curve(one.curve))


def _roles(found: DiscoveryFile) -> None:
    """A line for each role, in shares of the metric that are lost, and below them what the intervals are."""
    for role in found.roles:
        between, alone = f"[{role.low:.1%}, {role.high:.1%}]", _within(role.alone, role.alone_low, role.alone_high)
        given = "" if role.given is None else _within(role.given, role.given_low, role.given_high)
        if role.role == "backup" and role.given is not None:
            said = f" of {role.other}: ablating it costs {alone} of the metric alone and {given} while {role.other} is "
            said += f"ablated: {role.given - role.alone:.1%} {between} more"
        elif role.role == "relay":
            said = (
                f" of {role.other}: ablating it costs {alone} of the metric, leaving out only what {role.other} writes "
            )
            said += f"into its values {given}: {between} more than a relay needs"
        else:
            said = f": ablating it costs {role.alone:.1%} {between} of the metric, which rises without it"
        told(f"{role.node}: {role.role}{said} (n={role.n})")
    if found.roles:
        told("roles: n sequences of the prompts that rank edges; 95 % intervals, widened for the number of tests")


def _within(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.1%}" if low is None or high is None else f"{value:.1%} [{low:.1%}, {high:.1%}]"


def _curve(curve: Sequence[CurvePoint]) -> str:
    """Bars of the share kept by size, and the sizes from which on a share is kept."""
    largest = max(1.0, max(point.faithfulness for point in curve))
    places = sorted({round(len(curve) ** (index / (BARS - 1))) - 1 for index in range(BARS)})  # evenly on a log axis
    heights = [round(8 * curve[place].faithfulness / largest) for place in places]
    bars = "".join(SHADES[max(0, min(8, height))] for height in heights)
    sizes = [(share, next((point.size for point in curve if point.faithfulness >= share), None)) for share in REACHED]
    reached = ", ".join(f"{share:.0%} with {size:,}" for share, size in sizes if size is not None)
    said = f"kept by the top edges of the ranking, {curve[0].size:,} to {curve[-1].size:,} on a log axis: |{bars}|"
    return said + (f" {reached}" if reached else "")


def _controls(found: DiscoveryFile) -> None:
    """Numbers in a table that fits 80 columns, and below it what each control is."""
    table = Table("control", "n", "mean kept", "largest", "matched", "shared", "p", title="Controls, same size")
    for row in found.controls:
        cells = [row.name, str(row.n), *(_share(v) for v in (row.mean, row.largest, row.matched, row.shared))]
        told_p = row.p_value is not None and not row.only_itself
        table.add_row(*cells, f"{row.p_value:.3g}" if told_p else "\u2013")
    out().print(table)
    told(
        "n: circuits run; mean kept and largest: of the metric kept by them; matched: edges with a counterpart of the "
        "same type; shared: edges of the found circuit that they hold too, both means over the n"
    )
    for row in found.controls:
        told(f"{row.name}{' (the claim rests on it)' if row.headline else ''}: {row.described}")


def _tests(found: DiscoveryFile) -> None:
    """Numbers in a table, and below it what is asked and what the answer means."""
    table = Table("test", "statistic", "p", "n", title="Tests (Shi et al. 2024)")
    for row in found.tests:
        p = "-" if row.p_value is None else f"{row.p_value:.3g}"
        table.add_row(row.name, f"{row.statistic:.3g}", p, str(row.n))
    out().print(table)
    for row in found.tests:
        told(f"{row.name}, null: {row.hypothesis}; {row.reading}")


def _edges(found: DiscoveryFile) -> None:
    """Kept edges, large effects first, and below them what the columns are."""
    frame, effects = found.circuit.circuit().to_frame(), found.circuit.effects
    kept = frame[frame.kept]
    shown = kept.head(TOP_EDGES)
    columns = ("edge", *(() if effects is None else ("effect",)), "rank score", "kept again")
    table = Table(*columns, title=f"{len(shown)} of {len(kept)} kept edges")
    for row in shown.itertuples():
        effect = "not measured" if row.effect != row.effect else f"{row.effect:.3f} [{row.low:.3f}, {row.high:.3f}]"
        again = "-" if row.frequency != row.frequency else f"{row.frequency:.0%}"
        table.add_row(Text(visible(row.edge)), *(() if effects is None else (effect,)), f"{row.score:+.3f}", again)
    out().print(table)
    if effects is not None:
        told(
            f"effect: {effects.kind}; in units of the metric, on {effects.n} held-out sequences, "
            f"{100 * effects.level:g} % intervals; measured for {effects.counted} kept edges"
        )
    told(RANK_SCORE)


def show_trajectory(output: CircuitOutput) -> None:
    """One row per checkpoint, then births and deaths of edges."""
    story = output.trajectory
    columns = ("step", "verdict", "answers right %", "edges", "metric kept %", "overlap", "band", "changed")
    table = Table(*columns, title=_title(output.model, story.points))
    for point, band in zip(story.points, story.bands(), strict=True):
        right = point.accuracy_interval
        right = percent(point.accuracy) if right is None else percents(right.value, right.low, right.high)
        kept = point.retained
        kept = "-" if kept is None else percents(kept.value, kept.low, kept.high, 1)
        edges = f"{point.n_kept}/{point.n_live}" if point.n_live else "-"
        changed = {True: "yes", False: "no", None: "-"}[point.changed]
        verdict = SHORT.get(point.verdict, point.verdict)
        table.add_row(f"{point.step:,}", verdict, right, edges, kept, _number(point.overlap), _number(band), changed)
    out().print(table)
    for text in LEGEND:
        told(text)
    for one in story.failed:
        told(f"step {one.step:,} failed: {one.reason}")
    if story.emerged is None:
        told("no emergence: no three checkpoints in a row have the verdict 'circuit'")
    else:
        told(f"circuit from step {story.emerged:,} on, three checkpoints in a row")
    told(story.note)
    _lives(story)


LEGEND = (
    "answers right: of the model, each read position by itself, such as one state of a task's sequence; interp train "
    "and interp detect count whole sequences, at the worst length",
    "edges: kept of live ones; overlap: share of the edges of this and the last checkpoint's circuit that both hold",
    "band: what overlap is compared with, the lower of two numbers, of this checkpoint and of the one before; each is "
    "the overlap of the circuits of two halves of the prompts, from one random division; changed: overlap is below it. "
    "None of them has an interval",
)


def _title(model: str, points: Sequence[TrajectoryPoint]) -> str:
    """Name of the model, what the brackets are, and n where the stored points have it."""
    right = [point.accuracy_interval.n for point in points if point.accuracy_interval is not None]
    kept = [point.retained.n for point in points if point.retained is not None]
    parts = [
        f"{name}: {level} % intervals, {counted(ns)}"
        for name, level, ns in (("answers", 99.9, right), ("metric", 95, kept))
        if ns
    ]
    return visible(f"{model}, on held-out sequences ({'; '.join(parts)})" if parts else model)


def _lives(story: Trajectory) -> None:
    born = [edge for edge in story.edges if edge.born is not None]
    if not born:
        return
    more = f", {TOP_EDGES} shown" if len(born) > TOP_EDGES else ""
    table = Table("edge", "born", "died", "passes", title=f"{len(born)} edges were born{more}")
    for edge in born[:TOP_EDGES]:
        died = "-" if edge.died is None else f"{edge.died:,}"
        table.add_row(Text(visible(edge.edge)), f"{edge.born:,}", died, str(len(edge.present)))
    out().print(table)
    told(
        "an edge passes where the verdict is 'circuit' and the circuit holds it; born: the first of three passes in a "
        "row; died: the first of three checkpoints in a row without it"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
