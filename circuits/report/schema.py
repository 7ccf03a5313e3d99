"""The one object a circuit report is: validated, hashed, and the only source of every rendered form.

Loads no torch, so that reading and verifying a report stays quick.
"""

import base64
import binascii
import hashlib
import json
import sys
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from circuits.detectors.base import Carrier, Detection, Emergence, Interval, Verdict
from interp.config import Frozen, canonical_json
from interp.errors import ReportError

FORMAT = "circuit-report/1"
ENCODING = "uint8 sqrt(p) base64"
LATER = frozenset(  # fields that older reports lack; left out where they are empty, so that the hash of those stays
    {"observed_interval", "over", "accuracy_interval", "clock_interval", "reading_interval", "causal_interval"}
)


class Subject(Frozen):
    """What was examined: one checkpoint of one run."""

    run: str
    step: int = Field(ge=0)
    task: str
    task_summary: str = Field(description="the task in one sentence")
    example: list[str] = Field(default_factory=list, description="tokens of one sequence, as the model sees it")
    model: str = Field(description="the model in one sentence: layers, heads, widths, norms, positions")
    parameters: int = Field(ge=0, description="number of trained parameters")
    training: str = Field(description="the training in one sentence: steps, batch, optimiser, why it stopped")


class CircuitRow(Frozen):
    """One node of the circuit with the intervention that speaks for it."""

    component: str = Field(description="head, as L1.H0")
    role: str = Field(description="clock, reading, ...")
    position_rule: str = Field(description="from which position it looks where, in words")
    attention: Interval | None = Field(None, description="mean attention on the target key")
    metric: str = Field(description="what `effect` measures")
    effect: Interval
    control: Interval | None = Field(None, description="the same on a matched control; None: none is possible")
    control_name: str = ""
    passed: bool | None = Field(description="None: not tested")


class DrawnMove(Frozen):
    """One arrow of the circuit drawing: at position `query`, `component` reads from position `key`."""

    component: str
    role: str
    layer: int = Field(ge=0)
    query: int = Field(ge=0)
    key: int = Field(ge=0)
    carries: str = Field("", description="what the arrow brings, in a few words")


class CircuitDrawing(Frozen):
    """A short sequence on which the circuit is drawn for one prediction."""

    tokens: list[str] = Field(min_length=1)
    query: int = Field(ge=0, description="position whose next-token prediction is drawn")
    answer: str = Field(description="token that is predicted there")
    moves: list[DrawnMove]
    names: list[str] = Field(default_factory=list, description="name of each position, as x1 or s2; empty: numbers")
    mlp: str = Field("MLP", description="what is written in the MLP's box")

    @model_validator(mode="after")
    def _inside(self) -> "CircuitDrawing":
        places = [self.query] + [place for move in self.moves for place in (move.query, move.key)]
        if max(places) >= len(self.tokens):
            raise ValueError(f"drawing: position {max(places)} is outside its {len(self.tokens)} tokens")
        if self.names and len(self.names) != len(self.tokens):
            raise ValueError(f"drawing: {len(self.names)} names for {len(self.tokens)} tokens")
        return self


class Control(Frozen):
    """A control beside the causal checks, including one that could not be made and why."""

    name: str
    description: str
    result: Interval | None = Field(None, description="None: the control is not possible or gives no number")
    outcome: str = Field(description="what it means for the claim, in words")


class CurvePoint(Frozen):
    """One evaluation on held-out sequences during training."""

    step: int = Field(ge=0)
    loss: float | None = None
    accuracy: dict[int, float] = Field(default_factory=dict, description="sequence accuracy by selected length")


class AttentionExample(Frozen):
    """One held-out sequence with its attention patterns at every listed checkpoint."""

    label: str
    length: int = Field(ge=0)
    tokens: list[str] = Field(min_length=1)
    targets: dict[str, list[tuple[int, int]]] = Field(
        default_factory=dict, description="role -> ground-truth (query, key) positions"
    )
    patterns: list[str] = Field(description="per checkpoint: base64 of uint8 round(255 sqrt(p)), [layer head q k]")


class AttentionEvidence(Frozen):
    """Attention patterns of sequences chosen by a stated rule, not by hand."""

    rule: str = Field(description="how the sequences were chosen")
    encoding: Literal["uint8 sqrt(p) base64"] = ENCODING
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    steps: list[int] = Field(min_length=1, description="training steps of the checkpoints")
    examples: list[AttentionExample]

    @model_validator(mode="after")
    def _complete(self) -> "AttentionEvidence":
        for example in self.examples:
            if len(example.patterns) != len(self.steps):
                raise ValueError(f"{example.label}: {len(example.patterns)} patterns for {len(self.steps)} checkpoints")
            n_pos = len(example.tokens)
            expected = self.n_layers * self.n_heads * n_pos * n_pos
            for step, pattern in zip(self.steps, example.patterns, strict=True):
                if _decoded_length(pattern) != expected:
                    raise ValueError(f"{example.label}, step {step}: pattern is not base64 of {expected} bytes")
            for role, pairs in example.targets.items():
                if any(not 0 <= place < n_pos for pair in pairs for place in pair):
                    raise ValueError(f"{example.label}: a {role} target lies outside its {n_pos} tokens")
        return self


