"""What a detector returns: verdict, statistic, null and causal checks, as JSON-ready frozen models."""

from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from interp.config import Frozen

Verdict = Literal[
    "iteration head",
    "candidate",
    "solved without the textbook head",
    "not solved",
    "none",
]


class Interval(Frozen):
    """An estimate with its 95 % interval, the number of independent units behind it and how it was made."""

    value: float
    low: float
    high: float
    n: int = Field(ge=0)
    method: str = Field(description="wilson, clopper-pearson, bootstrap over sequences")
    level: float = 0.95


class Statistic(Frozen):
    """Attention on one role's target diagonal for one head; masses and rates lie in [0, 1]."""

    component: str = Field(description="head, as L1.H0")
    role: Literal["clock", "reading"]
    length: int
    mass: Interval = Field(description="mean attention on the target key; uniform attention gives about 1/(q+1)")
    argmax_rate: Interval = Field(description="share of targets that are the most attended key")
    invariance: float = Field(description="1 - mean over targets of the standard deviation over sequences")


class NullSummary(Frozen):
    """Family-wise null: one maximum per null model over the same scan."""

    role: Literal["clock", "reading", "joint"] = Field(
        description="joint: the smaller of the two masses, over pairs of a clock head and a later reading head"
    )
    observed: float = Field(description="largest statistic on the textbook target in the tested model")
    component: str = Field(description="head, or clock+reading pair, that attains it")
    offset: int = Field(description="key offset at which the model's scan is largest; 0: on the textbook target")
    n: int = Field(description="number of null models")
    n_sharp: int = Field(description="how many of them have sharpened QK")
    exceedances: int
    p_value: float
    smallest_p: float = Field(description="the smallest p-value this null can give: 1 / (1 + n) for one checkpoint")
    quantile_95: float
    scan: str = Field(description="what the maximum runs over")
    observed_interval: Interval | None = Field(
        None,
        description="of `observed`, over sequences at the lengths of the scan; of joint: of the smaller mass; null in "
        "files from before it was kept",
    )
    over: str = Field("", description="the lengths and sequences that `observed` is a mean over")


class CausalCheck(Frozen):
    """One intervention with its control. `passed` is None when the check was not tested."""

    name: str = Field(description="knock-out, keep-only, interchange, mean ablation, ...")
    component: str
    role: Literal["clock", "reading", "other"]
    family: str = Field(description="pair family or ablation: input, clock, state, knock-out, mean")
    direction: str = Field(description="which run is patched with what, in words")
    metric: str
    effect: Interval
    control: Interval | None = Field(description="the same intervention on a matched control; None: none is possible")
    control_name: str = ""
    moved: float = Field(description="median relative size of the change of the activation; 0: not moved")
    tested: bool
    passed: bool | None
    threshold: str = Field(description="the rule that decided `passed`")
    note: str = ""
    by_length: dict[int, Interval] = Field(default_factory=dict)


class LengthAccuracy(Frozen):
    """Held-out accuracy at one length, as whole sequences and as single steps."""

    length: int
    n: int
    sequence: Interval = Field(description="all states right, teacher forcing")
    step: Interval = Field(description="single next states right, teacher forcing")
    free_running: Interval = Field(description="all states right when the model writes its own")
    margin: Interval = Field(description="correct minus best wrong logit, teacher forcing")


class Carrier(Frozen):
    """A component that carries the input token where the textbook head does not, found by ablation."""

    component: str
    description: str
    effect: Interval
    offset: int | None = Field(None, description="key offset relative to x_{t+1}; None: no single key")


class Detection(Frozen):
    """The full answer of a detector about one checkpoint."""

    format: Literal[1] = 1
    detector: str
    run: str
    step: int
    checkpoint: str = Field(description="sha256 of the checkpoint manifest")
    config_hash: str
    code_version: str
    seed: int = Field(description="seed of the probe sequences and the null")
    options: dict[str, int | bool] = Field(default_factory=dict, description="sizes of the probe set and the null")
    verdict: Verdict
    headline: str = Field(description="the verdict in one sentence")
    heads: dict[str, str] = Field(description="role -> head, for the verdict 'iteration head' or 'candidate'")
    solved: bool
    lengths: list[LengthAccuracy]
    statistics: list[Statistic]
    null: list[NullSummary]
    causal: list[CausalCheck]
    carriers: list[Carrier] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list, description="what kept a stronger verdict away")
    limits: list[str] = Field(default_factory=list)
    timing: dict[str, float] = Field(default_factory=dict, description="CPU seconds by stage; not part of equality")


