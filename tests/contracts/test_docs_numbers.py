"""Numbers in README and docs are those of the result files they name."""

import json

import pytest

from benchmarks._discovery_table import large, row, span
from benchmarks._discovery_table import markdown as discovery_table
from benchmarks._patching_table import markdown
from benchmarks.patching_autocircuit import beside_the_engine
from benchmarks.patching_autocircuit import markdown as autocircuit_table
from benchmarks.seeds import table

PEERS = ("transformer_lens", "best")


def short(value: float, digits: int) -> str:
    """A share without its leading zero, as the pages write it."""
    return f"{value:.{digits}f}".removeprefix("0")


@pytest.fixture(scope="module")
def untrained(root) -> dict[int, dict]:
    """The measurement of untrained attention, by heads per layer."""
    path = root / "benchmarks" / "results" / "untrained_attention.json"
    return {case["heads"]: case for case in json.loads(path.read_text())["cases"]}


def share(entry: dict[str, float]) -> str:
    """value [low, high]."""
    return f"{short(entry['value'], 3)} [{short(entry['low'], 3)}, {short(entry['high'], 3)}]"


def test_detector_page_has_the_measured_tables(root, untrained):
    page = (root / "docs" / "explanation" / "detector.md").read_text(encoding="utf-8")
    for heads, case in untrained.items():
        assert f"| {heads} | " + " | ".join(share(entry) for entry in case["above"].values()) + " |" in page
        mean, best = case["quantile_99"].values()
        for role in mean:
            assert f"| {heads} | {role} | {short(mean[role], 2)} | {short(best[role], 2)} |" in page
        assert f"n = {case['models']:,} untrained models" in page


