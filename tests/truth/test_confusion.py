"""Detector verdicts on trained models against the labels of pattern_surgery.py; the slow form writes the table."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from circuits.detectors.iteration_head import DETECTOR, Options
from interp.evaluate import teacher_forced
from probes.intervals import share
from probes.null import NullScan
from tests.truth.exported import MODELS, Exported, exported
from tests.truth.pattern_surgery import Label, label_model

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "confusion.json", ROOT / "docs" / "confusion.md"
SMALL = Options(n_null=99, per_step=4, per_length=16, accuracy_sequences=128)
VERDICTS = ("iteration head", "candidate", "solved without the textbook head", "not solved", "none")
LABELS = ("textbook", "other", "ambiguous")
COMMAND = "python -m pytest -m slow tests/truth/test_confusion.py"
FEWEST = 20


def scored(models: list[Exported], options: Options, lengths: tuple[int, ...] = ()) -> list[dict]:
    """Verdict and label of each model; models of one configuration and one split share a null."""
    nulls: dict[str, NullScan] = {}
    rows = []
    for entry in models:
        model, task, held_out = entry.load()
        sequences = {n: tokens for n, tokens in held_out.items() if not lengths or n in lengths}
        key = f"{model.cfg.model_dump_json()} {task.name} {task.params.model_dump_json()}"
        if key not in nulls:
            nulls[key] = DETECTOR.null(model, task, sequences, options)
        found = DETECTOR.detect(model, task, sequences=sequences, options=options, null=nulls[key])
        rows.append(row(entry, found, label_model(model, task, sequences)))
    return rows


def row(entry: Exported, found, label: Label) -> dict:
    """One line of the table."""
    joint = next(item for item in found.null if item.role == "joint")
    swaps: dict[str, float] = {}
    for check in found.causal:  # those of the tested pair come first
        if check.name == "interchange":
            swaps.setdefault(check.role, check.effect.value)
    return {
        "run": entry.name,
        "step": entry.step,
        "checkpoint": entry.checkpoint,
        "config_hash": entry.config.hash(),
        "lowest_accuracy": round(label.lowest_accuracy, 4),
        "verdict": found.verdict,
        "heads": found.heads,
        "joint_mass": round(joint.observed, 3),
        "p": joint.p_value,
        "interchange": {role: round(value, 3) for role, value in sorted(swaps.items())},
        "label": label.label,
        "labelled_heads": {"clock": label.clock, "reading": label.reading} if label.label == "textbook" else {},
        "margin": round(label.margin, 3),
        "missing": found.missing,
    }


def disagreements(rows: list[dict]) -> list[dict]:
    """Clear labels that the verdict contradicts, in kind or in the heads it names."""
    return [item for item in rows if item["label"] != "ambiguous" and contradicts(item)]


def contradicts(item: dict) -> bool:
    """Whether verdict and label differ, or both are positive and name other heads."""
    found = item["verdict"] == "iteration head"
    return found != (item["label"] == "textbook") or (found and item["heads"] != item["labelled_heads"])


def test_the_stored_weights_are_those_of_the_index():
    rows = json.loads((MODELS / "index.json").read_text(encoding="utf-8"))["models"]
    assert sum(row["bytes"] for row in rows) <= 6_000_000
    for row in rows:
        data = (MODELS / f"{row['run']}.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"], row["run"]


def test_a_stored_model_has_the_accuracy_of_the_index():
    entry = next(entry for entry in exported("polynomial-d32-s*") if entry.solved)
    model, task, held_out = entry.load()
    lowest = min(
        teacher_forced(model, task, tokens, length).sequence.float().mean().item()
        for length, tokens in held_out.items()
    )
    assert lowest == pytest.approx(entry.lowest_accuracy, abs=0.002)  # two sequences of a thousand may round otherwise


def test_verdicts_agree_with_the_labels_on_four_trained_models(without_carriers):
    models = [entry for entry in exported("polynomial-d32-s*") if entry.solved][:4]
    rows = scored(models, SMALL, (2, 4, 9, 12, 16))
    assert len(rows) == 4
    assert disagreements(rows) == []


@pytest.mark.slow
def test_verdicts_agree_with_the_labels_on_every_solved_model(without_carriers):
    rows = scored([entry for entry in exported() if entry.solved and entry.iterates], Options())
    write(rows)
    assert len(rows) >= FEWEST
    assert [item["run"] for item in disagreements(rows) if item["verdict"] == "iteration head"] == []
    assert len(disagreements(rows)) <= 0.1 * len(rows), [item["run"] for item in disagreements(rows)]


def write(rows: list[dict]) -> None:
    """The table as JSON and as a page of the docs."""
    counts = Counter((row["verdict"], row["label"]) for row in rows)
    table = [{"verdict": v, **{label: counts[v, label] for label in LABELS}} for v in VERDICTS]
    clear = [row for row in rows if row["label"] != "ambiguous"]
    agreed = share(len(clear) - len(disagreements(rows)), len(clear))
    record = {
        "format": 1,
        "command": COMMAND,
        "torch": torch.__version__,
        "agreement": {"value": agreed.value, "low": agreed.low, "high": agreed.high, "n": agreed.n},
        "table": table,
        "models": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(rows, table, agreed))


def page(rows: list[dict], table: list[dict], agreed) -> str:
    """The docs page."""
    lines = [
        "# Verdicts against independent labels",
        "",
        f"<!-- Generated by {COMMAND}; do not edit. -->",
        "",
        "Every solved model kept in `tests/truth/models` was judged twice: by the iteration-head detector and by",
        "`tests/truth/pattern_surgery.py`, which rewrites attention rows and never calls the detector. Rows are",
        "verdicts, columns labels; a label is `ambiguous` where no head is clearly right or clearly wrong.",
        "",
        f"| verdict | {' | '.join(LABELS)} |",
        "|---|" + "---|" * len(LABELS),
        *(f"| {line['verdict']} | {' | '.join(str(line[label]) for label in LABELS)} |" for line in table),
        "",
        f"The verdict agrees with {agreed.value:.1%} of the {agreed.n} clear labels (95 % interval {agreed.low:.1%} to",
        f"{agreed.high:.1%}), heads included. The trained models come from `python -m benchmarks.zoo --store zoo` and",
        "`python tests/truth/export_models.py zoo`. Regenerate this page with",
        f"`{COMMAND}`.",
        "",
        "| run | verdict | label | margin of the label | joint mass | p | interchange reading, clock |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in rows:
        swaps = ", ".join(f"{item['interchange'].get(role, float('nan')):.2f}" for role in ("reading", "clock"))
        lines.append(
            f"| {item['run']} | {item['verdict']} | {item['label']} | {item['margin']:.2f} | {item['joint_mass']:.2f} "
            f"| {item['p']:.3g} | {swaps} |"
        )
    lines += ["", "Where a clear label and the verdict differ, the detector misses:", ""]
    lines += [f"- {item['run']}: {'; '.join(item['missing'])}" for item in disagreements(rows)] or ["- nothing"]
    return "\n".join(lines) + "\n"
