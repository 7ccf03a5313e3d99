"""Calls and habits that are banned: unsafe loading, hidden randomness, swallowed errors, work at import."""

import ast
import re
from collections.abc import Iterator

# Modules whose files run code when they are read.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "eval", "exec"}
HOSTILE_FILES = "tests/security/"  # hostile pickles are generated there, to prove that nothing reads them
DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal"}
MAY_SEED_GLOBALLY = {"interp/train.py"}  # torch's dropout draws from the global stream; restored by interp.reproducible
FUNCTIONS = {"FunctionDef", "AsyncFunctionDef"}
DECLARATIONS = {"Import", "ImportFrom", "ClassDef", "Assign", "AnnAssign", "TypeAlias"} | FUNCTIONS
VAGUE = re.compile(r"(^|_)(utils?|helpers?|manager|misc|stuff)(_|$)|(Utils?|Helper|Manager)$")


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain or name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def test_nothing_that_can_run_code_is_loaded(all_sources):
    wrong = []
    for path, _, tree in all_sources:
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            unsafe = [module for module in modules if module.split(".")[0] in UNSAFE_MODULES]
            if unsafe and not path.startswith(HOSTILE_FILES):
                wrong.append(f"{path}:{node.lineno} imports {unsafe}")
        wrong += [f"{path}:{node.lineno} calls {name}" for node, name in calls(tree) if name in UNSAFE_CALLS]
        wrong += [
            f"{path}:{node.lineno} allows pickled arrays"
            for node, _ in calls(tree)
            if not path.startswith(HOSTILE_FILES)
            if any(word.arg == "allow_pickle" and getattr(word.value, "value", None) is True for word in node.keywords)
        ]
    assert not wrong, wrong


def test_hostile_files_are_made_but_never_unpickled_by_the_tests(all_sources):
    wrong = [
        f"{path}:{node.lineno}"
        for path, _, tree in all_sources
        for node, name in calls(tree)
        if name.split(".")[0] in UNSAFE_MODULES and name.split(".")[-1] in {"load", "loads", "Unpickler"}
    ]
    assert not wrong, wrong


def test_randomness_comes_from_explicit_generators(sources):
    wrong = []
    for path, _, tree in sources:
        for node, name in calls(tree):
            given = {word.arg for word in node.keywords}
            if name.startswith("torch.") and name[6:] in DRAWS and "generator" not in given:
                wrong.append(f"{path}:{node.lineno} {name} without generator=")
            if name in {"torch.manual_seed", "torch.seed"} and path not in MAY_SEED_GLOBALLY:
                wrong.append(f"{path}:{node.lineno} {name}")
            if name.startswith(("random.", "np.random.", "numpy.random.")) and not name.endswith("default_rng"):
                wrong.append(f"{path}:{node.lineno} {name}")
            if name.endswith("random.default_rng") and not node.args:
                wrong.append(f"{path}:{node.lineno} {name} without a seed")
    assert not wrong, wrong


def test_no_device_is_written_into_the_code(sources):
    wrong = []
    for path, _, tree in sources:
        compared = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
        wrong += [
            f"{path}:{node.lineno} {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in compared
            if node.value == "cuda" or node.value.startswith("cuda:")
        ]
        wrong += [f"{path}:{node.lineno} .cuda()" for node, name in calls(tree) if name.endswith(".cuda")]
    assert not wrong, wrong


def test_no_error_is_swallowed(all_sources):
    wrong = []
    for path, _, tree in all_sources:
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = dotted(node.type) if node.type else "everything"
            if caught in {"everything", "Exception", "BaseException"}:
                wrong.append(f"{path}:{node.lineno} catches {caught}")
            if all(isinstance(step, ast.Pass) for step in node.body):
                wrong.append(f"{path}:{node.lineno} drops the error")
    assert not wrong, wrong


def test_nothing_happens_at_import(sources):
    wrong = []
    for path, _, tree in sources:
        for node in tree.body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            guard = isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "__name__ == '__main__'"}
            if not (type(node).__name__ in DECLARATIONS or text or guard):
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not wrong, wrong


def test_tests_have_no_sleep_rerun_or_expected_failure(all_sources):
    wrong = []
    for path, _, tree in all_sources:
        if path.startswith("tests/"):
            wrong += [f"{path}:{node.lineno} {name}" for node, name in calls(tree) if name in {"time.sleep", "sleep"}]
            wrong += [
                f"{path}:{node.lineno} {node.attr}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr in {"xfail", "flaky", "importorskip"}
            ]
    assert not wrong, wrong


def test_names_say_what_a_thing_is(sources):
    wrong = []
    for path, _, tree in sources:
        stems = [part.removesuffix(".py") for part in path.split("/")]
        named = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        wrong += [f"{path}: {name}" for name in stems + named if VAGUE.search(name)]
    assert not wrong, wrong
