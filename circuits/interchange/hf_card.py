"""The README.md of a Hugging Face folder: what the model is, where it comes from, how to load it, and its limits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.interchange.files import write_bytes
from circuits.interchange.hf_folder import Expressed, LogitCheck

LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
logits = model(**tokenizer("{example}", return_tensors="pt", return_token_type_ids=False)).logits
```
"""
OWN_LOADING = """\
No Hugging Face class computes this model, so `AutoModelForCausalLM` does not load this folder. `config.json` holds its
whole configuration under `model`, and `model.safetensors` its weights under their own names; any safetensors reader
opens them. What each architecture lacks:

{reasons}
"""


@dataclass(frozen=True)
class Origin:
    """Where the model comes from.

    Attributes:
        accuracy: held-out sequence accuracy by length at the end of the training; empty for an earlier checkpoint.
        example: token names of one sequence.
        circuit: headline of the stored circuit of this checkpoint; empty where there is none.
    """

    run: str
    step: int
    task: str
    summary: str
    params: dict[str, Any]
    seed: int
    checkpoint: str
    config_hash: str
    code_version: str
    accuracy: dict[int, float]
    example: tuple[str, ...]
    circuit: str


def write_card(folder: Path, found: Expressed, origin: Origin, check: LogitCheck | None) -> None:
    """Write README.md."""
    write_bytes(folder / "README.md", card(found, origin, check).encode("utf-8"))


def belongs_to(text: str, run: str) -> bool:
    """Whether a README.md is a card of this run, of whatever step."""
    return text.startswith("---\n") and "\n- interp\n" in text and f"\n# {run}, step " in text


def card(found: Expressed, origin: Origin, check: LogitCheck | None) -> str:
    """The text; equal models give equal text."""
    tags = ["interp", "mechanistic-interpretability", origin.task]
    header = [*(["library_name: transformers"] if found.architecture else []), "tags:", *(f"- {tag}" for tag in tags)]
    parts = [
        "---\n" + "\n".join(header) + "\n---",
        f"# {origin.run}, step {origin.step}",
        f"A small decoder trained on the task `{origin.task}`: {origin.summary}",
        "## Loading\n\n" + _loading(found, origin) + _equality(found, check),
        "## Where it comes from\n\n" + _table(_provenance(origin)),
        "## Accuracy\n\n" + _accuracy(origin),
        "## Circuit\n\n" + (origin.circuit or "No circuit was looked for at this checkpoint."),
        "## Limits\n\n" + _limits(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _loading(found: Expressed, origin: Origin) -> str:
    if found.architecture is None:
        lines = "\n".join(f"- {name}: {'; '.join(missing)}" for name, missing in found.reasons.items())
        return OWN_LOADING.format(reasons=lines)
    return LOADING.format(folder="path/to/this/folder", example=" ".join(origin.example))


def _equality(found: Expressed, check: LogitCheck | None) -> str:
    if check is None:
        return ""
    added = "".join(f"\n- {note}" for note in found.notes)
    return (
        f"\nThe class is `{found.architecture}`. Opened so, its logits differ from the model's float64 formulas by at "
        f"most {check.largest:.1e} over {check.sequences} random sequences of {check.positions} tokens; the trained "
        f"model itself, in float32, by {check.own:.1e}. Added or moved without any effect:\n{added}\n"
    )


def _provenance(origin: Origin) -> dict[str, str]:
    return {
        "run": origin.run,
        "training step": str(origin.step),
        "checkpoint (sha256 of its manifest)": origin.checkpoint,
        "configuration (sha256)": origin.config_hash,
        "task parameters": json.dumps(origin.params, sort_keys=True),
        "seed": str(origin.seed),
        "written by": f"interp {origin.code_version}",
    }


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in rows.items())])


def _accuracy(origin: Origin) -> str:
    if not origin.accuracy:
        return "Not the final checkpoint; its accuracy stands in the run's metrics."
    lines = [f"| {length} | {value:.4f} |" for length, value in origin.accuracy.items()]
    head = ["Share of held-out sequences with every state right.", "", "| length | accuracy |", "|---|---|"]
    return "\n".join([*head, *lines])


def _limits() -> str:
    said = [
        "It knows the words of its task and nothing else; `tokenizer.json` divides text at blanks.",
        "Weights are float32. Dropout of the training is left out, as in every evaluation.",
        "It is written to be taken apart, not to be used.",
    ]
    return "\n".join(f"- {line}" for line in said)
