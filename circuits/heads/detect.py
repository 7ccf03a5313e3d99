"""Look for known head types in any decoder: statistic, null and causal check for each, and a verdict per head."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.detectors.base import HeadCheck, HeadDetection, HeadDetector, HeadNull, HeadScore
from circuits.engine.runs import as_decoder
from circuits.heads.checks import Head, Setting, interval, label
from circuits.heads.probe import Probe, Vocabulary, narrowed, pairs_probe, repeat_probe
from circuits.heads.scan import Scanned, p_values, scan, sign_maxima
from circuits.heads.twins import MOST, SECONDS, TwinPlan, layer_parameters, plan_twins, shape_of, twin_maxima
from circuits.heads.view import copying_score
from interp.decoder import Decoder
from interp.errors import UnknownName, UsageError
from interp.pairs.base import Pairs
from interp.provenance import code_version
from interp.registry import load, names
from interp.rng import generator
from probes.null import NullScan

ALPHA = 0.05
RATE_BAR = 0.5
SMALL = 2_000_000  # weights of a model that is scanned on 64 sequences instead of 16
Tell = Callable[[str, int, int], None]
Nulls = dict[str, NullScan]


@dataclass(frozen=True)
class HeadOptions:
    """How much work a scan does.

    Attributes:
        n_null: random twins; None: 100 to 400, as many as 30 s are enough for.
        n_sequences: random sequences; None: 64 for small models, else 16.
        block: length of the repeated block; None: 20, or what vocabulary and context allow.
        causal: whether flagged heads are tested by intervention.
        most_checked: how many heads of a type are tested at most, strongest first.
    """

    seed: int = 0
    n_null: int | None = None
    n_sequences: int | None = None
    block: int | None = None
    causal: bool = True
    most_checked: int = 8


@dataclass(frozen=True)
class HeadOrigin:
    """Where the weights came from; copied into the result."""

    model: str = ""
    fingerprint: str = ""
    step: int | None = None


def head_types() -> dict[str, HeadDetector]:
    """Detectors in the registry that score the single heads of any decoder, by name."""
    found = {name: load("detector", name) for name in names("detector")}
    return {name: one for name, one in found.items() if isinstance(one, HeadDetector)}


@torch.no_grad()
def detect_heads(
    model: Any,
    types: Sequence[str] | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    pairs: Pairs | None = None,
    origin: HeadOrigin | None = None,
    options: HeadOptions | None = None,
    nulls: Nulls | None = None,
    tell: Tell | None = None,
) -> list[HeadDetection]:
    """One detection for each head type.

    Args:
        model: a Decoder, our Transformer, or a bridge that can be written as a Decoder.
        types: names of head types; None for all.
        vocabulary: ids that random prompts use, and a BOS token put first; None: all ids, none first.
        pairs: prompts of a behaviour, on which copying is measured where their answers are read; the other types
            always use random tokens.
        nulls: a dict that keeps null models between calls, so that checkpoints of one run share them.
        tell: called with (what, done, of).

    Raises:
        UnknownName: for a head type that does not exist.
        DetectorError: for a model whose vocabulary or context is too small for repeated random blocks.
        UsageError: for token ids that the model does not have.
    """
    given = _chosen(types)
    options, tell = options or HeadOptions(), tell or (lambda what, done, of: None)
    decoder = as_decoder(model).to(torch.float32)
    if pairs is not None and pairs.d_vocab > len(decoder.W_E):
        raise UsageError(f"pairs: token ids up to {pairs.d_vocab - 1}, but this model has {len(decoder.W_E)}")
    vocabulary, origin = vocabulary or Vocabulary(), origin or HeadOrigin(model=decoder.name)
    n = options.n_sequences or (64 if layer_parameters(decoder) <= SMALL else 16)
    stream = generator(options.seed, "head prompts")
    groups: list[tuple[Probe, list[HeadDetector]]] = []
    on_pairs = [kind for kind in given if pairs is not None and kind.name == "copying"]
    on_random = [kind for kind in given if kind not in on_pairs]
    if on_random:
        groups.append((repeat_probe(decoder, vocabulary, n, options.block, stream), on_random))
    if on_pairs:
        groups.append((pairs_probe(pairs), on_pairs))
    ids = vocabulary.ids(len(decoder.W_E))
    study = _Study(decoder, ids, options, origin, len(given), stream, tell, {} if nulls is None else nulls)
    found = {one.detector: one for probe, kinds in groups for one in study.detections(probe, kinds)}
    return [found[kind.name] for kind in given]


def _chosen(types: Sequence[str] | None) -> list[HeadDetector]:
    known = head_types()
    for name in types or ():
        if name not in known:
            raise UnknownName("head type", name, known)
    return [known[name] for name in dict.fromkeys(types or known)]


@dataclass(frozen=True)
class _Study:
    """What all head types of one call share."""

    decoder: Decoder
    ids: list[int]
    options: HeadOptions
    origin: HeadOrigin
    n_types: int
    stream: torch.Generator
    tell: Tell
    nulls: Nulls

    def detections(self, probe: Probe, kinds: list[HeadDetector]) -> list[HeadDetection]:
        """One scan and one set of twins for every type that reads this probe."""
        started = time.process_time()
        small, tokens = narrowed(self.decoder, probe, self.ids, self.stream)
        seen = scan(small, tokens, probe, kinds)
        plan = plan_twins(small, probe, self.options.n_null)
        twins = self.twins(small, tokens, probe, kinds, plan)
        stream = generator(self.options.seed, "head intervals")
        judged = {}
        for index, kind in enumerate(kinds):
            null = NullScan(twins.maxima[:, index : index + 1], twins.gains)
            judged[kind.name] = _judge(seen.found[kind.name], null, plan, self.n_types, stream)
        copies = copying_score(small)
        spent = {"scan and null models": round(time.process_time() - started, 2)}
        typed = frozenset(head for one in judged.values() for head in one.flagged)
        found = []
        for index, kind in enumerate(kinds):
            self.tell("head types", index, len(kinds))
            own = judged[kind.name]
            flagged = frozenset(own.flagged)
            setting = Setting(self.decoder, probe, seen.spent, seen.attended, flagged, typed, stream)
            extra = copies if kind.name == "copying" else None
            found.append(self.detection(setting, kind, seen.found[kind.name], own, extra, spent))
        self.tell("head types", len(kinds), len(kinds))
        return found

    def twins(
        self, small: Decoder, tokens: Tensor, probe: Probe, kinds: list[HeadDetector], plan: TwinPlan
    ) -> NullScan:
        """The null, from the caller's store where the same shapes, prompts and types have been scanned before."""
        key = null_key(small, tokens, [kind.name for kind in kinds], plan, self.options.seed)
        if key not in self.nulls:
            stream = generator(self.options.seed, "head twins")
            progress = lambda done, of: self.tell("null models", done, of)  # noqa: E731
            self.nulls[key] = twin_maxima(small, tokens.to(small.W_E.device), probe, kinds, plan, stream, progress)
        return self.nulls[key]

    def detection(
        self,
        setting: Setting,
        kind: HeadDetector,
        scanned: Scanned,
        judged: "_Judged",
        copies: Tensor | None,
        spent: dict,
    ) -> HeadDetection:
        """Causal checks and verdicts of one type."""
        started = time.process_time()
        probe, flagged = setting.probe, judged.flagged
        tested = flagged[: self.options.most_checked] if self.options.causal else []
        checks = kind.checks(setting, tested) if tested else []
        confirmed = [head for head in tested if _passes(kind, [c for c in checks if c.component == label(head)])]
        candidates = [head for head in flagged if head not in confirmed]
        verdicts = dict.fromkeys(candidates, "candidate") | dict.fromkeys(confirmed, kind.verdict)
        return HeadDetection(
            detector=kind.name,
            claim=kind.claim,
            **asdict(self.origin),
            code_version=code_version(),
            seed=self.options.seed,
            options=asdict(self.options),
            verdict=kind.verdict if confirmed else "candidate" if candidates else "none",
            headline=_headline(kind, confirmed, candidates, scanned, judged, checks),
            heads=[label(head) for head in confirmed],
            candidates=[label(head) for head in candidates],
            prompts=f"{probe.name}; {probe.n} prompts of {probe.tokens.shape[1]} tokens, {probe.n_units} independent",
            statistic=kind.statistic,
            rate=kind.rate,
            scores=_scores(scanned, judged, verdicts, copies, setting.stream),
            null=judged.summary,
            causal=checks,
            limits=_limits(self.n_types, judged, tested, self.options.n_null is not None),
            timing={**spent, "causal checks": round(time.process_time() - started, 2)},
        )


