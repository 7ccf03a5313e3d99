"""What starts quickly stays quick: CPU time of `interp --help`, and who loads torch."""

import resource
import subprocess
import sys

import pytest

BUDGET = 0.4
HEAVY = ("torch", "triton", "transformer_lens", "transformers", "nnsight", "streamlit", "pandas", "scipy")
SHOW_HEAVY = f"import sys; print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of one child process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "interp", *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["tasks", "ls"]], ids=" ".join)
def test_light_commands_stay_under_the_start_up_budget(arguments):
    assert min(cpu_seconds(arguments) for _ in range(3)) <= BUDGET


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["tasks", "ls"], ["runs", "ls"], ["--version"]], ids=" ".join
)
def test_light_commands_load_nothing_heavy(python, arguments):
    done = python(f"from interp.cli import main; print('code', main({arguments!r})); {SHOW_HEAVY}")
    assert "code 0" in done.stdout, done.stderr
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("module", ["kernels", "interp", "probes", "circuits", "dashboards", "circuits.report"])
def test_packages_themselves_load_nothing_heavy(python, module):
    done = python(f"import {module}; {SHOW_HEAVY}")
    assert "heavy: []" in done.stdout, done.stderr


def test_commands_of_entry_points_load_nothing_heavy(python):
    code = "from importlib.metadata import entry_points as e; [p.load() for p in e(group='interp.commands')]"
    done = python(f"{code}; {SHOW_HEAVY}")
    assert "heavy: []" in done.stdout, done.stderr
