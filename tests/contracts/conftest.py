"""Fixtures of the contract tests: the repository, its Python files as syntax trees, and fresh interpreters."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("interp", "probes", "circuits", "kernels", "dashboards")


class Source(NamedTuple):
    """One Python file: its path relative to the repository, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module


def read(folders: tuple[str, ...]) -> list[Source]:
    """Every Python file below the folders."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths if "__pycache__" not in path.parts}
    return [Source(str(path.relative_to(ROOT)), text, ast.parse(text)) for path, text in texts.items()]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Files of our five packages."""
    return read(PACKAGES)


@pytest.fixture(scope="session")
def all_sources() -> list[Source]:
    """Files of our packages, the tests, the benchmarks and the docs."""
    return read((*PACKAGES, "tests", "benchmarks", "docs"))


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter, in an empty folder, with `first` put first on its path."""

    def run(code: str, *, first: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | (
            {"PYTHONPATH": str(first)} if first else {}
        )
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run
