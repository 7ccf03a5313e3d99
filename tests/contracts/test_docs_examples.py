"""The files that the how-to pages tell a reader to write pass the contract tests, as an installed package."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from interp.cli import main

EXAMPLE = re.compile(r"<!-- example: (\w+)\.py -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
KINDS = {"add-a-task.md": ("interp.tasks", "TASK"), "add-a-detector.md": ("interp.detectors", "DETECTOR")}
TINY = ["--set=train.steps=20", "--set=data.per_length=32", "--set=task_params.max_length=5", "--set=model.d_model=16"]


@pytest.fixture(scope="module")
def package(root, tmp_path_factory) -> Path:
    """A folder to put on the path: the example file of each page, and metadata that announces them as entry points."""
    folder = tmp_path_factory.mktemp("examples")
    announced = []
    for page, (group, attribute) in KINDS.items():
        ((name, source),) = EXAMPLE.findall((root / "docs" / "how-to" / page).read_text(encoding="utf-8"))
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        announced += [f"[{group}]", f"{name} = {name}:{attribute}", ""]
    info = folder / "docs_examples-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: docs-examples\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(announced))
    return folder


def test_example_files_pass_the_contract_tests_of_their_kind(root, package):
    tests = [f"tests/contracts/test_{kind}_files.py" for kind in ("task", "detector")]
    options = ["-q", "-p", "no:cacheprovider", "-k", "permutations or clock_head"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10


def test_example_files_have_the_layout_of_ours(root, package):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(root / "pyproject.toml"), "--ignore", "I001", package],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_example_task_is_trained_and_example_detector_looks_at_it(package, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(package))
    store = ["--store", str(tmp_path)]
    try:
        assert main(["train", "permutations", *TINY, "--name", "try", "--quiet", *store]) == 0
        capsys.readouterr()
        assert main(["detect", "try", "--detector", "clock_head", "--null", "99", "--json", *store]) == 0
        found = json.loads(capsys.readouterr().out)["detection"]
    finally:
        for name in ("permutations", "clock_head"):
            sys.modules.pop(name, None)
    assert (found["detector"], found["verdict"]) == ("clock_head", "none")
    assert [check["name"] for check in found["causal"]] == ["interchange"]


def test_python_of_the_page_on_reading_a_run_works_from_top_to_bottom(root, tmp_path, monkeypatch, capsys):
    page = (root / "docs" / "how-to" / "read-a-run.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "polynomial", *TINY, "--name", "poly1", "--quiet"]) == 0
    capsys.readouterr()
    runpy.run_path("page.py")
    out = capsys.readouterr().out
    assert "['poly1']\ndone 20\npolynomial 0 16\n" in out
    assert "interchange L1.H0" in out
