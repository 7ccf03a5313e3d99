"""Fill the report object from a run folder and what a detector said about it."""

from importlib.metadata import version
from pathlib import Path

import torch

from circuits.detect import RunDetection, Tell, detect_run
from circuits.detectors._iteration_verdict import ALPHA, instead
from circuits.detectors.base import CausalCheck, Detection, Interval
from circuits.detectors.iteration_head import Options
from circuits.report.canvas.encode import encode_pattern
from circuits.report.commands import rerun_commands
from circuits.report.schema import (
    AttentionEvidence,
    AttentionExample,
    CheckpointHash,
    CircuitDrawing,
    CircuitReport,
    CircuitRow,
    Control,
    CurvePoint,
    DrawnMove,
    Provenance,
    RejectedHead,
    Subject,
    sealed,
)
from interp.errors import ReportError
from interp.model import Transformer
from interp.provenance import PACKAGES
from interp.run import Run
from interp.tasks.base import Task
from interp.train import load_model
from probes.attention import attention_patterns

RULES = {
    "clock": "from each state position (t >= 1) to EoI, which tells t",
    "reading": "from state t to input t+1",
}
NAMED = ("iteration head", "candidate")
PATTERN_BUDGET = 2_000_000  # bytes of attention patterns in one report


def build_report(
    run: Run,
    *,
    step: int | None = None,
    options: Options | None = None,
    found: RunDetection | None = None,
    tell: Tell | None = None,
) -> CircuitReport:
    """The sealed report of one run: detection at `step` (newest by default) and emergence over all checkpoints.

    Args:
        found: a detection that has just been made; None makes it (or reads it from the run's stored analyses).
    """
    options = options or Options()
    found = found or detect_run(run, step=step, every_checkpoint=True, options=options, tell=tell)
    detection = found.detection
    model, task, _ = load_model(run, detection.step)
    split = task.split(run.config.seed, run.config.data).test
    lengths = sorted(length for length, tokens in split.items() if len(tokens))
    return sealed(
        CircuitReport(
            claim=claim(detection),
            verdict=detection.verdict,
            subject=_subject(run, detection, model, task, split[lengths[min(3, len(lengths) - 1)]]),
            circuit=_circuit(detection),
            drawing=_drawing(detection, task, split),
            detection=detection,
            controls=_controls(detection),
            rejected=_rejected(detection),
            carriers=detection.carriers,
            emergence=found.emergence,
            curve=_curve(run),
            limits=detection.limits,
            provenance=_provenance(run, detection),
            attention=_attention(run, model, task, split, lengths),
        )
    )


def claim(detection: Detection) -> str:
    """The claim in one sentence, without the numbers that stand below it."""
    heads = detection.heads
    match detection.verdict:
        case "iteration head":
            return (
                f"{heads['clock']} and {heads['reading']} form an iteration head: {heads['clock']} tells the step, "
                f"{heads['reading']} fetches the next input, and both are needed"
                + ("." if detection.solved else "; the task is not solved at every length.")
            )
        case "candidate":
            return (
                f"{heads['clock']} and {heads['reading']} attend like an iteration head, but not every intervention "
                "confirms it."
            )
        case "solved without the textbook head":
            return f"The model solves the task without the textbook iteration head{instead(detection.carriers)}."
    return detection.headline.split(";")[0].rstrip(".").split(" (p")[0] + "."


def rebuild(path: Path, report: CircuitReport, tell: Tell | None = None) -> CircuitReport:
    """Compute a report's numbers again from the run folder it lies in, trusting nothing that is stored but weights.

    Raises:
        ReportError: if the run folder is not beside the report or its checkpoint is another one.
    """
    from interp.run import Store

    folder = path.resolve().parent.parent
    if folder.name != report.subject.run or not (folder / "config.json").exists():
        raise ReportError(f"{path}: --rerun needs the run folder around it ({report.subject.run}/report/{path.name})")
    run = Store(folder.parent).run(folder.name)
    options = Options(**report.detection.options)
    follow = report.emergence is not None
    found = detect_run(run, step=report.subject.step, every_checkpoint=follow, options=options, tell=tell, fresh=True)
    return build_report(run, step=report.subject.step, options=options, found=found)


