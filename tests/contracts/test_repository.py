"""What the repository holds: no machine's paths, no registry hosts, a Makefile and CI script that work alone."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

THIS = "tests/contracts/test_repository.py"  # names what it forbids
TEXT = {".py", ".md", ".toml", ".cff", ".js", ".css", ".html", ".json", ".yml", ".yaml", ".txt", ".cfg", ""}
MACHINE_PATHS = re.compile(r"(?<![\w.>])/(?:home|Users|root|work|mnt|opt|workspace)/\w|/tmp/\w|[A-Z]:\\Users")
REGISTRY_HOSTS = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.(?:org|com)|npmjs\.com")
LEFTOVERS = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|\u2014")


@pytest.fixture(scope="module")
def tracked(root) -> dict[str, str]:
    """Text of each tracked text file; of each file that is not built, where there is no git."""
    listed = (
        subprocess.run(["git", "-C", str(root), "ls-files"], capture_output=True, text=True)
        if shutil.which("git")
        else None
    )
    if listed is not None and listed.returncode == 0:
        names = listed.stdout.splitlines()
    else:
        hidden = {".venv", "__pycache__", ".git", "_build", "runs"}
        names = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and not hidden & set(p.parts)]
    paths = {name: root / name for name in names if Path(name).suffix in TEXT and (root / name).is_file()}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if name != THIS}


def found(tracked: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    """file:line of every match."""
    return [
        f"{name}:{number} {line.strip()[:80]}"
        for name, text in tracked.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_path_of_some_machine(tracked):
    assert found(tracked, MACHINE_PATHS) == []


def test_no_file_names_a_package_registry(tracked):
    assert found(tracked, REGISTRY_HOSTS) == []


def test_no_note_to_finish_later_and_no_em_dash_is_left(tracked):
    assert found(tracked, LEFTOVERS) == []


def make(root: Path, *arguments: str) -> str:
    """What make would run, or print; nothing of an outer make reaches it."""
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    line = ["make", "--no-print-directory", *arguments]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=True, env=own).stdout


def test_make_without_a_target_lists_every_target(root):
    text = make(root)
    targets = re.findall(r"^([a-z][a-z-]*):.*##", (root / "Makefile").read_text(), re.MULTILINE)
    needed = {"demo", "test", "test-slow", "lint", "format", "docs", "setup-browser", "bench", "help"}
    assert needed <= set(targets)
    assert not [target for target in targets if f"  {target} " not in text]


@pytest.mark.parametrize("target", ["demo", "test"])
def test_demo_and_test_each_set_up_the_environment_with_torch_first(root, tmp_path, target):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    text = make(tmp_path, "-n", target)
    download, torch, rest = (
        text.index(part) for part in ("this downloads", 'install --progress-bar off "torch==2.13.0"', '-e ".[dev]"')
    )
    assert text.index("-m venv .venv") < download < torch < rest
    assert "TORCH_INDEX=URL" in text
    chosen = make(tmp_path, "-n", target, "TORCH_INDEX=https://example.invalid/cpu")
    assert '--index-url "https://example.invalid/cpu" "torch==2.13.0"' in chosen


def test_set_up_is_repeated_only_when_the_project_file_changed(root, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / ".installed").touch()
    assert "pip install" not in make(tmp_path, "-n", "test")
    stamp = (tmp_path / ".venv" / ".installed").stat().st_mtime
    os.utime(tmp_path / "pyproject.toml", (stamp + 10, stamp + 10))
    assert "pip" in make(tmp_path, "-n", "test").split("-m pytest")[0]


def test_a_python_that_is_too_old_or_missing_is_said_in_one_line(root, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    done = subprocess.run(["make", "setup", "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: no Python of at least 3.11 found" in done.stderr


@pytest.mark.parametrize("name", ["run", "browser"])
def test_ci_scripts_are_strict_executable_bash(root, name):
    script = root / ".ci" / name
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_runs_lint_and_tests_with_a_browser(root):
    text = (root / ".ci" / "run").read_text()
    positions = [text.index(part) for part in ("make lint", "make setup-browser", "REQUIRE_BROWSER=1 make test")]
    assert positions == sorted(positions)
    assert "</dev/null" in text


def test_licence_and_citation_agree_with_the_project(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    citation = (root / "CITATION.cff").read_text()
    assert (root / "LICENSE").read_text().startswith("MIT License")
    assert project["license"] == "MIT"
    assert f"\nversion: {project['version']}\n" in citation
    for title in ("Iteration Head", "Learning Associative Memories", "Scaling Laws", "Clustering Head", "Easing Optim"):
        assert title in citation
