"""What the Circuit view shows of stored discoveries: words, drawings, lives of edges. No Streamlit, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.report.circuit_drawn import Drawn, drawn
from circuits.report.circuit_positions import fits
from circuits.report.circuit_svg import circuit_svg, extent
from circuits.stored import STORY, StoredCircuit, choose, stored_circuits
from interp.errors import InterpError, StoreError
from interp.run import Run

VERDICTS = {
    "circuit": (
        "green",
        "Faithful on held-out prompts, and better than random circuits of the same number of edges; see the controls.",
    ),
    "candidate": ("orange", "Something that a circuit must have is missing; the headline says what."),
    "no faithful circuit": ("gray", "No small set of edges keeps enough of the behaviour."),
    "no behaviour to explain": ("gray", "The model does not do the task here, so there is no circuit to look for."),
    "too few prompts to tell": ("gray", "Even a perfect result would not pass with so few sequences; give more."),
}
AGAIN = "run `interp circuit --fresh` again"
TASK_LENGTH = 8  # `circuits.subject.DEFAULT_LENGTH`, which loads torch


@dataclass(frozen=True)
class Frame:
    """One checkpoint: its drawing, from `circuit_svg`, and what stands beside the slider."""

    step: int
    svg: str
    words: str


@dataclass(frozen=True)
class Series:
    """Discoveries of one kind by checkpoint, of each step the one that `interp report circuit` takes."""

    found: tuple[StoredCircuit, ...]

    @property
    def steps(self) -> list[int]:
        """Checkpoints with a discovery."""
        return [one.step for one in self.found]

    def at(self, step: int) -> StoredCircuit:
        """That of one checkpoint."""
        return next(one for one in self.found if one.step == step)


def series_of(run: Run) -> dict[str, Series]:
    """Stored discoveries by "whole" (without positions) and "by position"; a kind that has none is left out.

    Raises:
        StoreError: if one of them is damaged; the message names the file.
    """
    stored = stored_circuits(run)
    for one in stored:
        _checked(run, one)
    steps = sorted({one.step for one in stored})
    kinds = {name: [choose(stored, step, name != "whole") for step in steps] for name in ("whole", "by position")}
    found = {name: tuple(one for one in chosen if one is not None) for name, chosen in kinds.items()}
    return {name: Series(chosen) for name, chosen in found.items() if chosen}


def _checked(run: Run, one: StoredCircuit) -> None:
    """Raise StoreError where a key that is read here has another kind."""
    kinds = {"verdict": str, "headline": str, "gate": dict, "n_kept": int, "n_live": int, "controls": list}
    wrong = [name for name, kind in kinds.items() if type(one.data.get(name)) is not kind]
    if wrong:
        where = f"{run.name}/analysis/{one.key}.json"
        raise StoreError(f"{where}: {wrong[0]}: expected {kinds[wrong[0]].__name__}; {AGAIN}")


def has_columns(run: Run, series: Series) -> bool:
    """Whether a circuit of the series is by position and has room for a column for each.

    Raises:
        StoreError: as `frames_of`.
    """
    shown = [_drawn(run, one) for one in series.found if one.by_position]
    return any(data is not None and fits(data) for data in shown)


def frames_of(run: Run, series: Series, columns: bool = False) -> list[Frame]:
    """A drawing of each checkpoint on one scale of widths; none where no checkpoint has a circuit.

    Args:
        columns: a column for each position, with the words of a frame saying where there is no room for them; else all
            positions of an edge as one, with the edges of other checkpoints dotted.

    Raises:
        StoreError: if a circuit cannot be drawn; the message names the file.
    """
    known = {one.step: _drawn(run, one) for one in series.found}
    shown = [data for data in known.values() if data is not None]
    scale = extent(shown) if shown else (0.0, 0.0)
    by_place = extent([data for data in shown if fits(data)], by_place=True) if columns else scale
    union = sorted({name for data in shown for name in data.pooled})
    with_circuit = next((one for one in series.found if known[one.step] is not None), None)
    if with_circuit is None:
        return []
    empty = with_circuit.data["circuit"] | {"edges": [], "n_kept": 0, "faithfulness": None}
    frames = []
    for one in series.found:
        title = f"{run.name}, step {one.step:,}: {one.data['verdict']}"
        circuit = empty if known[one.step] is None else one.data["circuit"]
        words = frame_words(one)
        if columns and fits(drawn(circuit)):
            svg = circuit_svg(circuit, positions="columns", scale=by_place, styled=False, title=title)
        else:
            svg = circuit_svg(circuit, scale=scale, union=union, styled=False, title=title)
            words += ", too large for a column for each position" if columns else ""
        frames.append(Frame(one.step, svg, words))
    return frames


def _drawn(run: Run, one: StoredCircuit) -> Drawn | None:
    """What is drawn of a circuit, tried once, so that a damaged one is told by its name."""
    if one.data.get("circuit") is None:
        return None
    try:
        circuit_svg(one.data["circuit"])
        return drawn(one.data["circuit"])
    except (InterpError, LookupError, TypeError, ValueError, AttributeError) as error:
        where = f"{run.name}/analysis/{one.key}.json"
        raise StoreError(f"{where}: the circuit cannot be drawn ({type(error).__name__}: {error}); {AGAIN}") from error


def frame_words(one: StoredCircuit) -> str:
    """Verdict and size in a few words."""
    size = f", {one.data['n_kept']} of {one.data['n_live']} live edges" if one.data.get("circuit") else ""
    return f"{one.data['verdict']}{size}"


def facts(one: StoredCircuit) -> list[tuple[str, str]]:
    """Name and value of the numbers that decide, each with its interval and n."""
    data = one.data
    said = [("of single answers right without ablation", spread(data["gate"]["accuracy"]))]
    found = data.get("faithfulness")
    if found is not None:
        said.append(("of the metric kept by the circuit", spread(found["retained"])))
        right = (found.get("intervals") or {}).get("accuracy_circuit")
        alone = f"{found['accuracy_circuit']:.1%}, n = {found['retained']['n']}, no interval stored"
        said.append(("of single answers right with the circuit alone", alone if right is None else spread(right)))
        said.append(("kept edges", f"{data['n_kept']} of {data['n_live']} live ones"))
    return said


def default_length(run: Run | None) -> int | str:
    """Inputs of a task's prompts where none are asked for: 8, or the longest where that is shorter."""
    longest = None if run is None else run.config.task_params.get("max_length")
    return min(TASK_LENGTH, longest) if isinstance(longest, int) else f"{TASK_LENGTH}, or the longest where shorter"


