"""How the effects of a run's patches are laid out in tables: which is a row, which a column, and what is left out."""

from collections.abc import Sequence

from circuits.patch_command.cells import Cell, Cells
from circuits.patch_command.run import EVERYWHERE, RunPatches
from circuits.report.heatmap import HeatCell, Panel
from circuits.report.numbers import MINUS, decimal, sample
from probes.intervals import Estimate

MOST_ROWS = 48  # components of one table
MOST_PANELS = 8  # components with a table each
MOST_ENDS = 64  # senders, or receivers, of a table of edges


def panels_of(found: RunPatches, cells: Cells) -> list[Panel]:
    """Tables in the order of the model.

    One step: a row per component, a column per position. Several: a table per component with a row per step. Patches
    at all positions at once have no columns of their own: one step gives layers by heads, or senders by receivers;
    several give a row per component and a column per step.
    """
    if found.request.unit.endswith("position"):
        return _one_step(found, cells) if len(cells) == 1 else _by_component(found, cells)
    return _pooled_step(found, cells) if _is_square(found) else _pooled(found, cells)


def shown(found: RunPatches, cells: Cells) -> list[int]:
    """Components that are drawn: those with the largest effects, in the order of the model."""
    names = found.steps[0].components
    staircases = found.request.unit.endswith("position") and len(cells) > 1
    return sorted(by_strength(cells)[: MOST_PANELS if staircases else MOST_ROWS]) if names else []


def by_strength(cells: Cells) -> list[int]:
    """Components by their largest sure effect at any step and place, the largest first."""

    def strength(component: int) -> float:
        return max((abs(cell.effect.value) for step in cells for cell in step[component] if cell.is_sure), default=0.0)

    return sorted(range(len(cells[0])), key=lambda component: -strength(component))


def left_out(found: RunPatches, cells: Cells) -> str:
    """A sentence about components that are not drawn; empty if all are."""
    drawn, all_of_them = len(shown(found, cells)), len(found.steps[0].components)
    if drawn == all_of_them or _is_square(found):
        return ""
    return (
        f"The {drawn} of {all_of_them:,} components with the largest effects are drawn; the CSV file holds all of them."
    )


def words(estimate: Estimate) -> str:
    """Value and interval, without n."""
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def number(value: float) -> str:
    """As in a report, but small numbers keep their sign and their power of ten."""
    return f"{value:.0e}".replace("-", MINUS) if 0 < abs(value) < 0.0005 else decimal(value)


def _heat(cell: Cell) -> HeatCell:
    """What one cell is drawn as."""
    where = cell.component if cell.pos is None else f"{cell.component} at {cell.place} (position {cell.pos})"
    if cell.skipped:
        return HeatCell(0.0, f"{cell.component}, t={cell.t}: not run, exactly 0 ({cell.skipped})", "skipped")
    tip = f"{where}, t={cell.t}: {words(cell.effect)}, {sample(cell.effect.n)}"
    tip += "" if cell.resolved else "; not resolved, counts as 0"
    tip += f"; {words(cell.share)} of the whole difference" if cell.share is not None else ""
    return HeatCell(cell.effect.value, tip, "effect" if cell.is_sure else "neutral")


def _row(cells: Sequence[Cell], columns: int) -> tuple[HeatCell | None, ...]:
    return (*map(_heat, cells), *([None] * (columns - len(cells))))


def _one_step(found: RunPatches, cells: Cells) -> list[Panel]:
    step, rows = found.steps[0], shown(found, cells)
    return [
        Panel(
            title="",
            rows=tuple(step.components[row] for row in rows),
            columns=step.places,
            cells=tuple(_row(cells[0][row], len(step.places)) for row in rows),
            row_name=f"step t={step.t}",
            column_name="position of the patch; the metric is read at the last one",
        )
    ]


def _by_component(found: RunPatches, cells: Cells) -> list[Panel]:
    columns = max((step.places for step in found.steps), key=len)
    rows = tuple(f"t={step.t}" for step in found.steps)
    return [
        Panel(
            title=found.steps[0].components[component],
            rows=rows,
            columns=columns,
            cells=tuple(_row(step[component], len(columns)) for step in cells),
            row_name="",
            column_name="position of the patch; the metric is read at the last one of each row",
        )
        for component in shown(found, cells)
    ]


def _pooled(found: RunPatches, cells: Cells) -> list[Panel]:
    rows = shown(found, cells)
    return [
        Panel(
            title="",
            rows=tuple(found.steps[0].components[row] for row in rows),
            columns=tuple(str(step.t) for step in found.steps),
            cells=tuple(tuple(_heat(step[row][0]) for step in cells) for row in rows),
            row_name=EVERYWHERE,
            column_name="step t",
        )
    ]


def _pooled_step(found: RunPatches, cells: Cells) -> list[Panel]:
    known = {_ends(row[0].component): _heat(row[0]) for row in cells[0]}
    rows, columns = (tuple(dict.fromkeys(ends[side] for ends in known)) for side in (0, 1))
    return [
        Panel(
            title="",
            rows=rows,
            columns=columns,
            cells=tuple(tuple(known.get((row, column)) for column in columns) for row in rows),
            row_name=f"step t={found.steps[0].t}, {EVERYWHERE}",
            column_name="receiver" if found.request.unit == "edge" else found.request.unit,
        )
    ]


def _is_square(found: RunPatches) -> bool:
    """Whether there is one step, of patches at all positions, and both of their ends fit into a table."""
    if found.request.unit.endswith("position") or len(found.steps) > 1:
        return False
    ends = [_ends(component) for component in found.steps[0].components]
    return max(len({one[side] for one in ends}) for side in (0, 1)) <= MOST_ENDS


def _ends(component: str) -> tuple[str, str]:
    """Sender and receiver of an edge, layer and head of a head, and a layer with the word all."""
    mark = "->" if "->" in component else "."
    first, _, second = component.partition(mark)
    return first, second or "all"
