"""AutoCircuit beside the engine, by way of a plain forward: it does not import beside TransformerLens 4.

    python -m benchmarks.patching_autocircuit [--case NAME ...] [--python OTHER/bin/python]

An environment of its own is built in a temporary folder, unless --python names one that has auto-circuit. Its
interpreter times patches by AutoCircuit's masks and plain forwards of the same TransformerLens 2 model, in turns on one
thread, after comparing effects with hooks in float64. A few random patches are timed in each round, and scaled: what a
patch costs there in plain forwards, times the number of patches and what our plain forward costs in `patching.json`
beside the engine, is the ratio printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._patching_cases import CASES
from interp.errors import InterpError, UsageError
from interp.provenance import environment

RESULTS = Path(__file__).parent / "results"
WORKER = Path(__file__).parent / "_autocircuit_worker.py"
TIMED = {  # patches and rounds of each case; the first round of them warms up
    "toy-64-last": {"n_patches": 16, "rounds": 9},
    "gpt2-20-last": {"n_patches": 4, "rounds": 3},
}
PACKAGES = ("torch", "auto-circuit", "transformer-lens<3", "transformers<5", "datasets<4", "pyarrow<20")
VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("auto-circuit", "transformer-lens", "torch")}))
"""


def asked_of(names: list[str]) -> dict[str, dict]:
    """What the other interpreter builds and times, by case."""
    sizes = ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab")
    return {
        case.name: {
            "shape": {name: getattr(case.shape, name) for name in sizes} | {"n_ctx": case.n_pos},
            **TIMED[case.name],
        }
        for case in CASES
        if case.name in names
    }


def ran(command: list[str], text: str = "") -> str:
    """What a command prints.

    Raises:
        UsageError: if it fails, with its last line.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{Path(command[0]).name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def asked(python: Path | str, arguments: list[str], text: str = "") -> dict:
    """What the other interpreter prints last, as JSON.

    Raises:
        UsageError: if it fails, with its last line.
    """
    return json.loads(ran([str(python), *arguments], text).splitlines()[-1])


@contextmanager
def interpreter(given: Path | None) -> Iterator[Path]:
    """The interpreter that was named, or that of a new environment, which is removed at the end.

    Raises:
        UsageError: if the packages cannot be installed.
    """
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="auto-circuit-") as folder:
        print(f"installing {', '.join(PACKAGES)} in a temporary folder", file=sys.stderr)
        ran([sys.executable, "-m", "venv", folder])
        python = Path(folder) / "bin" / "python"
        ran([str(python), "-m", "pip", "install", "--quiet", *PACKAGES])
        yield python


def beside_the_engine(found: dict[str, dict], patching: dict) -> dict[str, dict]:
    """Each case with AutoCircuit's time over the engine's, where both were measured."""
    ours = {case["name"]: case.get("ratios", {}).get("loop") for case in patching["cases"]}
    joined = {}
    for name, case in found.items():
        loop = ours.get(name)
        over = None if loop is None or "forwards_per_patch" not in case else case["forwards_per_patch"] * loop["median"]
        joined[name] = case | {"over_engine": None if over is None else float(f"{over:.4g}")}
    return joined


def show(name: str, case: dict) -> None:
    """One line."""
    if "forwards_per_patch" not in case:
        print(f"{name}: WRONG, no ratio: effects differ from hooks by {case['error']:.1e}")
        return
    print(
        f"{name}: {case['forwards_per_patch']:.2f} plain forwards per patch [{case['lowest']:.2f}, "
        f"{case['highest']:.2f}] (effects equal to {case['error']:.0e}; {case['n_patches']} patches, {case['rounds']} "
        f"rounds), {case['over_engine']} times the engine"
    )


def markdown(cases: dict[str, dict]) -> str:
    """The cases as a Markdown table."""
    lines = ["| case | plain forwards per patch | patches timed, rounds | over the engine |", "|---|---|---|---|"]
    for name, case in cases.items():
        share = f"{case['forwards_per_patch']:.2f} [{case['lowest']:.2f}, {case['highest']:.2f}]"
        lines.append(f"| {name} | {share} | {case['n_patches']}, {case['rounds']} | {case['over_engine']:.3g} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write `patching_autocircuit.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="interpreter of an environment with auto-circuit")
    parser.add_argument("--case", action="append", choices=list(TIMED), help="only this one; the file keeps the others")
    options = parser.parse_args()
    path, names = RESULTS / "patching_autocircuit.json", options.case or list(TIMED)
    kept = json.loads(path.read_text(encoding="utf-8"))["cases"] if options.case and path.exists() else {}
    try:
        with interpreter(options.python) as python:
            packages = asked(python, ["-c", VERSIONS])
            cases = asked_of(names)
            found = asked(python, [str(WORKER)], json.dumps(cases))
    except UsageError as error:
        print(f"skipped: {error}")
        return 0
    found = {name: case | {key: cases[name][key] for key in ("n_patches", "rounds")} for name, case in found.items()}
    joined = beside_the_engine(found, json.loads((RESULTS / "patching.json").read_text(encoding="utf-8")))
    for name, case in joined.items():
        show(name, case)
    cases = {name: (kept | joined)[name] for name in TIMED if name in kept | joined}
    document = {"format": 1, "benchmark": "patching_autocircuit", "packages": packages, "cases": cases}
    document["provenance"] = environment("cpu", 1)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any("forwards_per_patch" not in case for case in joined.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InterpError as error:
        sys.exit(f"error: {error}")
