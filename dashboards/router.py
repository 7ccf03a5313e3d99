"""The script Streamlit runs: page settings, run picker, links to the views, then the one view asked for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

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
    """One rerun; `start` is the view shown where the address names none, the first of the list if not given."""
    st.set_page_config(
        page_title="interp", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide", menu_items={}
    )
    if reason := refusal():
        st.error(reason)
        st.stop()
    store, listed = open_store(), views()
    first = start or listed[0].id
    pages = {
        view.id: st.Page(
            partial(show, view, store), title=view.title, icon=view.icon, url_path=view.id, default=view.id == first
        )
        for view in listed
    }
    current = st.navigation(list(pages.values()), position="hidden")
    names = tuple(store.names())
    with st.sidebar:
        st.markdown("### interp")
        pick_run(store, names)
        kept = {name: st.query_params[name] for name in KEPT if name in st.query_params}
        for view in listed:
            st.page_link(pages[view.id], query_params=kept)
    current.run()


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


def show(view: ViewFile, store: Store) -> None:
    """Render one view; what it cannot read is said, with what to do."""
    raw = parameters(st.query_params.to_dict())
    run, wrong = chosen_run(store, raw.get("run"))
    page = Page(view.id, view.title, store, run, address(raw, run), tuple(store.names()))
    if wrong is not None:
        page.problem(wrong, "Choose a run on the left, or list the runs:", page.command("runs", "ls", run=False))
        return
    render: Callable[[Page], None] = load("view", view.id)
    with page.guarded("The other views and runs are not affected.", page.command("runs", "show")):
        render(page)


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
