"""Realistic reports made without a run: a solved model, one with 8 heads, and two negative verdicts."""

import math

import numpy as np

from circuits.detectors.base import (
    Carrier,
    CausalCheck,
    Detection,
    Emergence,
    EmergencePoint,
    Interval,
    LengthAccuracy,
    NullSummary,
    Statistic,
)
from circuits.report.canvas.encode import encode_pattern
from circuits.report.schema import (
    AttentionEvidence,
    AttentionExample,
    CheckpointHash,
    CircuitDrawing,
    CircuitReport,
    CircuitRow,
    Command,
    Control,
    CurvePoint,
    DrawnMove,
    Provenance,
    RejectedHead,
    Subject,
)

STEPS = [0, 64, 90, 126, 177, 248, 347, 486, 681, 953, 1335, 1869, 2617, 3664, 4250, 5130, 6000, 7183, 9312]
EMERGED = 4250
REPORT = "runs/poly1/report/report.json"
DIGITS = (7, 3, 9, 1, 4, 8, 2, 10, 5, 6, 3, 7, 1, 9, 2, 4)


def share(value: float, n: int = 512) -> Interval:
    """A share with its Wilson interval."""
    z = 1.96
    middle = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    return Interval(value=value, low=max(0.0, middle - half), high=min(1.0, middle + half), n=n, method="wilson")


def spread(value: float, half: float, n: int = 512) -> Interval:
    """An estimate with a symmetric bootstrap interval."""
    return Interval(value=value, low=value - half, high=value + half, n=n, method="bootstrap over sequences")


def growth(step: int, top: float) -> float:
    """A score that rises around step 3,900, as one seed's head does."""
    return 0.06 + (top - 0.06) / (1 + math.exp(-(step - 3900) / 260))


def sequence(length: int) -> list[str]:
    """Tokens of one polynomial sequence: BoS, inputs, EoI, states, EoS."""
    inputs = DIGITS[:length]
    states = [inputs[0]]
    for value in inputs[1:]:
        states.append((states[-1] * value + 1) % 11)
    return ["BoS", *map(str, inputs), "EoI", *map(str, states), "EoS"]


def targets(length: int) -> dict[str, list[tuple[int, int]]]:
    """Ground-truth (query, key) positions of both roles."""
    eoi = length + 1
    clock = [(eoi + t, eoi) for t in range(1, length)]
    return {"clock": clock, "reading": [(eoi + t, t + 1) for t in range(length)]}


def patterns(length: int, step: int, layers: int, heads: int, chosen: dict[str, tuple[int, int]]) -> str:
    """Causal patterns that move from diffuse to the targets of the chosen heads as training goes on."""
    generator = np.random.default_rng(step + length)
    n_pos = 2 * length + 3
    logits = generator.normal(0, 0.9, (layers, heads, n_pos, n_pos))
    for role, (layer, head) in chosen.items():
        strength = 9.0 * growth(step, 1.0)
        for query, key in targets(length)[role]:
            logits[layer, head, query, key] += strength
    weights = np.tril(np.exp(logits - logits.max(-1, keepdims=True)))
    return encode_pattern(weights / weights.sum(-1, keepdims=True))


def attention(layers: int, heads: int, chosen: dict[str, tuple[int, int]], steps: list[int]) -> AttentionEvidence:
    """Patterns of the first held-out sequence of three lengths."""
    examples = [
        AttentionExample(
            label=f"length {length}, first held-out sequence",
            length=length,
            tokens=sequence(length),
            targets=targets(length),
            patterns=[patterns(length, step, layers, heads, chosen) for step in steps],
        )
        for length in (12, 6, 16)
    ]
    rule = "the first held-out sequence, in the order of the split, of lengths 12, 6 and 16"
    return AttentionEvidence(rule=rule, n_layers=layers, n_heads=heads, steps=steps, examples=examples)


def check(name: str, head: str, role: str, effect: Interval, passed: bool | None, **changes: object) -> CausalCheck:
    """One causal check with the defaults of the interchange."""
    values = {
        "name": name,
        "component": head,
        "role": role,
        "family": "input" if role == "reading" else "clock",
        "direction": "clean run, z of the head at the query taken from the donor run",
        "metric": "share of predictions equal to the oracle's answer for the donor",
        "effect": effect,
        "control": None,
        "control_name": "no other head exists",
        "moved": 1.21,
        "tested": passed is not None,
        "passed": passed,
        "threshold": "lower end of the interval at least 0.8",
    }
    return CausalCheck(**(values | changes))


