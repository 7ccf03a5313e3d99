"""How discoveries are shown on a terminal."""

from rich.table import Table
from rich.text import Text

from circuits.cli_text import estimate
from circuits.discovery_result import DiscoveryFile
from circuits.outputs import CircuitOutput
from circuits.trajectory import Trajectory
from interp.console import out, say, visible

TOP_EDGES = 25
SHADES = " ▁▂▃▄▅▆▇█"


def show_discovery(output: CircuitOutput) -> None:
    """Headline, behaviour, faithfulness, controls, tests, edges and what was left out."""
    found = output.discovery
    say(found.headline)
    gate = found.gate
    level = "" if gate.accuracy.level is None else f" ({100 * gate.accuracy.level:g} % interval)"
    say(f"behaviour: accuracy {estimate(gate.accuracy)}{level}; without a look at the prompt {gate.constant:.3f}")
    if found.circuit is not None:
        about = found.circuit.provenance
        say(f"pairs: {about.pairs}; metric: {about.metric}; {about.ablation} ablation; ranked by {about.method}")
        say(f"nodes: {', '.join(found.nodes)}")
    if found.faithfulness is not None:
        _faithfulness(found)
    if found.controls:
        out().print(_controls(found))
    if found.tests:
        out().print(_tests(found))
    for role in found.roles:
        other = f" of {role.other}" if role.other else ""
        given = "" if role.given is None else f", {role.given:+.1%} with {role.other} out or through it"
        say(f"{role.node}: {role.role}{other}: alone {role.alone:+.1%} of the metric{given} (n={role.n})")
    if found.stability is not None and found.stability.overlap is not None:
        again = found.stability
        say(
            f"stability: {again.reruns} whole searches on resampled prompts keep {min(again.sizes)} to "
            f"{max(again.sizes)} edges; overlap with this circuit {again.overlap.value:.2f} "
            f"[{again.overlap.low:.2f}, {again.overlap.high:.2f}]"
        )
    if found.circuit is not None:
        out().print(_edges(found))
    for text in found.notes:
        say(f"note: {text}")
    for text in found.limits:
        say(f"limit: {text}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.timing.items())
    say(f"processor time: {spent}; peak memory {found.peak_mib:,.0f} MiB")


def _faithfulness(found: DiscoveryFile) -> None:
    one = found.faithfulness
    say(
        f"faithfulness on held-out prompts: {estimate(one.retained)}; metric {one.metric_circuit:.3f} of "
        f"{one.metric_model:.3f} (all ablated: {one.metric_ablated:.3f}); KL {one.kl:.3g} nats; accuracy "
        f"{one.accuracy_circuit:.3f} of {one.accuracy_model:.3f}"
    )
    if one.cmd is not None:
        beats = " (above 1: circuits that beat the model)" if one.cpr is not None and one.cpr > 1 else ""
        say(f"MIB: CMD {one.cmd:.3f} (0 is best), beside it CPR {one.cpr:.3f}{beats}")
    if one.curve:
        largest = max(1.0, max(point.faithfulness for point in one.curve))
        bars = "".join(SHADES[max(0, min(8, round(8 * point.faithfulness / largest)))] for point in one.curve)
        first, last = one.curve[0], one.curve[-1]
        say(f"size against faithfulness, {first.size} to {last.size} edges: {bars}")


def _controls(found: DiscoveryFile) -> Table:
    table = Table("control", "n", "mean kept", "largest", "matched", "shared", "p", "what", title="Controls, same size")
    for row in found.controls:
        cells = [row.name, str(row.n), *(_share(v) for v in (row.mean, row.largest, row.matched, row.shared))]
        table.add_row(*cells, "-" if row.p_value is None else f"{row.p_value:.3g}", Text(visible(row.what)))
    return table


def _tests(found: DiscoveryFile) -> Table:
    table = Table("test", "hypothesis", "statistic", "p", "n", "reading", title="Tests (Shi et al. 2024)")
    for row in found.tests:
        p = "-" if row.p_value is None else f"{row.p_value:.3g}"
        table.add_row(row.name, row.hypothesis, f"{row.statistic:.3g}", p, str(row.n), Text(visible(row.reading)))
    return table


def _edges(found: DiscoveryFile) -> Table:
    frame = found.circuit.circuit().to_frame()
    kept = frame[frame.kept]
    shown = kept.head(TOP_EDGES)
    table = Table("edge", "score", "kept again", title=f"{len(shown)} of {len(kept)} kept edges")
    for edge, score, again in zip(shown.edge, shown.score, shown.frequency, strict=True):
        table.add_row(Text(visible(edge)), f"{score:+.3f}", "-" if again != again else f"{again:.0%}")
    return table


def show_trajectory(output: CircuitOutput) -> None:
    """One row per checkpoint, then births and deaths of edges."""
    story = output.trajectory
    table = Table(
        "step",
        "verdict",
        "accuracy",
        "edges",
        "kept share",
        "overlap before",
        "two halves",
        "changed",
        title=output.model,
    )
    for point in story.points:
        kept = "-" if point.retained is None else f"{point.retained.value:.3f}"
        edges = f"{point.n_kept} of {point.n_live}" if point.n_live else "-"
        changed = {True: "yes", False: "no", None: "-"}[point.changed]
        halves = (_number(point.overlap), _number(point.split_half))
        table.add_row(f"{point.step:,}", point.verdict, f"{point.accuracy:.3f}", edges, kept, *halves, changed)
    out().print(table)
    for one in story.failed:
        say(f"step {one.step:,} failed: {one.reason}")
    if story.emerged is None:
        say("no emergence: no three checkpoints in a row have the verdict 'circuit'")
    else:
        say(f"circuit from step {story.emerged:,} on, three checkpoints in a row")
    say(story.note)
    _lives(story)


def _lives(story: Trajectory) -> None:
    born = [edge for edge in story.edges if edge.born is not None]
    if not born:
        return
    more = f", {TOP_EDGES} shown" if len(born) > TOP_EDGES else ""
    title = f"{len(born)} edges that pass at three checkpoints in a row{more}"
    table = Table("edge", "born", "died", "passes", title=title)
    for edge in born[:TOP_EDGES]:
        died = "-" if edge.died is None else f"{edge.died:,}"
        table.add_row(Text(visible(edge.edge)), f"{edge.born:,}", died, str(len(edge.present)))
    out().print(table)
    say("an edge passes where the verdict is 'circuit' and the circuit holds it; it dies where three are without it")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