def spread(interval: Mapping[str, Any]) -> str:
    """Share with interval, its level where it is stored, and n."""
    value, low, high = (float(interval[name]) for name in ("value", "low", "high"))
    level = f", {100 * float(interval['level']):.4g} % interval" if "level" in interval else ""
    return f"{value:.1%}{level} [{low:.1%}, {high:.1%}], n = {interval['n']}"


def control_words(control: Mapping[str, Any]) -> str:
    """One kind of control in a sentence."""
    n, mean, largest = control["n"], control.get("mean"), control.get("largest")
    if mean is None:
        return f"{control['name']}: {control['what']}: not run"
    name = f"{control['name']} ({control['what']})"
    if n == 1:
        return f"{name}: keeps {mean:.1%} of the metric"
    same = (control.get("shared") or 0.0) > 1 - 1e-9
    p = f"; p = {control['p_value']:.3g}" if control.get("p_value") is not None and not same else ""
    p = (
        "; p: \u2013, as each holds the whole circuit: no different circuit of these types exists among them"
        if same
        else p
    )
    return f"{name}: {n} of them keep {mean:.1%} of the metric on average, {largest:.1%} at most{p}"


@dataclass(frozen=True)
class Life:
    """At which checkpoints an edge is in the circuit, and when it was born and died."""

    edge: str
    present: tuple[int, ...]
    born: int | None
    died: int | None


def lives(run: Run, series: Series) -> tuple[list[Life], str, bool]:
    """Lives of edges, a sentence about them, and whether they come from a whole trajectory.

    Without one, `born` is the first stored checkpoint with the edge and nothing is said to have died.

    Raises:
        StoreError: if the stored trajectory is damaged.
    """
    told = _trajectory(run, series)
    if told is not None:
        found = [Life(one["edge"], tuple(one["present"]), one["born"], one["died"]) for one in told["edges"]]
        when = "No circuit emerged" if told.get("emerged") is None else f"A circuit from step {told['emerged']:,} on"
        return found, f"{when}. {told.get('note', '')}".strip(), True
    present: dict[str, list[int]] = {}
    for one in series.found:
        for name in _kept(one):
            present.setdefault(name, []).append(one.step)
    rows = [Life(name, tuple(steps), steps[0], None) for name, steps in present.items()]
    cut = any((one.data.get("circuit") or {}).get("packed") for one in series.found)
    said = "Of the largest circuits only the strongest kept edges are listed." if cut else ""
    return sorted(rows, key=lambda row: (row.present[0], -len(row.present), row.edge)), said, False


def _kept(one: StoredCircuit) -> list[str]:
    """Names of the kept edges, without positions."""
    circuit = one.data.get("circuit") or {}
    return sorted({str(edge["edge"]) for edge in circuit.get("edges", ()) if edge.get("kept")})


def _trajectory(run: Run, series: Series) -> dict[str, Any] | None:
    """The story of these very circuits: of those stored, the one that most of them are in, the newest of equals."""
    shown = {one.key for one in series.found}
    found = [(run.analysis(key), key) for key in run.analyses() if key.startswith(STORY)]
    ranked = [
        (len(shown & set(map(str, one.get("keys") or ()))), str(one.get("saved")), key, one) for one, key in found
    ]
    most, _, key, newest = max(ranked, default=(0, "", "", {}))
    if not most:
        return None
    told = newest.get("trajectory")
    fields = {"edge", "present", "born", "died"}
    if not isinstance(told, dict) or not isinstance(told.get("edges"), list):
        raise StoreError(f"{run.name}/analysis/{key}.json: trajectory: expected an object with edges; {AGAIN}")
    if told.get("format") == 1:  # births and deaths by an older rule, which took candidates for circuits
        return None
    if not all(isinstance(one, dict) and fields <= one.keys() for one in told["edges"]):
        raise StoreError(f"{run.name}/analysis/{key}.json: trajectory.edges: expected {sorted(fields)}; {AGAIN}")
    return told


def life_rows(found: Sequence[Life], steps: Sequence[int], most: int = 40) -> list[dict[str, Any]]:
    """One row per edge and checkpoint at which it is there, for the edges that are there most often."""
    kept = sorted(found, key=lambda one: -len(one.present))[:most]
    chosen = [one for one in found if one in kept]
    return [
        {"edge": one.edge, "step": step, "what": "born" if step == one.born else "present"}
        for one in chosen
        for step in one.present
        if step in steps
    ] + [{"edge": one.edge, "step": one.died, "what": "died"} for one in chosen if one.died is not None]