def _subject(run: Run, detection: Detection, model: Transformer, task: Task, tokens: torch.Tensor) -> Subject:
    """What was examined, in sentences."""
    cfg, settings, status = model.cfg, run.config.train, run.status()
    heads = "1 head" if cfg.n_heads == 1 else f"{cfg.n_heads} heads"
    shape = f"{cfg.n_layers} layers of {heads}, d_model {cfg.d_model}, d_head {cfg.head_width}"
    mlp = "attention only" if cfg.attn_only else f"{cfg.activation} MLP of {cfg.mlp_width}"
    norm = f"{cfg.norm} norm" + (" also after the embedding" if cfg.embed_norm else "")
    return Subject(
        run=run.name,
        step=detection.step,
        task=task.name,
        task_summary=task.summary,
        example=task.vocabulary.names(tokens[0]),
        model=f"{shape}, {mlp}, {norm}, {cfg.positions} positions, {cfg.residual} residual stream",
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        training=f"{status.step:,} steps of batch {settings.batch_size}, {settings.optimizer} at {settings.lr:g}; "
        f"{status.state}: {status.message}",
    )


def _circuit(detection: Detection) -> list[CircuitRow]:
    """Both heads with the interchange that speaks for them."""
    if detection.verdict not in NAMED:
        return []
    rows = []
    for role in ("clock", "reading"):
        head = detection.heads[role]
        check = next((c for c in detection.causal if c.name == "interchange" and c.component == head), None)
        if check is None:
            continue
        rows.append(
            CircuitRow(
                component=head,
                role=role,
                position_rule=RULES[role],
                attention=_mean_attention(detection, head, role),
                metric=check.metric,
                effect=check.effect,
                control=check.control,
                control_name=check.control_name,
                passed=check.passed,
            )
        )
    return rows


def _mean_attention(detection: Detection, head: str, role: str) -> Interval:
    """Mass on the target averaged over lengths; the ends are averaged too, which is wider than the true interval."""
    rows = [row.mass for row in detection.statistics if row.component == head and row.role == role]
    average = [sum(getattr(row, end) for row in rows) / len(rows) for end in ("value", "low", "high")]
    return Interval(
        value=average[0],
        low=average[1],
        high=average[2],
        n=sum(row.n for row in rows),
        method="mean of bootstrap intervals over lengths",
    )


def _drawing(detection: Detection, task: Task, split: dict[int, torch.Tensor]) -> CircuitDrawing | None:
    """The circuit on the first held-out sequence of length 4, at the step that writes s_3."""
    if detection.verdict not in NAMED or not len(split.get(4, ())):
        return None
    layout, tokens, t = task.layout(4), split[4][0], 2
    query = layout.queries[t]
    names = ["", *(f"x{i + 1}" for i in range(4)), "", *(f"s{i + 1}" for i in range(4))]
    names += [""] * (layout.n_pos - len(names))
    keys = {"clock": layout.eoi, "reading": layout.inputs[t]}
    carries = {"clock": f"step t = {t}", "reading": f"input x{t + 1}"}
    moves = [
        DrawnMove(
            component=head,
            role=role,
            layer=int(head[1 : head.index(".")]),
            query=query,
            key=keys[role],
            carries=carries[role],
        )
        for role, head in detection.heads.items()
    ]
    text = task.vocabulary.names(tokens)
    return CircuitDrawing(
        tokens=text, query=query, answer=text[query + 1], moves=moves, names=names, mlp=f"s{t + 1} = f(s{t}, x{t + 1})"
    )


def _controls(detection: Detection) -> list[Control]:
    """What was compared with, including controls that cannot exist."""
    joint = next(row for row in detection.null if row.role == "joint")
    found = [
        Control(
            name="untrained twins",
            description=f"{joint.n} models of the same configuration, {joint.n_sharp} with sharpened QK; one maximum "
            f"per model over {joint.scan}",
            outcome=f"{joint.exceedances} of {joint.n} reach {joint.observed:.3f}; p = {joint.p_value:.3g} "
            f"(smallest possible {joint.smallest_p:.3g}, level {ALPHA})",
        )
    ]
    impossible = [c for c in detection.causal if c.name == "interchange" and c.control is None]
    if impossible and impossible[0].component in detection.heads.values():
        found.append(
            Control(
                name="random other heads",
                description="the same interchange on heads that are not part of the circuit",
                outcome="not possible: fewer than two other heads exist",
            )
        )
    return found


