"""What is shown when a view meets an error that nobody foresaw: what happened, that nothing is lost, what to do."""

import traceback

import streamlit as st


def show(error: Exception) -> bool:
    """Put the error on the page in our words, its traceback into the server's output; True: Streamlit adds nothing."""
    traceback.print_exception(error)
    st.error("This view has a defect and cannot be shown.", icon=":material/bug_report:")
    st.text(f"{type(error).__name__}: {error}")
    st.markdown(
        "Run folders are only read here, so nothing is lost; the other views and the `interp` command go on working. "
        "The server's output has the details: copy it into a report of the defect, with the address of this page."
    )
    return True
