"""What the `--json` outputs of the circuits commands hold, and their JSON Schemas."""

from typing import Literal

from pydantic import Field

from circuits.detectors.base import Detection, Emergence, HeadDetection, Interval
from circuits.discovery_result import DiscoveryFile
from circuits.heads.course import HeadsTrajectory
from circuits.report.verify import VerifyResult
from circuits.trajectory import Trajectory
from interp.schemas import Output, Part


class DetectOutput(Output):
    """`interp detect RUN --json`."""

    kind: Literal["detect"] = "detect"
    run: str
    detection: Detection
    emergence: Emergence | None


class CircuitOutput(Output):
    """`interp circuit MODEL --json`; with --checkpoints all the newest checkpoint's discovery and the trajectory."""

    kind: Literal["circuit"] = "circuit"
    model: str
    step: int | None
    discovery: DiscoveryFile
    trajectory: Trajectory | None


class ReportOutput(Output):
    """`interp report make RUN --json`."""

    kind: Literal["report"] = "report"
    run: str
    verdict: str
    claim: str
    content_hash: str
    files: dict[str, str]


class CircuitReportOutput(Output):
    """`interp report circuit RUN --json`."""

    kind: Literal["circuit-report"] = "circuit-report"
    run: str = Field(description="run, or name of the model in a folder")
    step: int | None = Field(description="checkpoint of the circuit; null: the model has no steps")
    verdict: str
    headline: str
    files: dict[str, str]


class VerifyOutput(Output):
    """`interp report verify FILE --json`."""

    kind: Literal["verify"] = "verify"
    result: VerifyResult


class DemoOutput(Output):
    """`interp demo --json`."""

    kind: Literal["demo"] = "demo"
    run: str
    verdict: str
    claim: str
    accuracy: float
    cpu_seconds: dict[str, float]
    files: dict[str, str]


class PatchEffect(Part):
    """The effect of one patch at one step of the task, as a mean over prompts."""

    t: int
    component: str = Field(description="head L1.H0, layer L1, neuron L1.N5 or edge L0.H0->L1.H0.q")
    position: int | None = Field(description="null: all positions at once")
    position_name: str
    effect: Interval
    share: Interval | None = Field(description="of the difference between source run and base run; null: has none")


class PatchStep(Part):
    """The prompts of one step of the task, cut after `query`, the position that writes the step's state."""

    t: int
    query: int
    n: int
    base: Interval = Field(description="metric of the run that is patched into")
    source: Interval | None = Field(description="metric of the run that is patched from; null: an ablation")
    right: Interval = Field(description="share of prompts that the clean run answers right")
    resolution: float = Field(description="effects of at most this size may be rounding; they count as 0")


class PatchCheck(Part):
    """Patches rerun through plain hooks, one forward each."""

    n: int
    max_error: float
    l2_error: float = Field(description="relative to the effects of all n")
    largest_effect: float


class PatchOutput(Output):
    """`interp patch RUN --json`."""

    kind: Literal["patch"] = "patch"
    run: str
    task: str
    step: int = Field(description="training step of the checkpoint")
    checkpoint: str = Field(description="sha256 of the checkpoint manifest")
    config_hash: str
    code_version: str
    seed: int
    by: str
    site: str | None
    pairs: str
    length: int
    ablation: str
    direction: str | None = Field(description="null: an ablation, which acts on the clean run")
    metric: str
    precision: str
    backend: str
    effect_kind: str = Field(description="what one effect is, in the engine's words")
    plan: str
    steps: list[PatchStep]
    left_out: list[int] = Field(description="steps that have pairs and were not patched")
    without_pairs: dict[int, str] = Field(description="steps that have no pairs, and why")
    top: list[PatchEffect] = Field(description="largest effects that are resolved and whose interval leaves zero out")
    skipped: dict[str, int] = Field(description="effects that are exactly zero and were not run, by reason")
    check: PatchCheck | None
    key: str = Field(description="of the stored analysis, and stem of the files")
    files: dict[str, str]


class PatchPlanOutput(Output):
    """`interp patch RUN --plan --json`."""

    kind: Literal["patch-plan"] = "patch-plan"
    run: str
    task: str
    step: int = Field(description="training step of the checkpoint")
    by: str
    site: str | None
    length: int
    steps: list[int] = Field(description="steps of the task that would be patched")
    left_out: list[int] = Field(description="steps that have pairs and would not be patched")
    without_pairs: dict[int, str] = Field(description="steps that have no pairs, and why")
    plan: str = Field(description="all of it as one line")
    patches: int = Field(description="effects that would be run, counting each prompt")
    chunks: int
    rows: int = Field(description="of the largest chunk")
    flops: int = Field(description="2 per multiply-add")
    naive_flops: int = Field(description="the same patches by one full forward each")
    bytes: int = Field(description="memory of the largest chunk and of the recorded runs")
    budget: int = Field(description="bytes that chunks may take")
    seconds: float = Field(description="processor time at the speed of one large product")


class HeadsOutput(Output):
    """`interp heads PATH --json`; with --checkpoints all also what came about through training."""

    kind: Literal["heads"] = "heads"
    model: str = Field(description="name of the run, folder or file")
    model_kind: str = Field(description="what was found on disk")
    fingerprint: str
    step: int | None
    detections: list[HeadDetection] = Field(
        description="one for each head type; with --checkpoints all at the newest checkpoint that could be looked at"
    )
    trajectory: HeadsTrajectory | None = Field(description="null without --checkpoints all")


class ExportOutput(Output):
    """`interp export SOURCE --to FORMAT --json`."""

    kind: Literal["export"] = "export"
    model: str = Field(description="run, folder or file that the circuit or the model is of")
    step: int | None = Field(description="checkpoint; null: unknown")
    to: str
    n_kept: int | None = Field(description="edges of the circuit; null: a model was written")
    n_live: int | None
    files: dict[str, str]
    notes: list[str] = Field(description="what the format cannot say, and what was added or not known")


OUTPUTS: dict[str, type[Output]] = {
    "detect": DetectOutput,
    "circuit": CircuitOutput,
    "report": ReportOutput,
    "circuit-report": CircuitReportOutput,
    "verify": VerifyOutput,
    "demo": DemoOutput,
    "patch": PatchOutput,
    "patch-plan": PatchPlanOutput,
    "heads": HeadsOutput,
    "export": ExportOutput,
}