def _rejected(detection: Detection) -> list[RejectedHead]:
    """Heads that attend to a target and fail the intervention on that role."""
    mass: dict[tuple[str, str], list[float]] = {}
    for row in detection.statistics:
        mass.setdefault((row.component, row.role), []).append(row.mass.value)
    quantile = {row.role: row.quantile_95 for row in detection.null}
    found = []
    for check in detection.causal:
        score = sum(mass.get((check.component, check.role), [0.0])) / len(
            mass.get((check.component, check.role), [0.0])
        )
        if check.passed is False and check.name == "interchange" and score > quantile[check.role]:
            found.append(
                RejectedHead(
                    component=check.component,
                    role=check.role,
                    score=score,
                    check=check.name,
                    effect=check.effect,
                    reason=_reason(check),
                )
            )
    return found


def _reason(check: CausalCheck) -> str:
    """Why the head is not counted."""
    return f"its output does not carry what the {check.role} role claims: {check.threshold}, {check.note}"


def _curve(run: Run) -> list[CurvePoint]:
    """Held-out loss, averaged over lengths, and accuracy at four lengths for every evaluation."""
    rows = [row for row in run.metrics() if "accuracy" in row]
    if not rows:
        return []
    lengths = sorted(int(length) for length in rows[0]["accuracy"])
    chosen = sorted({lengths[round(place * (len(lengths) - 1) / 3)] for place in range(4)})
    return [
        CurvePoint(
            step=row["step"],
            loss=sum(losses.values()) / len(losses) if (losses := row.get("test_loss")) else None,
            accuracy={n: row["accuracy"][str(n)] for n in chosen},
        )
        for row in rows
    ]


def _attention(
    run: Run, model: Transformer, task: Task, split: dict[int, torch.Tensor], lengths: list[int]
) -> AttentionEvidence | None:
    """Patterns of the first held-out sequence of a short, a middle and the longest length at every checkpoint."""
    long = [length for length in lengths if length >= 4] or lengths
    chosen = sorted({long[0], long[len(long) // 2], long[-1]}, reverse=True)
    refs = run.checkpoints()
    cost = model.cfg.n_layers * model.cfg.n_heads * sum(task.layout(n).n_pos ** 2 for n in chosen)
    keep = max(2, min(len(refs), PATTERN_BUDGET // cost))
    places = sorted({round(i * (len(refs) - 1) / max(keep - 1, 1)) for i in range(keep)})
    steps, texts = [], {length: [] for length in chosen}
    for place in places:
        snapshot, _, checkpoint = load_model(run, refs[place].step)
        steps.append(checkpoint.step)
        for length in chosen:
            pattern = attention_patterns(snapshot, split[length][:1])[:, 0]  # layer head q_pos k_pos
            texts[length].append(encode_pattern(pattern.numpy()))
    examples = [
        AttentionExample(
            label=f"length {length}",
            length=length,
            tokens=task.vocabulary.names(split[length][0]),
            targets=task.attention_targets(length),
            patterns=texts[length],
        )
        for length in chosen
    ]
    thinned = "" if len(places) == len(refs) else f", {len(places)} of {len(refs)} checkpoints evenly chosen"
    rule = f"the first held-out sequence, in the order of the split, of lengths {', '.join(map(str, chosen))}{thinned}"
    return AttentionEvidence(
        rule=rule, n_layers=model.cfg.n_layers, n_heads=model.cfg.n_heads, steps=steps, examples=examples
    )


def _provenance(run: Run, detection: Detection) -> Provenance:
    """What it takes to make the report again."""
    environment = run.environment()
    packages = environment.get("packages") or {name: version(name) for name in PACKAGES}
    return Provenance(
        config=run.config.model_dump(mode="json"),
        config_hash=detection.config_hash,
        seed=run.config.seed,
        data_seed=run.config.seed,
        checkpoints=[
            CheckpointHash(step=ref.step, sha256=run.checkpoint(ref.step, optim=False).hash)
            for ref in run.checkpoints()
        ],
        code_version=detection.code_version,
        dirty="+dirty" in detection.code_version if "+g" in detection.code_version else None,
        packages={name: number for name, number in packages.items() if number},
        device=environment.get("device", "unknown"),
        dtype=environment.get("dtype", "float32"),
        threads=environment.get("threads", run.config.train.threads),
        engine="sequential reference",
        commands=rerun_commands(run, detection),
    )