def causal(clock: str, reading: str, control: Interval | None) -> list[CausalCheck]:
    """Interchange, knock-out, keep-only and mean ablation of both heads."""
    rows = []
    for role, head, top in (("reading", reading, 0.989), ("clock", clock, 0.996)):
        by_length = {length: share(min(1.0, top - 0.004 * abs(length - 9)), 384) for length in range(4, 17)}
        named = "6 other heads, same pairs" if control else "no other head exists"
        rows.append(
            check("interchange", head, role, share(top, 4992), True, by_length=by_length, control=control,
                  control_name=named, note="answer unchanged in 0.004 of the cases")
        )  # fmt: skip
        rows.append(
            check("knock-out", head, role, spread(0.71, 0.018), True, family="knock-out", metric="step accuracy lost",
                  direction="clean run, target key removed at every query and the row renormalised",
                  control=spread(0.012, 0.006), moved=0.94, control_name="other keys of the same head, mass 0.91",
                  threshold="interval above 0 and above the control's")
        )  # fmt: skip
        rows.append(
            check("keep-only", head, role, spread(0.994, 0.004), True, family="keep-only", moved=0.07,
                  direction="clean run, all attention of the head on the target key",
                  metric="step accuracy as a share of the unedited accuracy",
                  control_name="none: the edit removes every other key",
                  threshold="lower end of the interval at least 0.8")
        )  # fmt: skip
    return rows


def null(p_value: float, observed: float, clock: str, reading: str) -> list[NullSummary]:
    """Null summaries of both heads together and of each role, from 500 models."""
    heads = {"joint": f"{clock}+{reading}", "clock": clock, "reading": reading}
    return [
        NullSummary(role=role, observed=observed - 0.02 * i, component=head, offset=0, n=500, n_sharp=250,
                    exceedances=round(p_value * 501) - 1, p_value=p_value, smallest_p=1 / 501, quantile_95=0.31,
                    scan="every head, offsets -3 to 3, lengths 4 to 16, this checkpoint")
        for i, (role, head) in enumerate(heads.items())
    ]  # fmt: skip


def accuracies(top: float) -> list[LengthAccuracy]:
    """Held-out accuracy of lengths 1 to 16."""
    return [
        LengthAccuracy(length=length, n=min(1024, 5 * 10 ** min(length, 3)),
                       sequence=share(max(0.0, top - 0.0004 * length), 1024),
                       step=share(min(1.0, top + 0.001), 1024 * length),
                       free_running=share(max(0.0, top - 0.001 * length), 1024),
                       margin=spread(9.4 - 0.2 * length, 0.21, 1024))
        for length in range(1, 17)
    ]  # fmt: skip


def statistics(clock: str, reading: str, top: float) -> list[Statistic]:
    """Statistics by length of both heads."""
    return [
        Statistic(component=head, role=role, length=length, mass=spread(top - 0.004 * length, 0.01, 256),
                  argmax_rate=share(min(1.0, top + 0.03), 256 * length), invariance=0.98)
        for role, head in (("clock", clock), ("reading", reading))
        for length in range(4, 17)
    ]  # fmt: skip


def emergence(clock: str, reading: str, solved: bool = True) -> Emergence:
    """A curve that passes from step 4,250 on, or never."""
    top = 0.95 if solved else 0.14
    points = [
        EmergencePoint(step=step, loss=2.4 / (1 + math.exp((step - 3300) / 500)) + 0.004,
                       min_accuracy=growth(step, 0.998 if solved else 0.1), clock=growth(step, top - 0.06),
                       reading=growth(step, top), clock_head=clock, reading_head=reading,
                       p_value=1 / 501 if solved and step >= EMERGED else 0.4,
                       causal=growth(step, 0.99) if solved and step >= 2617 else None,
                       verdict="iteration head" if solved and step >= EMERGED else "none")
        for step in STEPS
    ]  # fmt: skip
    if not solved:
        return Emergence(points=points, emerged=None, bracket=None, reversals=0)
    return Emergence(points=points, emerged=EMERGED, bracket=(3664, EMERGED), reversals=0)


def curve(top: float = 0.998) -> list[CurvePoint]:
    """Loss and accuracy at lengths 4, 8, 12 and 16 every 250 steps."""
    return [
        CurvePoint(step=step, loss=2.4 / (1 + math.exp((step - 3300) / 500)) + 0.004,
                   accuracy={n: top / (1 + math.exp(-(step - 2600 - 130 * n) / 240)) for n in (4, 8, 12, 16)})
        for step in range(0, 9313, 250)
    ]  # fmt: skip


