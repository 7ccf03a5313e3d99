"""Patching: what each head, layer or edge does at each position, through training, and what if it were gone."""

import streamlit as st

from circuits.patch_command.stored import StoredPatches, stored_patches, through_training
from dashboards import what_if
from dashboards.components.heat_grid import heat_grid
from dashboards.data import Stamp, stamp
from dashboards.page import Page, plain
from dashboards.patching_data import (
    NOT_RUN,
    Frames,
    Sheet,
    cell_words,
    frames_of,
    patch_arguments,
    run_at,
    setting_words,
    sheet_of,
    what_if_targets,
)
from dashboards.starting import offer
from interp.run import Run

TITLE = "Patching"
ORDER = 40
ICON = ":material/healing:"

GRID = "patching.grid"
TABLE, SENT, CLIENT = "patching.table", "patching.sent", "patching.client"  # what was drawn, told, and is shown now
PROMPTS = {"hide": "mean alone", "show": "every prompt"}
LAYOUTS = ("all components at one step", "one component at all steps")


def render(page: Page) -> None:
    """The heatmap of the chosen setting, the cell that was clicked, and the what-if."""
    if page.run is None:
        page.header()
        page.empty("No run to patch.", "A run of a few minutes is enough.", page.command("demo", run=False))
        return
    if not page.steps:
        page.header()
        page.empty("No checkpoint yet.", "The first one is written before training starts; wait a moment.")
        return
    problems = st.container()
    found: list[StoredPatches] = []
    with problems, page.guarded("The heatmaps are left out.", page.command("patch")):
        found = _stored(str(page.run.path), stamp(page.run.path / "analysis"))
    if found:
        length = heatmap(page, page.run, found)
    else:
        page.header()
        nothing_stored(page, page.run)
        length = None
    what_if.panel(page, page.run, page.get("step"), length)


def heatmap(page: Page, run: Run, found: list[StoredPatches]) -> int:
    """Draws the stored patches; returns the length of the prompts."""
    settings = {one.setting: one for one in found}  # the newest of each setting
    first = sorted(reversed(settings.values()), key=lambda one: one.about["by"] != "head,position")
    words = dict(zip(map(str, range(len(settings))), first, strict=True))
    header = st.container()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = setting_shown(page, words)
        layout = page.pick("layout", "Show", ["heads", "steps"], widget="segments", show=_layout_words)
        frames = _frames(str(run.path), stamp(run.path / "analysis"), chosen.setting)
        t, component = rows_shown(page, frames, layout)
    with header:
        page.header(
            direction=chosen.about.get("direction") or "an ablation in the clean run",
            ablation=chosen.about["ablation"],
            family=f"{chosen.about['pairs']} ({chosen.drawn['pairs']})",
            n=f"{chosen.n(t)} prompts",
        )
    grid(page, run, frames, sheet_of(frames, layout, t, component), chosen)
    share(page, chosen, frames, layout, t, component)
    return int(chosen.about["length"])


def setting_shown(page: Page, words: dict[str, StoredPatches]) -> StoredPatches:
    """The setting that is drawn; a list to choose from where there are several."""
    if len(words) == 1:
        page.choice("stored", list(words))
        return words["0"]
    return words[page.pick("stored", "Stored patches", list(words), show=lambda name: setting_words(words[name]))]


def _layout_words(name: str) -> str:
    return dict(zip(("heads", "steps"), LAYOUTS, strict=True))[name]


