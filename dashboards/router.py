"""The script Streamlit runs: page settings, run picker, links to the views, then the one view asked for."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards.address import address
from dashboards.data import newest_run
from dashboards.launch import open_store, refusal
from dashboards.listing import ViewFile, views
from dashboards.page import Page, parameters
from interp.errors import InterpError
from interp.registry import load
from interp.run import Run, Store

KEPT = ("run", "step", "layer", "head", "example")  # what goes along from view to view


def main(start: str | None = None) -> None:
    """One rerun.

    Args:
        start: the view shown where the address names none; if not given, the browser is sent on to the first one, so
            that every view has its own path.
    """
    st.set_page_config(
        page_title="interp", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide", menu_items={}
    )
    st.html(Path(__file__).with_name("page.css"))
    if reason := refusal():
        st.error(reason)
        st.stop()
    store, listed = open_store(), views()
    pages: dict[str, Any] = {}
    for view in listed:
        script = partial(show, view, store, pages)
        pages[view.id] = st.Page(script, title=view.title, icon=view.icon, url_path=view.id, default=view.id == start)
    door = [] if start else [st.Page(partial(_go, pages[listed[0].id]), title="interp", default=True)]
    current = st.navigation([*door, *pages.values()], position="hidden")
    names = tuple(store.names())
    with st.sidebar:
        st.markdown("### interp")
        pick_run(store, names)
        kept = {name: st.query_params[name] for name in KEPT if name in st.query_params}
        for view in listed:
            st.page_link(pages[view.id], query_params=kept)
    current.run()


def _go(page: Any) -> None:
    """From the root of the address to the first view."""
    st.switch_page(page, query_params=st.query_params.to_dict())


def pick_run(store: Store, names: tuple[str, ...]) -> None:
    """The run picker; the run it shows is always in the address, so that the address can be sent."""
    asked = st.query_params.get("run")
    if asked is None and names:
        asked = st.query_params["run"] = newest_run(store, names)
    if not names:
        st.caption("No runs yet.")
        return
    st.session_state["run"] = asked if asked in names else None
    st.selectbox("Run", names, key="run", on_change=_run_changed, placeholder="choose a run")


def _run_changed() -> None:
    if st.session_state["run"] is not None:
        st.query_params["run"] = st.session_state["run"]


def show(view: ViewFile, store: Store, pages: Mapping[str, Any]) -> None:
    """Render one view; what it cannot read is said, with what to do."""
    raw = parameters(st.query_params.to_dict())
    run, wrong = chosen_run(store, raw.get("run"))
    page = Page(view.id, view.title, store, run, address(raw, run), tuple(store.names()), pages)
    if wrong is not None:
        page.problem(wrong, "Choose a run on the left, or list the runs:", page.command("runs", "ls", run=False))
        return
    render: Callable[[Page], None] = load("view", view.id)
    with page.guarded("The other views and runs are not affected.", page.command("runs", "show")):
        render(page)
    page.draw_notes()
    page.draw_share()


def chosen_run(store: Store, name: str | None) -> tuple[Run | None, InterpError | None]:
    """The run of that name, or why there is none."""
    if not name:
        return None, None
    try:
        return store.run(name), None
    except InterpError as error:
        return None, error


if __name__ == "__main__":
    main()
