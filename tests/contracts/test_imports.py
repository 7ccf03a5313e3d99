"""Who may import whom, and which third-party package is used where, checked on the syntax trees."""

import ast
from collections.abc import Iterator

from circuits.detect import SOURCES

MAY_IMPORT = {
    "kernels": {"kernels"},
    "interp": {"interp"},
    "probes": {"probes", "interp"},
    "circuits": {"circuits", "interp", "probes", "kernels"},
    "dashboards": {"dashboards", "interp", "probes", "circuits"},
}
FENCE = {
    "triton": ("kernels/",),
    "transformer_lens": ("interp/hooks.py", "interp/adapters/"),
    "nnsight": ("interp/adapters/",),
    "streamlit": ("dashboards/",),
    "circuitsvis": ("dashboards/",),
}
RE_EXPORTING = {"interp/hooks.py"}  # the one door to transformer_lens


def imported(tree: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """(line, module, names) of every import, also of importlib.import_module("literal")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, []


def test_stored_results_are_told_apart_by_all_code_that_makes_them():
    assert set(SOURCES) == MAY_IMPORT["circuits"]


def test_packages_import_only_those_below_them(sources):
    wrong = [
        f"{path}:{line} imports {module}"
        for path, _, tree in sources
        for line, module, _ in imported(tree)
        if (top := module.split(".")[0]) in MAY_IMPORT and top not in MAY_IMPORT[path.split("/")[0]]
    ]
    assert not wrong, wrong


def test_third_party_packages_stay_behind_their_fence(sources):
    wrong = [
        f"{path}:{line} imports {module}"
        for path, _, tree in sources
        for line, module, _ in imported(tree)
        if (allowed := FENCE.get(module.split(".")[0])) and not path.startswith(allowed)
    ]
    assert not wrong, wrong


def test_nothing_of_ours_imports_tests_or_benchmarks(sources):
    wrong = [
        f"{path}:{line}"
        for path, _, tree in sources
        for line, module, _ in imported(tree)
        if module.split(".")[0] in {"tests", "benchmarks", "pytest", "hypothesis"}
    ]
    assert not wrong, wrong


def test_imports_are_absolute_and_name_what_they_take(all_sources):
    wrong = [
        f"{path}:{line} from {module} import {names}"
        for path, _, tree in all_sources
        for line, module, names in imported(tree)
        if module.startswith(".") or "*" in names
    ]
    assert not wrong, wrong


def defined(tree: ast.Module) -> set[str]:
    """Names that a module's own statements define, conditional ones included, imports excluded."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_names_are_imported_from_the_file_that_defines_them(sources, all_sources):
    by_module = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path, _, _ in sources}
    definitions = {path: defined(tree) for path, _, tree in sources}
    wrong = []
    for path, _, tree in all_sources:
        for line, module, names in imported(tree):
            target = by_module.get(module)
            if target is None or target in RE_EXPORTING:
                continue
            foreign = [
                name for name in names if name not in definitions[target] and f"{module}.{name}" not in by_module
            ]
            wrong += [f"{path}:{line} takes {name} from {module}, which does not define it" for name in foreign]
    assert not wrong, wrong


def test_the_kernels_package_file_imports_nothing_at_the_top(sources):
    tree = next(tree for path, _, tree in sources if path == "kernels/__init__.py")
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
