"""What each `--json` output holds: one pydantic model per kind, each with `format` and `kind`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """Base of outputs and their parts: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Output(Part):
    """Base of every output; `format` grows when a key changes its meaning or goes away."""

    format: Literal[1] = 1


class Check(Part):
    """One thing the doctor looked at."""

    name: str
    status: Literal["ok", "note", "problem"] = Field(description="a note limits what can be done; a problem breaks it")
    detail: str
    fix: str = Field("", description="what to do; empty when there is nothing to do")


class DoctorOutput(Output):
    """`interp doctor --json`."""

    kind: Literal["doctor"] = "doctor"
    ok: bool = Field(description="no check has the status 'problem'")
    checks: list[Check]
    versions: dict[str, str | None] = Field(description="installed version by distribution; null: not installed")


class TaskItem(Part):
    """One line of the list of tasks."""

    name: str
    summary: str
    origin: str = Field(description="file, or module:attribute of an entry point")


class TasksOutput(Output):
    """`interp tasks ls --json`."""

    kind: Literal["tasks"] = "tasks"
    tasks: list[TaskItem]


class TaskOutput(Output):
    """`interp tasks show NAME --json`."""

    kind: Literal["task"] = "task"
    name: str
    summary: str
    origin: str
    params: dict[str, Any] = Field(description="JSON Schema of the task's parameters")
    preset: dict[str, Any] = Field(description="the run its author recommends")
    lengths: list[int]
    n_ctx: int
    chain_of_thought: bool
    vocabulary: list[str]
    example: list[str] = Field(description="token names of one sequence of the shortest length of at least 3")
    description: dict[str, Any] = Field(default_factory=dict, description="what the task says about itself, if it does")


class Share(Part):
    """k of n with a 95 % interval."""

    k: int = Field(ge=0)
    n: int = Field(ge=0)
    low: float
    high: float
    method: Literal["wilson", "clopper-pearson"]


class RunItem(Part):
    """One run in short; `state` is "damaged" where its folder cannot be read, and `message` says why."""

    name: str
    state: str
    task: str | None
    seed: int | None
    step: int | None
    accuracy: float | None = Field(description="lowest held-out sequence accuracy over lengths, newest evaluation")
    updated: str | None
    message: str


class RunsOutput(Output):
    """`interp runs ls --json`."""

    kind: Literal["runs"] = "runs"
    store: str
    runs: list[RunItem]


class CheckpointItem(Part):
    """One saved checkpoint."""

    step: int
    rolling: bool


class RunOutput(Output):
    """`interp runs show NAME --json`."""

    kind: Literal["run"] = "run"
    run: RunItem
    path: str
    config: dict[str, Any]
    config_hash: str
    environment: dict[str, Any]
    checkpoints: list[CheckpointItem]
    last_metrics: dict[str, Any] | None
    accuracy_by_length: dict[int, float]
    events: list[dict[str, Any]]


class RemovedOutput(Output):
    """`interp runs rm NAME... --yes --json`."""

    kind: Literal["removed"] = "removed"
    store: str
    removed: list[str]


class Difference(Part):
    """One configuration key that is not the same in all compared runs."""

    key: str
    values: list[Any] = Field(description="in the order of `runs`; null where the key is absent")


class CompareOutput(Output):
    """`interp runs compare A B... --json`."""

    kind: Literal["comparison"] = "comparison"
    runs: list[RunItem]
    config: list[Difference]
    environment: list[Difference]
    accuracy_by_length: dict[int, list[float | None]]


class TrainedItem(Part):
    """How one training ended."""

    name: str
    seed: int
    state: str
    step: int
    accuracy: float | None = Field(description="lowest held-out sequence accuracy over lengths")
    solved: bool = Field(description="that accuracy is at least 0.99")
    cpu_seconds: float
    message: str


class TrainOutput(Output):
    """`interp train TASK --json`, one run."""

    kind: Literal["train"] = "train"
    task: str
    store: str
    run: TrainedItem


class SweepOutput(Output):
    """`interp train TASK --seeds ... --json`."""

    kind: Literal["sweep"] = "sweep"
    task: str
    store: str
    runs: list[TrainedItem]
    solved: Share


class JobItem(Part):
    """One job in short; `state` is "damaged" where its folder cannot be read, and `message` says why."""

    id: str
    state: str = Field(description="starting, running, done, cancelled, failed, died or damaged")
    command: str = Field(description="what it runs, without the word interp")
    run: str | None = Field(description="the run that it was started for, or that its command names")
    pid: int | None = None
    exit_code: int | None = None
    started: str | None = None
    ended: str | None = None
    cancelling: bool = Field(False, description="it was asked to stop and has not stopped yet")
    message: str


class JobsOutput(Output):
    """`interp jobs ls --json`."""

    kind: Literal["jobs"] = "jobs"
    store: str
    jobs: list[JobItem]


class JobOutput(Output):
    """`interp jobs start ... --json` and `interp jobs cancel JOB --json`."""

    kind: Literal["job"] = "job"
    store: str
    job: JobItem


OUTPUTS: dict[str, type[Output]] = {
    model.model_fields["kind"].default: model
    for model in (
        DoctorOutput,
        TasksOutput,
        TaskOutput,
        RunsOutput,
        RunOutput,
        RemovedOutput,
        CompareOutput,
        TrainOutput,
        SweepOutput,
        JobsOutput,
        JobOutput,
    )
}


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema of one kind of output; KeyError for an unknown kind."""
    return OUTPUTS[kind].model_json_schema()
