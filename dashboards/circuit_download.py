"""Files of a stored circuit for other programs and readers, made when they are asked for."""

import subprocess
import tempfile
from pathlib import Path

from circuits.report.circuit_file import circuit_file
from circuits.stored import StoredCircuit
from interp.errors import InterpError
from interp.processes import python_module
from interp.run import Run

SECONDS = 120.0
PAGE = "circuit.html"


def drawing_file(run: Run, one: StoredCircuit, columns: bool) -> str:
    """The drawing that is shown as an SVG file of its own."""
    title = f"{run.name}, step {one.step:,}: {one.data['verdict']}"
    return circuit_file(one.data["circuit"], positions="columns" if columns else "pooled", title=title)


def page_file(run: Run, one: StoredCircuit) -> bytes:
    """The page of `interp report circuit`, written by a process of its own, so that this one loads no torch.

    Raises:
        InterpError: what the command refused, in its own words.
    """
    which = "--positions" if one.by_position else "--no-positions"
    store = str(run.path.parent.resolve())
    with tempfile.TemporaryDirectory() as folder:
        words = ["report", "circuit", run.name, "--checkpoint", str(one.step), which, "--store", store, "-o", folder]
        line = python_module("interp", *words)
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise InterpError(f"the page was not written within {SECONDS:.0f} s; give the command itself") from None
        if done.returncode != 0:
            raise InterpError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no page was written")
        return (Path(folder) / PAGE).read_bytes()