def _decoded_length(text: str) -> int:
    """Bytes in a base64 string, or -1 where it is not one."""
    try:
        return len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return -1


class RejectedHead(Frozen):
    """A head that passed the attention score and failed the ablation: attention alone is no proof."""

    component: str
    role: str
    score: float = Field(description="attention mass on the target")
    check: str = Field(description="the intervention that it failed")
    effect: Interval
    reason: str


class CheckpointHash(Frozen):
    """One checkpoint of the run by its manifest hash."""

    step: int = Field(ge=0)
    sha256: str


class Command(Frozen):
    """One command line and what it does."""

    purpose: str
    line: str


class Provenance(Frozen):
    """What it takes to make this report again."""

    config: dict[str, Any] = Field(description="the run's configuration")
    config_hash: str
    seed: int
    data_seed: int = Field(description="seed of the train/test split")
    checkpoints: list[CheckpointHash]
    code_version: str
    dirty: bool | None = Field(description="uncommitted changes in the code; None: unknown")
    packages: dict[str, str]
    device: str
    dtype: str
    threads: int = Field(ge=1)
    engine: str = Field("reference", description="which patching engine computed the effects")
    commands: list[Command] = Field(description="in the order in which to run them")


class CircuitReport(Frozen):
    """Everything a reviewer holds: claim, evidence, what speaks against it, and how to make it again."""

    format: Literal["circuit-report/1"] = FORMAT
    content_hash: str = Field("", description="sha256 of the canonical JSON of everything else; empty: not sealed")
    generated: str | None = Field(None, description="time of writing, only where it was asked for")
    claim: str = Field(description="the claim in one sentence")
    verdict: Verdict
    subject: Subject
    notes: list[str] = Field(default_factory=list, description="remarks of the person who made the report")
    circuit: list[CircuitRow] = Field(default_factory=list)
    drawing: CircuitDrawing | None = None
    detection: Detection
    controls: list[Control] = Field(default_factory=list)
    rejected: list[RejectedHead] = Field(default_factory=list)
    carriers: list[Carrier] = Field(default_factory=list, description="what carries the input instead")
    emergence: Emergence | None = None
    curve: list[CurvePoint] = Field(default_factory=list)
    limits: list[str] = Field(default_factory=list)
    provenance: Provenance
    attention: AttentionEvidence | None = None

    @model_validator(mode="after")
    def _one_verdict(self) -> "CircuitReport":
        if self.verdict != self.detection.verdict:
            raise ValueError(f"verdict {self.verdict!r} differs from the detection's {self.detection.verdict!r}")
        return self


def plain(value: Any) -> Any:
    """JSON-ready form of a model: fields in declared order, dictionaries sorted by key, so equal gives equal."""
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return {name: plain(one) for name, one in fields.items() if name not in LATER or one not in (None, "")}
    if isinstance(value, dict):
        return {str(key): plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def content_hash(report: CircuitReport) -> str:
    """sha256 over the canonical JSON of the report without its own hash."""
    return hashlib.sha256(canonical_json({**plain(report), "content_hash": ""})).hexdigest()


def sealed(report: CircuitReport) -> CircuitReport:
    """The report with its content hash filled in."""
    return report.model_copy(update={"content_hash": content_hash(report)})


def to_json(report: CircuitReport) -> str:
    """The text of `report.json`; equal reports give equal text."""
    return json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, where: str) -> CircuitReport:
    """Read a report from its JSON text, without checking its hash.

    Raises:
        ReportError: naming `where`, if it is not JSON, of another format, or does not fit the model.
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{where}: not valid JSON ({error}); make the report again") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ReportError(f"{where}: format is {found!r:.60}, expected {FORMAT!r}; use the version that wrote it")
    try:
        return CircuitReport.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise ReportError(f"{where}: {key}: {first['msg']}; the report is damaged, make it again") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number JSON has")


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of `report.json`, from the model."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:interp:circuit-report:1"}
    return head | CircuitReport.model_json_schema()


@cache
def shipped_schema() -> str:
    """Text of the schema file in the package, written by `python -m circuits.report.schema`."""
    return resources.files("circuits.report").joinpath("schema.json").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")