def rows_shown(page: Page, frames: Frames, layout: str) -> tuple[int, int]:
    """The step of the task, or the component, whose table is drawn."""
    ts = frames.found[0].ts
    t = page.number("t", ts[0], ts[-1], ts[len(ts) // 2])
    t = t if t in ts else ts[0]
    names = frames.components
    component = names.index(page.choice("component", names, _first(page, names)))
    if layout == "heads":
        t = page.pick("t", "Step t of the task", ts, t, show=lambda value: f"t={value}")
    else:
        component = names.index(page.pick("component", "Component", names, names[component]))
    return t, component


def _first(page: Page, names: list[str]) -> str:
    """The head that the address names, where it is among them; else the last component."""
    head = f"L{page.get('layer')}.H{page.get('head')}"
    return head if head in names and "head" in page.address.raw else names[-1]


def grid(page: Page, run: Run, frames: Frames, sheet: Sheet, chosen: StoredPatches) -> None:
    """The heatmap led by the address; what is clicked goes into the address and into the what-if."""
    at = address_cell(page, frames)
    step = min(frames.steps, key=lambda one: abs(one - page.get("step")))
    shown, selected = drawn_already(chosen, sheet, step, sheet.find(at) if at is not None else None)
    picked = heat_grid(
        sheet.panels,
        key=GRID,
        metric=f"change of: {chosen.drawn['metric']}",
        raises=str(chosen.drawn.get("raises", "raises it")),
        lowers=str(chosen.drawn.get("lowers", "lowers it")),
        hatched=NOT_RUN,
        note=str(chosen.drawn.get("intervention", "")),
        steps=frames.steps,
        step=shown,
        selected=selected,
    )
    if picked is not None and (picked.row, picked.column) in sheet.cells[picked.panel]:
        at = component, t, place = sheet.cells[picked.panel][picked.row, picked.column]
        step = step if picked.step is None else picked.step
        remember(page, run, frames.components[component], t, place, step)
        st.session_state[CLIENT] = step, (picked.panel, picked.row, picked.column)
    elif (moved := scrubbed(frames)) is not None:
        st.session_state[CLIENT] = moved, st.session_state[CLIENT][1]
        step = moved
        page.put(step=step)
    if at is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(plain(cell_words(frames, frames.steps.index(step), *at)))
            prompts = page.pick("prompts", "Single prompts", ["hide", "show"], widget="segments", show=PROMPTS.get)
        if prompts == "show":
            single(page, run, chosen, step, (frames.components[at[0]], *at[1:]))
    if page.get("step") not in frames.steps:
        missing(page, run, chosen, page.get("step"), step)


Shown = tuple[int, tuple[int, int, int] | None]  # checkpoint, and (panel, row, column)


def drawn_already(chosen: StoredPatches, sheet: Sheet, step: int, selected: tuple[int, int, int] | None) -> Shown:
    """What the heatmap is told to show: what it was told last, where it has come to the same by itself since.

    Telling it anything else draws it anew, and whoever steers it by keys would lose the place.
    """
    state, table = st.session_state, (chosen.key, [(panel.title, list(panel.rows)) for panel in sheet.panels])
    if GRID not in state or state.get(TABLE) != table or state.get(CLIENT) != (step, selected):
        state[TABLE], state[SENT], state[CLIENT] = table, (step, selected), (step, selected)
    return state[SENT]


def scrubbed(frames: Frames) -> int | None:
    """The checkpoint that the slider of the heatmap was just let go at; what a browser sends is not trusted."""
    state = st.session_state.get(GRID)
    step = state.get("step") if state is not None else None
    return step if step in frames.steps else None


def address_cell(page: Page, frames: Frames) -> tuple[int, int, int] | None:
    """(component, t, place) of the address; None where it names no cell of this table."""
    ts, names = frames.found[0].ts, frames.components
    t = page.number("t", ts[0], ts[-1], ts[len(ts) // 2])
    place = page.number("place", -1, len(frames.found[0].places(t)) - 1, -1) if t in ts else -1
    if place < 0:
        return None
    return names.index(page.choice("component", names, _first(page, names))), t, place


def remember(page: Page, run: Run, name: str, t: int, place: int, step: int) -> None:
    """Write a clicked cell into the address; what can be ablated becomes the question of the what-if."""
    values = {"step": step, "t": t, "component": name, "place": place}
    if name in what_if_targets(run.config.model):
        values["target"] = name
    if "->" not in name and ".H" in name:
        values |= dict(zip(("layer", "head"), name[1:].split(".H"), strict=True))
    page.put(**values)


def single(page: Page, run: Run, chosen: StoredPatches, step: int, cell: tuple[str, int, int]) -> None:
    """The exact effect on every prompt, recomputed at the checkpoint that is shown."""
    component, t, place = cell
    about = chosen.about
    request = {name: about[name] for name in ("pairs", "length", "ablation", "metric")}
    request |= {"site": about.get("site"), "direction": about.get("direction"), "seed": about.get("seed", 0)}
    request |= {"run": run.name, "step": step, "component": component, "position": place, "t": t}
    with page.guarded("Choose another cell, or ask again."):
        answer = what_if.asked(page.store, run, step, "patch_cell", request | {"n": chosen.n(t)})
        donors = answer["donor"] or [[]] * len(answer["clean"])
        rows = sorted(zip(answer["effects"], answer["clean"], donors, strict=True), key=lambda row: -abs(row[0]))
        table = [
            {"effect": effect, "clean": " ".join(clean), "donor": " ".join(donor)} for effect, clean, donor in rows
        ]
        st.dataframe(table, hide_index=True, width="stretch", height=240)


def missing(page: Page, run: Run, chosen: StoredPatches, step: int, shown: int) -> None:
    """The checkpoint of the address was not patched under this setting."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            f"Checkpoint {step:,} is not patched under this setting; the heatmap shows the nearest one, {shown:,}. "
            f"Share has the command for it."
        )
        offer(page, f"Patch checkpoint {step:,}", ["patch", run.name, *patch_arguments(chosen, step)], key="missing")


def nothing_stored(page: Page, run: Run) -> None:
    """Nothing to draw yet: what it would be, and how to get it."""
    page.empty(
        "No patches stored yet.",
        "Patching replaces each head's output at each position by that of another run, and measures what the answer "
        "does. A small model takes seconds, and the heatmap of each checkpoint becomes a frame here.",
        page.command("patch", "--checkpoint", str(page.get("step"))),
    )
    arguments = ["patch", run.name, "--checkpoint", str(page.get("step"))]
    offer(page, "Patch this checkpoint", arguments)


def share(page: Page, chosen: StoredPatches, frames: Frames, layout: str, t: int, component: int) -> None:
    """Link, command and Python of what is seen: the table of the checkpoint, and of the step t or the component."""
    shown = min(frames.found, key=lambda one: abs(one.step - page.get("step")))
    python = f"effect = patches.arrays(run)['value.t{t}']  # [component, position]"
    if layout == "steps":
        python = (
            "arrays = patches.arrays(run)\n"
            f"effect = {{t: arrays[f'value.t{{t}}'][{component}] for t in patches.ts}}  # step t: [position]"
        )
    page.share(
        page.command("patch", *patch_arguments(chosen, page.get("step"))),
        "from circuits.patch_command.stored import stored_patches\n\n"
        f"patches = next(one for one in stored_patches(run) if one.key == {shown.key!r})\n{python}",
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _stored(path: str, analyses: Stamp) -> list[StoredPatches]:
    return stored_patches(run_at(path))


@st.cache_data(max_entries=8, show_spinner=False)
def _frames(path: str, analyses: Stamp, setting: tuple[str, ...]) -> Frames:
    run = run_at(path)
    return frames_of(run, through_training(stored_patches(run), setting))
