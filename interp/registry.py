"""The folder is the registry: lists tasks and detectors by file name, then imports only the one asked for."""

import ast
import importlib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from interp.errors import InterpError, UnknownName


class Kind(NamedTuple):
    """Where entries of one kind live and what each file exports."""

    package: str
    folder: str
    attribute: str
    group: str


HOME = Path(__file__).resolve().parent.parent  # of our packages, as far as they are installed together

KINDS = {
    "task": Kind("interp", "tasks", "TASK", "interp.tasks"),
    "detector": Kind("circuits", "detectors", "DETECTOR", "interp.detectors"),
    "search": Kind("circuits", "search", "METHOD", "interp.search"),
    "view": Kind("dashboards", "views", "render", "interp.views"),
}


def names(kind: str) -> list[str]:
    """Sorted names of a kind (a key of KINDS), by listing files and entry points; imports nothing."""
    return sorted({*_files(kind), *_plugins(kind)})


def load(kind: str, name: str) -> Any:
    """Import the entry called `name` and return its TASK, DETECTOR, METHOD or render.

    A file in our own folder wins over an entry point of the same name.

    Raises:
        UnknownName: if nothing of that name is listed; nothing unlisted is ever imported.
        InterpError: if the file exports no entry, or an entry point cannot be imported.
    """
    spec, files, plugins = _kind(kind), _files(kind), _plugins(kind)
    if name in files:
        module = importlib.import_module(f"{spec.package}.{spec.folder}.{name}")
        if not hasattr(module, spec.attribute):
            raise InterpError(f"{files[name]}: exports no {spec.attribute}; every {kind} file must define it")
        return getattr(module, spec.attribute)
    if name in plugins:
        return _load_plugin(plugins[name])
    raise _unknown(kind, name, {*files, *plugins})


def summary(kind: str, name: str) -> str:
    """The first line of the file's docstring, read without importing it; a plugin's target for an entry point."""
    files, plugins = _files(kind), _plugins(kind)
    if name in files:
        docstring = ast.get_docstring(ast.parse(files[name].read_text(encoding="utf-8"))) or ""
        return docstring.partition("\n")[0]
    if name in plugins:
        return f"entry point {plugins[name].value}"
    raise _unknown(kind, name, {*files, *plugins})


def origin(kind: str, name: str) -> str:
    """File of a built-in entry, or the `module:attribute` of an entry point."""
    files, plugins = _files(kind), _plugins(kind)
    if name in files:
        return str(files[name])
    if name in plugins:
        return plugins[name].value
    raise _unknown(kind, name, {*files, *plugins})


def load_group(group: str) -> dict[str, Any]:
    """Everything that installed packages offer in an entry-point group, by name, in name order.

    Raises:
        InterpError: naming the entry point that cannot be loaded and the package it comes from.
    """
    return {point.name: _load_plugin(point) for point in sorted(entry_points(group=group), key=lambda one: one.name)}


def load_entry(group: str, name: str) -> Any:
    """What one entry point of a group offers, so that a broken one hides no other.

    Raises:
        UnknownName: if the group has none of that name.
        InterpError: naming the entry point that cannot be loaded and the package it comes from.
    """
    points = {point.name: point for point in entry_points(group=group)}
    if name not in points:
        raise UnknownName(f"entry point of {group}", name, points)
    return _load_plugin(points[name])


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UnknownName("kind of entry", kind, KINDS)
    return KINDS[kind]


def _files(kind: str) -> dict[str, Path]:
    """Name -> file of the built-in entries. Only the top-level package is looked up, so nothing is executed."""
    spec = _kind(kind)
    return {
        path.stem: path
        for root in roots(spec.package)
        for path in sorted((root / spec.folder).glob("*.py"))
        if path.stem != "base" and not path.stem.startswith("_")
    }


def roots(package: str) -> list[Path]:
    """Folders of a package; where another folder hides an editable install (see `hidden_by`), the one beside this."""
    if hidden_by(package):
        own = HOME / package
        return [own] if (own / "__init__.py").is_file() else []
    found = find_spec(package)
    return list(map(Path, found.submodule_search_locations or ())) if found else []


def hidden_by(package: str) -> list[str]:
    """Folders without an `__init__.py` that Python takes for a package of ours; empty where it finds the package.

    A clone called `interp` is such a folder for every script beside it: Python looks there before it asks an editable
    install, and what it finds runs no `__init__.py`. Our modules are still imported from where they are installed.
    """
    found = find_spec(package)
    if found is None or found.origin is not None:
        return []
    return sorted({place for place in found.submodule_search_locations or () if Path(place) != HOME / package})


def _unknown(kind: str, name: str, known: set[str]) -> InterpError:
    """The error for a name that is not listed; where nothing is listed at all, why."""
    package = _kind(kind).package
    if not known and (folders := hidden_by(package)):
        return InterpError(
            f"no {kind} is known, not even {name!r}: the installed package {package!r} is hidden by the folder "
            f"{', '.join(folders)}; run from elsewhere, or rename that folder"
        )
    return UnknownName(kind, name, known)


def _plugins(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_kind(kind).group)}


def _load_plugin(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InterpError(
            f"entry point {point.name} = {point.value} ({point.group}) cannot be loaded: {error}; "
            f"repair or uninstall {point.dist.name if point.dist else 'its package'}"
        ) from error
