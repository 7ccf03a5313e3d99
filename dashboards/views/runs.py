"""The list of runs and jobs: what there is, how far it is, start a training, cancel one, compare two."""

import streamlit as st

from dashboards.page import Page
from interp.run_summary import item

TITLE = "Runs"
ORDER = 10
ICON = ":material/list:"


def render(page: Page) -> None:
    """The table of runs."""
    page.header()
    if not page.names:
        page.empty("No runs yet.", "`interp demo` makes one in about two minutes.", page.command("demo", run=False))
        return
    st.dataframe([item(page.store, name).model_dump() for name in page.names], hide_index=True)
    page.share(page.command("runs", "ls", run=False), "print(store.names())")