def drawing(clock: str = "L0.H0", reading: str = "L1.H0") -> CircuitDrawing:
    """The prediction of s3 in a sequence of four inputs."""
    names = ["0", "x1", "x2", "x3", "x4", "e", "s1", "s2", "s3", "s4"]
    moves = [
        DrawnMove(component=clock, role="clock", layer=int(clock[1]), query=7, key=5, carries="how far EoI is: t = 2"),
        DrawnMove(component=reading, role="reading", layer=int(reading[1]), query=7, key=3, carries="the input x3 = 9"),
    ]
    return CircuitDrawing(tokens=sequence(4)[:-1], names=names, query=7, answer=sequence(4)[8], moves=moves)


def provenance(seed: int = 1) -> Provenance:
    """Where the numbers come from."""
    config = {"task": "polynomial", "seed": seed, "model": {"d_model": 32, "n_layers": 2}, "train": {"lr": 0.002}}
    return Provenance(
        config=config,
        config_hash="7f3a" * 16,
        seed=seed,
        data_seed=seed,
        checkpoints=[CheckpointHash(step=step, sha256=f"{step:08x}" * 8) for step in STEPS],
        code_version="2026.11.0+be5cc79",
        dirty=False,
        packages={"torch": "2.13.0", "transformer-lens": "4.3.1", "numpy": "2.4.6", "pydantic": "2.14.3"},
        device="cpu",
        dtype="float32",
        threads=1,
        commands=[
            Command(purpose="Train the same run again", line="interp train polynomial --seed 1 --name poly1"),
            Command(purpose="Make this report again", line="interp report make poly1 --step 9312"),
            Command(purpose="Check hashes, recompute every number", line=f"interp report verify {REPORT} --rerun"),
        ],
    )


def detection(verdict: str, headline: str, heads: dict[str, str], **changes: object) -> Detection:
    """A detection with the defaults of the solved run."""
    values = {
        "detector": "iteration_head",
        "run": "poly1",
        "step": 9312,
        "checkpoint": "c0ffee42" * 8,
        "config_hash": "7f3a" * 16,
        "code_version": "2026.11.0+be5cc79",
        "seed": 0,
        "verdict": verdict,
        "headline": headline,
        "heads": heads,
        "solved": True,
        "lengths": accuracies(0.999),
        "statistics": [],
        "null": [],
        "causal": [],
        "limits": LIMITS,
        "timing": {"statistic": 0.41, "null": 8.25, "causal": 3.02},
    }
    return Detection(**(values | changes))


LIMITS = [
    "One seed of one configuration; success is a property of the seed.",
    "The null bounds p from below by 1/501; a smaller p would need more null models.",
    "The MLP was not tested by itself: its part follows from the interchange answers.",
]
SUMMARY = "s_t = x_t s_{t-1} + 1 mod 11, written out one state at a time"


def subject(run: str = "poly1", model: str = "2 layers of 1 head, d_model 32, learned positions") -> Subject:
    """What was examined."""
    training = "9,312 steps of batch 32, Adam at 2e-3; stopped when every length reached 0.998 twice in a row"
    return Subject(run=run, step=9312, task="polynomial", task_summary=SUMMARY, example=sequence(6), model=model,
                   parameters=28_352, training=training)  # fmt: skip


def solved_report(**changes: object) -> CircuitReport:
    """Both heads found and causally verified, 2 layers of 1 head."""
    claim = "At step 9,312 the run poly1 solves polynomial with an iteration head: L0.H0 keeps the clock, L1.H0 reads."
    heads = {"clock": "L0.H0", "reading": "L1.H0"}
    found = detection("iteration head", claim, heads, statistics=statistics("L0.H0", "L1.H0", 0.95),
                      null=null(1 / 501, 0.95, "L0.H0", "L1.H0"), causal=causal("L0.H0", "L1.H0", None))  # fmt: skip
    metric = "interchange accuracy"
    values = {
        "claim": claim,
        "verdict": "iteration head",
        "subject": subject(),
        "circuit": [
            CircuitRow(component="L0.H0", role="clock", position_rule="from every state position to EoI", metric=metric,
                       attention=spread(0.893, 0.008), effect=share(0.996, 4992), passed=True),
            CircuitRow(component="L1.H0", role="reading", position_rule="from s_t to the input x_{t+1}", metric=metric,
                       attention=spread(0.951, 0.006), effect=share(0.989, 4992), passed=True),
        ],
        "drawing": drawing(),
        "detection": found,
        "controls": [
            Control(name="Random head", description="Interchange of another head of the same layer",
                    outcome="None is possible: each layer has one head"),
            Control(name="Untrained model", description="The same interchange at checkpoint 0",
                    result=share(0.024, 4992), outcome="At chance, so training made the effect"),
        ],
        "emergence": emergence("L0.H0", "L1.H0"),
        "curve": curve(),
        "limits": LIMITS,
        "provenance": provenance(),
        "attention": attention(2, 1, {"clock": (0, 0), "reading": (1, 0)}, STEPS),
    }  # fmt: skip
    return CircuitReport(**(values | changes))


