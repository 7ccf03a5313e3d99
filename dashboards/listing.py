"""Lists the views: the files of `dashboards/views`, read without importing any of them."""

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from interp.errors import InterpError
from interp.registry import names, origin

LAST = 1000


@dataclass(frozen=True)
class ViewFile:
    """One view as it stands in the navigation.

    A view file has a docstring of one sentence on line 1, and at its top level

        TITLE = "Attention"       text in the navigation
        ORDER = 20                place in the navigation, smallest first
        ICON = ":material/grid_on:"    optional: an emoji or a Material symbol, which Streamlit ships
        def render(page: Page) -> None: ...

    TITLE, ORDER and ICON are literals, so that listing imports nothing. `render` is called on every rerun with the
    page's validated address; it reads run folders, and asks the worker (`interp.jobs.ask`) or starts a job
    (`interp.jobs.start`) for what has to be computed.
    """

    id: str
    title: str
    order: int
    icon: str | None
    about: str


def views() -> list[ViewFile]:
    """Every view by its ORDER, then by id; an entry point of the group `interp.views` comes last under its name."""
    folder = Path(__file__).with_name("views")
    return list(_views(tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.py")))))


@lru_cache(maxsize=2)
def _views(files: tuple[tuple[str, int], ...]) -> tuple[ViewFile, ...]:
    """The views while the folder holds these files; a plugin installed meanwhile is seen after a restart."""
    return tuple(sorted(map(describe, names("view")), key=lambda view: (view.order, view.id)))


def describe(name: str) -> ViewFile:
    """What one view file says of itself.

    Raises:
        UnknownName: if there is no such view.
        InterpError: if TITLE or ORDER is missing or not a literal; the message names the file.
    """
    where = origin("view", name)
    if not where.endswith(".py"):
        return ViewFile(name, name.replace("_", " ").capitalize(), LAST, None, f"entry point {where}")
    tree = ast.parse(Path(where).read_text(encoding="utf-8"))
    said = _literals(tree)
    title, order, icon = said.get("TITLE"), said.get("ORDER"), said.get("ICON")
    if not isinstance(title, str) or type(order) is not int or not isinstance(icon, str | None):
        raise InterpError(f"{where}: a view defines TITLE = 'text' and ORDER = 10 as literals; see ViewFile")
    return ViewFile(name, title, order, icon, (ast.get_docstring(tree) or "").partition("\n")[0])


def _literals(tree: ast.Module) -> dict[str, object]:
    """Names that the file's own statements set to a literal."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