class EmergencePoint(Frozen):
    """One checkpoint on the emergence curve."""

    step: int
    loss: float | None
    min_accuracy: float | None = Field(
        description="share of held-out sequences with every state right, at the length where it is lowest"
    )
    clock: float
    reading: float
    clock_head: str
    reading_head: str
    p_value: float
    causal: float | None = Field(None, description="smaller of the two interchange accuracies; None: not run here")
    verdict: Verdict
    accuracy_interval: Interval | None = Field(
        None, description="of min_accuracy; null in files from before it was kept, as are the next three"
    )
    clock_interval: Interval | None = None
    reading_interval: Interval | None = None
    causal_interval: Interval | None = None


class Emergence(Frozen):
    """How the verdict came about over training: the first of three consecutive passes."""

    format: Literal[1] = 1
    points: list[EmergencePoint]
    emerged: int | None = Field(description="first step of three consecutive passes")
    bracket: tuple[int, int] | None = Field(description="checkpoints around it: the resolution, not an interval")
    reversals: int = Field(description="how often a pass was followed by a fail")
    note: str = ""


class Detector(Protocol):
    """What a detector file exports as `DETECTOR`."""

    name: str
    claim: str

    def detect(self, model: Any, task: Any, **options: Any) -> Detection:
        """Scan one model."""


HeadVerdict = Literal["induction head", "previous token head", "duplicate token head", "copy head", "candidate", "none"]


class HeadScore(Frozen):
    """What one head scores on one statistic."""

    component: str = Field(description="head, as L1.H0")
    score: Interval
    rate: float = Field(description="how selective the head is, in [0, 1]; the detector says of what")
    p_twins: float = Field(description="against the largest score of any head in random twins")
    p_prompts: float | None = Field(description="against the same prompts without what is claimed; null: has none")
    p_value: float = Field(description="the larger of the two, times the number of head types looked for")
    copying: float | None = Field(None, description="eigenvalue copying score in [-1, 1]; decides nothing")
    verdict: HeadVerdict


class HeadNull(Frozen):
    """What scores are compared with: one maximum over all heads per null model, or per draw of signs."""

    name: str
    n: int
    n_sharp: int = Field(description="how many of the null models have sharpened QK")
    sharing: int = Field(description="null models that share all but their own attention layers; 1: independent")
    quantile_95: float
    largest: float
    smallest_p: float = Field(description="after multiplication by the number of head types looked for")
    scan: str = Field(description="what the maximum runs over")


class HeadCheck(Frozen):
    """One intervention on one head beside the same on control heads; `passed` is None when it was not tested."""

    name: str
    component: str
    intervention: str
    metric: str
    base: Interval | None = Field(description="the metric without intervention; null: it is 0 there")
    effect: Interval | None = Field(description="how much the intervention costs; null: not run")
    control: Interval | None = Field(description="the same for the control heads, averaged; null: there are none")
    difference: Interval | None = Field(description="effect minus control, sequence by sequence")
    controls: list[str]
    control_name: str
    moved: float = Field(description="median relative change of the head's output; 0: not moved")
    tested: bool
    passed: bool | None
    threshold: str
    note: str = ""


class HeadDetection(Frozen):
    """The full answer about one head type in one model."""

    format: Literal[1] = 1
    detector: str
    claim: str
    model: str
    fingerprint: str = Field(description="of the weights; empty where the caller gave none")
    step: int | None
    code_version: str
    seed: int
    options: dict[str, int | float | bool | None]
    verdict: HeadVerdict
    headline: str
    heads: list[str] = Field(description="heads with every piece of evidence, strongest first")
    candidates: list[str] = Field(description="heads with the statistic alone")
    prompts: str = Field(description="what the scan ran on")
    statistic: str
    rate: str = Field(description="what `rate` of a head is")
    scores: list[HeadScore]
    null: list[HeadNull]
    causal: list[HeadCheck]
    limits: list[str]
    timing: dict[str, float] = Field(default_factory=dict, description="CPU seconds by stage; not part of equality")


@runtime_checkable
class HeadDetector(Protocol):
    """What a detector of single heads exports as `DETECTOR`: scores every head, and checks the flagged ones.

    `scores` and `rates` give one number per prompt and head of a layer; `contrast` the score minus what it is without
    the thing that is claimed, or None where nothing can be taken away. `checks` intervenes on some heads.
    """

    name: str
    claim: str
    verdict: HeadVerdict
    statistic: str
    rate: str
    needs_all: bool  # every tested check must pass, not just one

    def scores(self, view: Any, probe: Any) -> Any:
        """[prompt, head] of one layer."""

    def rates(self, view: Any, probe: Any) -> Any:
        """[head] of one layer, in [0, 1]."""

    def contrast(self, view: Any, probe: Any) -> Any:
        """[prompt, head] of one layer, or None."""

    def checks(self, setting: Any, heads: Any) -> list[HeadCheck]:
        """Causal checks of flagged heads."""