def many_heads_report(**changes: object) -> CircuitReport:
    """Two layers of 8 heads, with controls on other heads and a head that failed its ablation."""
    claim = "At step 9,312 the run poly8 solves polynomial with an iteration head: L0.H3 keeps the clock, L1.H5 reads."
    heads = {"clock": "L0.H3", "reading": "L1.H5"}
    found = detection("iteration head", claim, heads, statistics=statistics("L0.H3", "L1.H5", 0.93), run="poly8",
                      null=null(1 / 501, 0.93, "L0.H3", "L1.H5"),
                      causal=causal("L0.H3", "L1.H5", share(0.021, 4992)))  # fmt: skip
    rejected = RejectedHead(component="L1.H2", role="reading", score=0.41, check="interchange",
                            effect=share(0.03, 4992),
                            reason="It looks at x_{t+1}, but its output does not decide the answer")  # fmt: skip
    metric, control = "interchange accuracy", share(0.021, 4992)
    circuit = [
        CircuitRow(component=head, role=role, position_rule=rule, metric=metric, attention=spread(0.91, 0.008),
                   effect=share(0.989, 4992), control=control, control_name="6 other heads", passed=True)
        for head, role, rule in (("L0.H3", "clock", "from every state position to EoI"),
                                 ("L1.H5", "reading", "from s_t to the input x_{t+1}"))
    ]  # fmt: skip
    values = {
        "claim": claim,
        "detection": found,
        "circuit": circuit,
        "rejected": [rejected],
        "drawing": drawing("L0.H3", "L1.H5"),
        "subject": subject("poly8", "2 layers of 8 heads, d_model 64, learned positions"),
        "emergence": emergence("L0.H3", "L1.H5"),
        "attention": attention(2, 8, {"clock": (0, 3), "reading": (1, 5)}, STEPS[::3]),
    }
    return solved_report(**(values | changes))


def other_circuit_report(**changes: object) -> CircuitReport:
    """Solved without the textbook head: the later head reads by spread attention."""
    claim = "At step 7,500 the run copy64 solves binary_copy without the textbook iteration head."
    carriers = [
        Carrier(component="L1.H0", description="carries the input by attention spread over many keys",
                effect=share(0.964, 3072), offset=None),
        Carrier(component="L0.H0", description="carries part of the input one key late", effect=share(0.31, 3072),
                offset=1),
    ]  # fmt: skip
    missing = [
        "The reading head attends to its target with mass 0.19, below the 95 % quantile of the null (0.31).",
        "No clock head: interchange from a sequence of another length leaves 0.41 of the answers unchanged.",
    ]
    checks = [
        check("interchange", "L1.H0", "reading", share(0.964, 3072), True,
              by_length={length: share(0.99 - 0.02 * (length - 4), 384) for length in range(4, 17)}),
        check("interchange", "L0.H0", "clock", share(0.588, 3072), False, moved=0.61,
              by_length={length: share(max(0.0, 0.9 - 0.06 * (length - 4)), 384) for length in range(4, 17)}),
        check("mean ablation", "L0.H0", "clock", spread(0.0, 0.0, 512), None, family="mean", moved=0.01,
              note="not tested: the edit did not move the head's output"),
    ]  # fmt: skip
    verdict = "solved without the textbook head"
    heads = ("L0.H0", "L1.H0")
    found = detection(verdict, claim, {}, carriers=carriers, missing=missing, causal=checks, run="copy64", step=7500,
                      statistics=statistics(*heads, 0.26), null=null(62 / 501, 0.26, *heads))  # fmt: skip
    values = {
        "claim": claim,
        "verdict": verdict,
        "detection": found,
        "circuit": [],
        "drawing": None,
        "carriers": carriers,
        "emergence": emergence("L0.H0", "L1.H0", solved=False),
        "attention": attention(2, 1, {}, STEPS[::2]),
    }
    return solved_report(**(values | changes))


def empty_report(**changes: object) -> CircuitReport:
    """An untrained run: nothing found, no curve, no patterns."""
    claim = "The run fresh has no iteration head at step 0 (family-wise p = 0.61)."
    found = detection("none", claim, {}, solved=False, lengths=[], step=0, run="fresh", timing={},
                      missing=["No head passes the statistic.", "The model does not solve the task."])  # fmt: skip
    values = {
        "claim": claim,
        "verdict": "none",
        "detection": found,
        "circuit": [],
        "drawing": None,
        "emergence": None,
        "curve": [],
        "attention": None,
        "limits": [],
    }
    return solved_report(**(values | changes))
