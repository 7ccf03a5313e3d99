"""AutoCircuit beside the engine, by way of a plain forward: it does not import beside TransformerLens 4.

    python -m venv OTHER && OTHER/bin/pip install auto-circuit "transformer-lens<3" "transformers<5" "datasets<4"
    python -m benchmarks.patching_autocircuit --python OTHER/bin/python

The other interpreter times patches by AutoCircuit's masks and plain forwards of the same TransformerLens 2 model, in
turns on one thread, after comparing effects with hooks in float64. What a patch costs there in plain forwards, times
the number of patches and what our plain forward costs in `patching.json` beside the engine, is the ratio printed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks._patching_cases import CASES
from interp.errors import InterpError, UsageError
from interp.provenance import environment

RESULTS = Path(__file__).parent / "results"
WORKER = Path(__file__).parent / "_autocircuit_worker.py"
NAMES = ("toy-64-last", "gpt2-20-last")
VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("auto-circuit", "transformer-lens", "torch")}))
"""


def shapes() -> dict[str, dict[str, int]]:
    """What the other interpreter builds."""
    sizes = ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab")
    return {
        case.name: {name: getattr(case.shape, name) for name in sizes} | {"n_ctx": case.n_pos}
        for case in CASES
        if case.name in NAMES
    }


def asked(python: Path, arguments: list[str], text: str = "") -> dict:
    """What the other interpreter prints, as JSON.

    Raises:
        UsageError: if it fails, with its last line.
    """
    done = subprocess.run([str(python), *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"--python {python}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def beside_the_engine(found: dict[str, dict], patching: dict) -> dict[str, dict]:
    """Each case with AutoCircuit's time over the engine's, where both were measured."""
    ours = {case["name"]: case.get("ratios", {}).get("loop") for case in patching["cases"]}
    joined = {}
    for name, case in found.items():
        loop = ours.get(name)
        over = None if loop is None or "forwards_per_patch" not in case else case["forwards_per_patch"] * loop["median"]
        joined[name] = case | {"over_engine": None if over is None else float(f"{over:.4g}")}
    return joined


def main() -> int:
    """Measure, print, and write `patching_autocircuit.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="interpreter of an environment with auto-circuit")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.python is None:
        print("skipped: no --python with auto-circuit given")
        return 0
    packages = asked(options.python, ["-c", VERSIONS])
    found = asked(options.python, [str(WORKER)], json.dumps({"shapes": shapes(), "rounds": options.rounds}))
    cases = beside_the_engine(found, json.loads((RESULTS / "patching.json").read_text(encoding="utf-8")))
    for name, case in cases.items():
        if "forwards_per_patch" not in case:
            print(f"{name}: WRONG, no ratio: effects differ from hooks by {case['error']:.1e}")
            continue
        print(
            f"{name}: {case['forwards_per_patch']:.2f} plain forwards per patch [{case['lowest']:.2f}, "
            f"{case['highest']:.2f}] (effects equal to {case['error']:.0e}), {case['over_engine']} times the engine"
        )
    document = {"format": 1, "benchmark": "patching_autocircuit", "packages": packages, "cases": cases}
    document |= {"rounds": options.rounds, "provenance": environment("cpu", 1)}
    (RESULTS / "patching_autocircuit.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any("forwards_per_patch" not in case for case in cases.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InterpError as error:
        sys.exit(f"error: {error}")
