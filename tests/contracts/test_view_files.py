"""Each view file keeps the contract of `dashboards.listing.ViewFile`, and the folder decides which views exist."""

import ast
import re
import shutil
from pathlib import Path

import pytest

from dashboards.listing import describe, views
from interp.errors import InterpError
from interp.registry import names

VIEWS = names("view")
EXAMPLE = re.compile(r"<!-- example: (\w+)\.py -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPEN_IT = """
import os
from streamlit import config
config.set_option("server.address", "127.0.0.1")
os.environ["INTERP_STORE"] = os.getcwd() + "/runs"
from dashboards.listing import views
print("listed", [view.id for view in views()])
from streamlit.testing.v1 import AppTest
app = AppTest.from_string("from dashboards.router import main\\nmain('memory')", default_timeout=60).run()
print("exceptions", len(app.exception), "title", app.title[0].value, "shows", [one.value for one in app.markdown])
"""


@pytest.fixture
def tree(root, request) -> ast.Module:
    """The syntax tree of one view."""
    return ast.parse((root / "dashboards" / "views" / f"{request.param}.py").read_text())


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_has_a_title_a_place_and_says_what_it_is(name):
    view = describe(name)
    assert view.id == name
    assert view.title
    assert view.order > 0
    assert view.about.endswith(".")
    assert view.icon is None or view.icon.startswith(":material/") or not view.icon.isascii()


def test_titles_and_places_are_taken_once():
    listed = views()
    assert len({view.title for view in listed}) == len({view.order for view in listed}) == len(listed)
    assert listed == sorted(listed, key=lambda view: view.order)


@pytest.mark.parametrize("tree", VIEWS, indirect=True)
def test_a_view_renders_from_a_page_and_loads_no_torch(tree):
    (render,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "render")
    assert [argument.arg for argument in render.args.args] == ["page"]
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name.split(".")[0] in ("torch", "transformer_lens", "nnsight")]


@pytest.mark.parametrize("tree", VIEWS, indirect=True)
def test_a_view_keeps_no_tags_and_gives_each_widget_a_key(tree):
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {word.arg: word.value for call in calls for word in call.keywords}
    assert "unsafe_allow_html" not in given
    widgets = {"button", "selectbox", "slider", "select_slider", "text_input", "number_input", "text_area", "toggle"}
    widgets |= {"checkbox", "radio", "multiselect", "segmented_control", "pills", "download_button", "link_button"}
    unkeyed = [
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in widgets
        if "key" not in {word.arg for word in call.keywords}
    ]
    assert not unkeyed


def test_the_views_and_their_data_load_no_torch(python):
    listed = ", ".join(f"dashboards.views.{name}" for name in VIEWS)
    done = python(f"import sys, dashboards.router, {listed}; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_listing_the_views_imports_neither_them_nor_streamlit(python):
    code = "import sys; from dashboards.listing import views; views(); "
    done = python(code + "print([m for m in sys.modules if m.startswith(('streamlit', 'torch', 'dashboards.views'))])")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_file_dropped_into_the_folder_is_a_view(root, python, tmp_path):
    shutil.copytree(
        root / "dashboards", tmp_path / "shadow" / "dashboards", ignore=shutil.ignore_patterns("__pycache__")
    )
    ((name, source),) = EXAMPLE.findall((root / "docs" / "how-to" / "add-a-view.md").read_text())
    (tmp_path / "shadow" / "dashboards" / "views" / f"{name}.py").write_text(source)
    done = python(OPEN_IT, first=tmp_path / "shadow")
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("listed", "exceptions")))
    listed = ast.literal_eval(lines["listed"])
    assert listed.index("runs") < listed.index("memory") < listed.index("report")
    assert lines["exceptions"].startswith("0 title Memory"), done.stderr
    assert "The demonstration makes one" in lines["exceptions"]


@pytest.mark.parametrize(
    "text", ["def render(page): ...\n", "TITLE = 'a'\nORDER = '1'\n", "TITLE = str(1)\nORDER = 1\n", "TITLE = 'a'\n"]
)
def test_a_view_without_title_or_place_is_named_with_its_file(tmp_path, monkeypatch, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    monkeypatch.setattr("dashboards.listing.origin", lambda kind, name: str(path))
    with pytest.raises(InterpError, match=r"broken\.py: a view defines TITLE"):
        describe("broken")


def test_every_script_of_the_dashboard_is_in_the_wheel(root):
    project = (root / "pyproject.toml").read_text()
    suffixes = {path.suffix for path in Path(root, "dashboards").glob("*") if path.is_file()} - {".py"}
    assert not [suffix for suffix in suffixes if f'"*{suffix}"' not in project]
    assert '".streamlit/config.toml"' in project
