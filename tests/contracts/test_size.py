"""Every file says what it is for on line 1; functions and files stay short."""

import ast

LONGEST_FUNCTION, LONGEST_FILE = 60, 400
SCRIPT_COMMENTS = ("//", "/*", "#", "<!--")


def test_line_1_says_what_the_file_is_for(all_sources):
    wrong = []
    for path, _, tree in all_sources:
        first = tree.body[0] if tree.body else None
        docstring = ast.get_docstring(tree)
        line = (docstring or "").partition("\n")[0]
        if docstring is None or first is None or first.lineno != 1 or not line.endswith("."):
            wrong.append(f"{path}: line 1 is not a docstring of one sentence")
    assert not wrong, wrong


def test_scripts_and_styles_say_what_they_are_for(root):
    folders = [root / name for name in ("circuits", "dashboards")]
    paths = [path for folder in folders for pattern in ("*.js", "*.css") for path in folder.rglob(pattern)]
    paths += [root / "Makefile", *(path for path in (root / ".ci").iterdir() if path.is_file())]
    wrong = []
    for path in paths:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#!")]
        if not lines[0].startswith(SCRIPT_COMMENTS) or len(lines) > LONGEST_FILE:
            wrong.append(f"{path.relative_to(root)}: no comment on line 1, or {len(lines)} lines")
    assert not wrong, wrong


def test_functions_have_at_most_60_lines(all_sources):
    wrong = [
        f"{path}:{node.lineno} {node.name} has {length} lines"
        for path, _, tree in all_sources
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not wrong, wrong


def test_files_have_at_most_400_lines(all_sources):
    wrong = [
        f"{path} has {count} lines" for path, text, _ in all_sources if (count := len(text.splitlines())) > LONGEST_FILE
    ]
    assert not wrong, wrong


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods without a leading underscore, but for `forward`, which its class describes."""
    outer = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    inner = [
        method
        for node in outer
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    ]
    return [node for node in outer + inner if not node.name.startswith("_") and node.name != "forward"]


def test_public_functions_and_classes_have_docstrings(sources):
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, _, tree in sources
        for node in public(tree)
        if ast.get_docstring(node) is None
    ]
    assert not wrong, wrong


def test_test_names_state_a_claim(all_sources):
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, _, tree in all_sources
        if path.startswith("tests/")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name.count("_") < 3
    ]
    assert not wrong, wrong
