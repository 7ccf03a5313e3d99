"""A discovery as one offline page without script: claim, drawing, faithfulness, edges, training, provenance."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from circuits.report import circuit_tables as tables
from circuits.report.circuit_curve import curve_figure
from circuits.report.circuit_drawn import drawn
from circuits.report.circuit_positions import fits
from circuits.report.circuit_svg import circuit_svg, extent
from circuits.report.numbers import count, estimate

if TYPE_CHECKING:
    from circuits.discovery_result import DiscoveryFile
    from circuits.trajectory import Trajectory

MOST_DRAWINGS = 12  # of checkpoints; more are chosen evenly


@dataclass(frozen=True)
class Background:
    """What stands around the discovery of one checkpoint.

    Attributes:
        series: (step, discovery) of other checkpoints and this one, asked in the same way.
        story: what changed between them.
        commands: (purpose, line) of what makes the page again.
        origin: more rows of provenance.
        task: what the prompts are of: the task of a run, or the file of prompt pairs.
    """

    series: Sequence[tuple[int, "DiscoveryFile"]] = ()
    story: "Trajectory | None" = None
    commands: Sequence[tuple[str, str]] = ()
    origin: Sequence[tuple[str, str]] = field(default_factory=tuple)
    task: str = ""


@dataclass(frozen=True)
class _Words:
    title: str
    badge: str
    keys: list[tables.Key]
    has_roles: bool
    stability: list[str]
    left_out: str
    emerged: str
    origin: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Small:
    step: str
    verdict: str
    kept: str
    drawing: Markup


def render_circuit_page(found: "DiscoveryFile", model: str, step: int | None, around: Background | None = None) -> str:
    """The whole page as text; equal discoveries give equal text."""
    around = around or Background()
    parts = ("page.css", "circuit_graph.css", "circuit_page.css")
    styles = "".join(resources.files("circuits.report").joinpath(name).read_text(encoding="utf-8") for name in parts)
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    rules = ("default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'")
    shown = chosen([one for one, other in around.series if other.circuit is not None])
    return _template().render(
        found=found,
        page=_words(found, model, step, around, len(shown)),
        tables=tables,
        drawings=_drawings(found),
        curve=curve_figure(found),
        series=_series(around.series, shown),
        story=around.story,
        style=Markup(styles),
        policy="; ".join(rules),
    )


def chosen(steps: Sequence[int]) -> set[int]:
    """Steps to draw: all, or evenly many with the first and the last."""
    if len(steps) <= MOST_DRAWINGS:
        return set(steps)
    return {steps[round(index * (len(steps) - 1) / (MOST_DRAWINGS - 1))] for index in range(MOST_DRAWINGS)}


def _words(found: "DiscoveryFile", model: str, step: int | None, around: Background, shown: int) -> _Words:
    story, circuits = around.story, sum(one.circuit is not None for _, one in around.series)
    emerged = ""
    if story is not None:
        emerged = "No three checkpoints in a row have the verdict circuit."
        if story.emerged is not None:
            emerged = f"A circuit from step {count(story.emerged)} on, three checkpoints in a row."
    return _Words(
        title=title(found, model, step, around.task),
        badge=tables.BADGES.get(found.verdict, "other"),
        keys=tables.keys(found),
        has_roles=bool(found.roles) or bool(tables.pairs(found).rows),
        stability=tables.stability(found),
        left_out=f"{shown} of the circuits of {circuits} checkpoints are drawn, of {len(around.series)} looked at.",
        emerged=emerged,
        origin=around.origin,
        commands=around.commands,
    )


def title(found: "DiscoveryFile", model: str, step: int | None, task: str) -> str:
    """What was found, for which task, in which model and at which step, in one short line."""
    what = {"circuit": "Circuit", "candidate": "Candidate circuit"}.get(found.verdict, "No circuit")
    if found.circuit is not None and found.circuit.n_pos:
        what += " by position"
    where = model if step is None else f"{model}, step {count(step)}"
    return f"{what} for {task}: {where}" if task else f"{what}: {where}"


def _drawings(found: "DiscoveryFile") -> list[tuple[Markup, str]]:
    """The circuit, and before it its positions where there is room for them."""
    if found.circuit is None:
        return []
    data, more = drawn(found.circuit), tables.tips(found)
    said = (
        "Rows are layers, columns are heads, the MLP has its own; q, k and v mark what an edge is read as. Point at an "
    )
    said += "edge or a node for its exact values."
    pictures = []
    if data.positions and fits(data):
        told = (
            "One column for each position. An edge leaves at the position where its sender writes and arrives where it "
        )
        told += "is read. Point at an edge for its exact values."
        pictures.append((circuit_svg(found.circuit, positions="columns", tips=more, styled=False), told))
    if data.positions:
        said += (
            " All positions of an edge are drawn as one; its tooltip has them, and how many positions back they reach."
        )
    pictures.append((circuit_svg(found.circuit, tips=more, styled=False), said))
    return [(Markup(picture), caption) for picture, caption in pictures]


def _series(series: Sequence[tuple[int, "DiscoveryFile"]], shown: set[int]) -> list[_Small]:
    """Small drawings on one scale, of checkpoints that have a circuit."""
    if len(series) < 2:
        return []
    files: dict[int, Any] = {step: one.circuit for step, one in series if one.circuit is not None}
    ready = {step: drawn(file) for step, file in files.items()}
    scale, union = extent(list(ready.values())), {name for one in ready.values() for name in one.pooled}
    found = []
    for step, one in series:
        if step not in shown:
            continue
        kept, title = "", f"Circuit at step {count(step)}"
        picture = circuit_svg(files[step], scale=scale, union=union, legend=False, styled=False, title=title)
        if one.faithfulness is not None:
            retained = one.faithfulness.retained
            kept = f"{one.n_kept} of {one.n_live} edges keep {estimate(retained)}"
        found.append(_Small(count(step), one.verdict, kept, Markup(picture)))
    return found


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("circuits.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("circuit.html")
