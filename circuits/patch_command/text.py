"""How the patches of a run are shown on a terminal: facts, a heat table of the strongest, the largest effects."""

import re
from collections.abc import Sequence
from string import ascii_letters

from rich.table import Table
from rich.text import Text

from circuits.patch_command.cells import Cells
from circuits.patch_command.panels import panels_of
from circuits.patch_command.planning import RunPlan
from circuits.patch_command.run import RunPatches
from circuits.patch_command.words import METRICS, facts, heading, table
from circuits.report.heatmap import HeatCell, Panel, largest
from circuits.report.numbers import decimal
from interp.console import out, say, visible

MOST_LINES = 40
UP, DOWN = (29, 95, 168), (179, 80, 15)


def show_patches(found: RunPatches, cells: Cells, files: dict[str, str]) -> None:
    """Facts, heat table, largest effects and the files."""
    say(heading(found))
    for name, value in facts(found):
        say(f"{name}: {value}")
    panels = panels_of(found, cells)
    show_panels(panels, METRICS[found.request.metric])
    names, rows = table(found, cells)
    if rows:
        largest_effects = Table(*names, title="Largest effects")
        for row in rows:
            largest_effects.add_row(*(Text(visible(cell)) for cell in row))
        out().print(largest_effects)
    else:
        say("no effect that is resolved and whose 95 % interval leaves zero out")
    for kind in ("html", "svg", "csv", "json"):
        say(files[kind])


def show_plan(found: RunPlan) -> None:
    """What would be patched, and what it would cost."""
    say(heading(found))
    say(f"Steps: {', '.join(f't={t}' for t in found.ts)}")
    if found.left_out:
        say(f"Left out: {', '.join(f't={t}' for t in found.left_out)} (--step all for these)")
    say(f"Plan: {found.plan}")
    say("nothing was patched")


def show_panels(panels: Sequence[Panel], metric: str) -> None:
    """The strongest tables that fit, in tenths of the largest effect."""
    scale, console = largest(panels), out()
    ranked = sorted(panels, key=lambda panel: -_strength(panel)) if scale else []
    shown = 0
    for panel in ranked:
        lines = heat_lines(panel, scale, console.width)
        if shown and shown + len(lines) > MOST_LINES:
            break
        shown += len(lines)
        for line in lines:
            console.print(line, soft_wrap=True)
    if shown:
        say(
            f"cells: tenths of the largest effect, {decimal(scale)} ({metric}), or the sign alone below one tenth; "
            "a dot: the 95 % interval covers 0, or not resolved; blank: not run, exactly 0"
        )


def heat_lines(panel: Panel, scale: float, width: int) -> list[Text]:
    """The table as lines of text, strongest rows first where the rows are components; cut into blocks that fit.

    Nothing for a table with long labels that would need several blocks.
    """
    rows = list(range(len(panel.rows)))
    if not panel.rows[0].startswith("t="):
        rows = sorted(rows, key=lambda row: -_row_strength(panel.cells[row]))[:MOST_LINES]
    columns = [
        column
        for column in range(len(panel.columns))
        if any(cells[column] is not None and cells[column].kind != "skipped" for cells in panel.cells)
    ]
    label = max(len(name) for name in (*panel.rows, panel.title)) + 1
    names = [panel.columns[column] for column in columns]
    wide = 2 if all(map(_stacks, names)) else max(map(len, names)) + 1
    lines, fitting = [], max(1, (width - label) // wide)
    if wide > 2 and len(columns) > fitting:
        return []
    for first in range(0, len(columns), fitting):
        block = columns[first : first + fitting]
        lines += _names(panel, block, label, wide)
        for row in rows:
            line = Text(panel.rows[row].ljust(label))
            for column in block:
                line.append(" " * (wide - 2)).append_text(_cell(panel.cells[row][column], scale))
            lines.append(line)
    return lines


def _names(panel: Panel, columns: Sequence[int], label: int, wide: int) -> list[Text]:
    """Labels of the columns: on one line, or above columns of two letters on up to three."""
    names = [panel.columns[column] for column in columns]
    stacked = [_stacked(name) for name in names] if wide == 2 else [("", "", name) for name in names]
    levels = ["".join(name[level].rjust(wide) for name in stacked) for level in range(3)]
    used = [letters for letters in levels if letters.strip()] or [""]
    titles = [panel.title, *([""] * len(used))]
    return [Text(title.ljust(label) + text, style="bold") for title, text in zip(titles, used, strict=False)]


def _cell(cell: HeatCell | None, scale: float) -> Text:
    """Two letters: sign and tenths, a dot for neutral, blank for what was not run."""
    if cell is None or cell.kind == "skipped":
        return Text("  ")
    if cell.kind == "neutral":
        return Text(" \u00b7", style="dim")
    share = min(1.0, abs(cell.value) / scale)
    tenths = min(9, int(share * 10))
    sign = "-" if cell.value < 0 else "+"
    red, green, blue = (round(part * share) for part in (UP if cell.value > 0 else DOWN))
    return Text(f"{sign}{tenths}", style=f"white on rgb({red},{green},{blue})") if tenths else Text(f" {sign}")


def _stacks(name: str) -> bool:
    """Whether a label is at most letters and a number of two digits."""
    return re.fullmatch(r"[A-Za-z]{0,3}\d{0,2}", name) is not None


def _stacked(name: str) -> tuple[str, str, str]:
    """First letter, tens and ones of a label."""
    number = name.lstrip(ascii_letters)
    return ("" if number == name else name[0], number[-2:-1], number[-1:])


def _strength(panel: Panel) -> float:
    return max(map(_row_strength, panel.cells), default=0.0)


def _row_strength(cells: Sequence[HeatCell | None]) -> float:
    return max((abs(cell.value) for cell in cells if cell is not None and cell.kind == "effect"), default=0.0)
