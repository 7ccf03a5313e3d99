"""The application `streamlit run` serves: the router behind the guard of host, address and token."""

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.web.server.starlette import App

from dashboards import defect
from dashboards.front import Front
from dashboards.guard import Guard

# Streamlit looks for an assignment of this form in the file it is given, and then serves it as it is.
app = App(
    Path(__file__).with_name("router.py"),
    middleware=[Middleware(Guard), Middleware(Front)],
    on_script_error=defect.show,
)
