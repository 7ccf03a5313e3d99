"""What a person would read on a page that AppTest has run."""

from streamlit.testing.v1 import AppTest


def text(app: AppTest) -> str:
    """Everything the app shows as text, on the page and in the sidebar, one element per line."""
    return "\n".join(
        str(element.value)
        for element in _leaves([app.main, app.sidebar])
        if getattr(element, "value", None) is not None
    )


def allowed_html(app: AppTest) -> list[str]:
    """Bodies of the elements in which Streamlit would keep tags."""
    protos = [getattr(element, "proto", None) for element in _leaves([app.main, app.sidebar])]
    return [proto.body for proto in protos if getattr(proto, "allow_html", False)]


def _leaves(elements: list) -> list:
    found = []
    for element in elements:
        inner = list(element.children.values()) if getattr(element, "children", None) else []
        found += _leaves(inner) if inner else [element]
    return found