def null_key(small: Decoder, tokens: Tensor, kinds: list[str], plan: TwinPlan, seed: int) -> str:
    """sha256 of everything that null models depend on: the model's shapes, never its weights."""
    digest = hashlib.sha256(tokens.cpu().numpy().tobytes())
    digest.update(repr((shape_of(small), kinds, plan, seed)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Judged:
    """p-values of every head, `p` being the larger one times the number of types, and the heads that pass."""

    p_twins: Tensor
    p_prompts: Tensor | None
    p: Tensor
    flagged: list[Head]
    summary: list[HeadNull]


def _judge(scanned: Scanned, null: NullScan, plan: TwinPlan, n_types: int, stream: torch.Generator) -> _Judged:
    """Every head against both nulls."""
    maxima = null.maxima[:, 0]
    p_twins, p_prompts = p_values(scanned.scores.mean(0), maxima), None
    heads = "all heads of all layers, mean over sequences"
    kept = {"n_sharp": null.n_sharp, "sharing": plan.sharing}
    summary = [_summary("random twins of the same shape", maxima, n_types, heads, kept)]
    if scanned.contrast is not None:
        drawn = sign_maxima(scanned.contrast, stream)
        p_prompts = p_values(scanned.contrast.double().mean(0), drawn)
        words = f"{heads}; score minus the score without what is claimed"
        summary.append(_summary("signs of sequences", drawn, n_types, words, {"n_sharp": 0, "sharing": 1}))
    larger = p_twins if p_prompts is None else p_twins.maximum(p_prompts)
    p = (n_types * larger).clamp(max=1)
    return _Judged(p_twins, p_prompts, p, _flagged(scanned, p), summary)


def _summary(name: str, maxima: Tensor, n_types: int, heads: str, kept: dict[str, int]) -> HeadNull:
    return HeadNull(
        name=name,
        n=len(maxima),
        quantile_95=float(torch.quantile(maxima.double(), 0.95)),
        largest=float(maxima.max()),
        smallest_p=min(1.0, n_types / (1 + len(maxima))),
        scan=f"{heads}; p times {_types(n_types)}",
        **kept,
    )


def _flagged(scanned: Scanned, p: Tensor) -> list[Head]:
    """Heads that pass the statistic, the largest score first."""
    passes = (p <= ALPHA + 1e-12) & (scanned.rates >= RATE_BAR)
    heads = [(layer, head) for layer, head in passes.nonzero().tolist()]
    mean = scanned.scores.mean(0)
    return sorted(heads, key=lambda head: -float(mean[head]))


def _passes(kind: HeadDetector, checks: list[HeadCheck]) -> bool:
    """Every tested check where the type asks for all, else one; a check that was not tested never helps."""
    outcomes = [bool(check.passed) for check in checks if check.tested]
    return bool(outcomes) and (all(outcomes) if kind.needs_all else any(outcomes))


def _scores(
    scanned: Scanned, judged: _Judged, verdicts: dict[Head, str], copies: Tensor | None, stream: torch.Generator
) -> list[HeadScore]:
    """One row per head, in order of layers."""
    layers, heads = scanned.rates.shape
    return [
        HeadScore(
            component=label((layer, head)),
            score=interval(scanned.scores[:, layer, head], stream),
            rate=float(scanned.rates[layer, head]),
            p_twins=float(judged.p_twins[layer, head]),
            p_prompts=None if judged.p_prompts is None else float(judged.p_prompts[layer, head]),
            p_value=float(judged.p[layer, head]),
            copying=None if copies is None else float(copies[layer, head]),
            verdict=verdicts.get((layer, head), "none"),
        )
        for layer in range(layers)
        for head in range(heads)
    ]


def _headline(
    kind: HeadDetector,
    confirmed: list[Head],
    candidates: list[Head],
    scanned: Scanned,
    judged: _Judged,
    checks: list[HeadCheck],
) -> str:
    """The verdict in one sentence, with the number that carries it."""
    mean, word = scanned.scores.mean(0), kind.verdict
    best = (confirmed or candidates or [divmod(int(mean.argmax()), mean.shape[1])])[0]
    number = f"score {float(mean[best]):.3f}, p = {float(judged.p[best]):.3g}, {judged.summary[0].n} null models"
    if confirmed:
        count = f"{len(confirmed)} {word}{'s' if len(confirmed) > 1 else ''}"
        more = f"; {len(candidates)} more by the statistic alone" if candidates else ""
        return f"{count}: {', '.join(map(label, confirmed))} ({label(best)}: {number}){more}."
    if candidates:
        failed = "not confirmed causally" if any(check.tested for check in checks) else "not tested causally"
        return f"Candidates for {word}: {', '.join(map(label, candidates))} ({label(best)}: {number}), {failed}."
    return f"No {word}; the largest score is that of {label(best)} ({number})."


def _types(n: int) -> str:
    return f"{n} head type{'s' * (n != 1)}"


def _limits(n_types: int, judged: _Judged, tested: list[Head], chosen: bool) -> list[str]:
    """What the reader must not conclude; `chosen`: somebody said how many null models to make."""
    twins, flagged = judged.summary[0], judged.flagged
    found = [
        f"p is family-wise over all heads and the {_types(n_types)} looked for; flagged means p <= {ALPHA} "
        f"and a rate of at least {RATE_BAR}.",
        "Patching one head at a time says nothing of heads that stand in for each other.",
    ]
    if not chosen and twins.n < MOST:
        found.append(f"{twins.n} null models are as many as {SECONDS:.0f} s were enough for here; --n-null takes more.")
    if twins.smallest_p > ALPHA:
        found.append(f"With {twins.n} null models no p can reach {ALPHA}: take more, or fewer head types.")
    if twins.sharing > 1:
        found.append(f"Groups of {twins.sharing} null models share their embedding, MLPs and the first one's streams.")
    if len(tested) < len(flagged):
        found.append(f"{len(flagged) - len(tested)} of {len(flagged)} flagged heads were not tested causally.")
    return found