def test_step_times_are_those_of_the_benchmark(root):
    record = json.loads((root / "benchmarks" / "results" / "train_step.json").read_text())
    page = (root / "docs" / "measured.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name, case in record["cases"].items():
        low, high = case["ratio_quartiles"]
        assert f"| {name} | {case['ratio']:.3f} | {low:.3f} to {high:.3f} | {record['blocks']} |" in page
    preset = record["cases"]["preset"]
    low, high = preset["ratio_quartiles"]
    assert f"| {preset['ratio']:.3f} times, quartiles {low:.3f} to {high:.3f} | {record['blocks']} blocks |" in readme


def test_readme_shares_are_those_of_the_measurement(root, untrained):
    readme = (root / "README.md").read_text(encoding="utf-8")
    for length in ("1", "4"):
        entry = untrained[8]["above"][length]
        text = f"{short(entry['value'], 3)}, 95 % interval [{short(entry['low'], 3)}, {short(entry['high'], 3)}]"
        assert f"| {text} | {entry['n']:,} models |" in readme


def test_seed_table_is_that_of_the_benchmark(root):
    record = json.loads((root / "benchmarks" / "results" / "seeds-polynomial.json").read_text())
    assert table(record) in (root / "docs" / "measured.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    for count in record["counts"].values():
        hits, n = round(count["value"] * count["n"]), count["n"]
        assert f"| {hits} of {n}, 95 % interval {count['low']:.2f} to {count['high']:.2f} |" in readme


def test_null_counts_are_those_of_the_slow_suite(root):
    counts = json.loads((root / "benchmarks" / "results" / "nulls.json").read_text())["counts"]
    page = (root / "docs" / "measured.md").read_text(encoding="utf-8")
    for c in counts:
        row = (c["kind"], c["heads"], c["n"], c["solve"], c["statistic_alone"], c["iteration_head"])
        assert f"| {' | '.join(str(cell) for cell in row)} |" in page
    assert f"In all {sum(c['n'] for c in counts)} models: {sum(c['iteration_head'] for c in counts)} called" in page


def test_warm_starts_in_the_readme_are_those_of_the_zoo(root):
    runs = json.loads((root / "benchmarks" / "results" / "zoo.json").read_text())["runs"]
    parity = [run for run in runs if run["run"].startswith("parity-from-polynomial-s")]
    solved = [run["first_solved_step"] for run in parity if run["lowest_sequence_accuracy"] >= 0.99]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"| {len(solved)} of {len(parity)}, by step {max(solved)} | {len(parity)} runs |" in readme


def test_patching_tables_are_those_of_the_benchmarks(root):
    page = (root / "docs" / "measured.md").read_text(encoding="utf-8")
    results = root / "benchmarks" / "results"
    for name in ("patching.json", "patching-epyc.json"):
        assert markdown(json.loads((results / name).read_text())) in page
    for name, case in json.loads((results / "attribution.json").read_text())["cases"].items():
        cells = [f"{case[method]['forwards']:.1f} | {case[method]['bar']}" for method in ("eap", "eap_ig")]
        assert f"| {name} | {' | '.join(cells)} |" in page
    for name, case in json.loads((results / "patch_edges.json").read_text())["cases"].items():
        assert (
            f"| {name}: {case['edges']:,} | {case['run']:,} | {case['engine_seconds']:.3f} | {case['ratio']:.0f} |"
            in page
        )


def test_autocircuit_in_the_docs_is_that_of_its_benchmark(root):
    results = root / "benchmarks" / "results"
    document = json.loads((results / "patching_autocircuit.json").read_text())
    found = {name: {k: v for k, v in case.items() if k != "over_engine"} for name, case in document["cases"].items()}
    cases = beside_the_engine(found, json.loads((results / "patching.json").read_text()))
    assert cases == document["cases"]
    assert autocircuit_table(cases) in (root / "docs" / "measured.md").read_text(encoding="utf-8")


def test_the_readme_names_the_patching_ratios_of_the_benchmark(root):
    cases = json.loads((root / "benchmarks" / "results" / "patching.json").read_text())["cases"]
    readme = (root / "README.md").read_text(encoding="utf-8")
    for case in cases:
        if case["name"] in ("toy-256-all", "gpt2-20-last"):
            ratios = [case["ratios"][name] for name in ("transformer_lens", "best")]
            text = [f"{one['median']:.3g} [{one['lowest']:.3g}, {one['highest']:.3g}]" for one in ratios]
            assert f"| {text[0]} and {text[1]} times | {case['patches']:,} patches, {case['rounds']} rounds |" in readme


def test_patching_elsewhere_in_readme_and_docs_is_that_of_the_other_machine(root):
    found = json.loads((root / "benchmarks" / "results" / "patching-epyc.json").read_text())["cases"]
    ratios = {case["name"]: {name: f"{one['median']:.3g}" for name, one in case["ratios"].items()} for case in found}
    toy, gpt2 = (" and ".join(ratios[name][by] for by in PEERS) for name in ("toy-256-all", "gpt2-20-last"))
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert f"on another one the first two rows are {toy}, and {gpt2} times" in readme
    page = " ".join((root / "docs" / "measured.md").read_text(encoding="utf-8").split())
    for peer in ("pyvene", "nnsight"):
        values = [ratios[name][peer] for name in ("toy-64-last", "toy-256-all", "gpt2-20-last")]
        assert f"{values[0]}, {values[1]} and {values[2]} times" in page


def test_circuits_in_docs_and_readme_are_those_of_the_benchmark(root):
    results = json.loads((root / "benchmarks" / "results" / "discovery.json").read_text())
    page = (root / "docs" / "measured.md").read_text(encoding="utf-8")
    assert discovery_table(results) in page and large(results) in page
    found = [run["length 16"] for run in results["polynomial"]["runs"].values()]
    cells = row("length 16", found).split(" | ")
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"| {cells[2]} of the live edges keep {cells[3]} of the metric | {len(found)} runs |" in readme
    best = span([one["controls"]["random paths"]["largest"] for one in found])
    assert f"| {best} | {len(found)} runs, 100 circuits each |" in readme
    assert {one["verdict"] for one in found} == {"circuit"}
