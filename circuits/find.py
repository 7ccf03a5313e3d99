"""From a problem to one circuit: score all edges, take the smallest faithful circuit, remove what it does not need."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from circuits.engine.plan import forward_flops, product_speed
from circuits.interactions import Interactions, interactions
from circuits.problem import Problem
from circuits.pruning import Keeping, joined, order_of, removed, smallest
from circuits.search.base import Ranking, Search, Tell, larger, normalised, silent
from interp.config import Frozen
from interp.errors import UsageError
from interp.registry import load

MARGIN = 0.02  # asked for beyond the target while choosing, since held-out prompts give a little less
STEPS = (20, 60)  # fewest and most gradient steps of a mask
FINE = 2000  # graphs with fewer live edges are looked at edge by edge


class Settings(Frozen):
    """What a discovery does."""

    method: str = Field("auto", description="auto, or one method of `circuits.search` alone")
    target: float = Field(0.95, gt=0, lt=1, description="share of the model's metric that the circuit has to keep")
    seconds: float = Field(60.0, gt=0, description="processor seconds that one stage may be predicted to take")
    top_k: int = Field(200, ge=0, description="edges scored exactly after a screening by gradients")
    controls: int = Field(100, ge=0, description="matched random circuits")
    reruns: int = Field(5, ge=0, description="whole searches on resampled prompts, for stability")
    halves: bool = Field(False, description="search on two halves of the prompts too, to see what chance changes")
    removals: int = Field(2000, ge=0, description="circuits run at most while removing edges")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Found:
    """The circuit of one search.

    Attributes:
        kept: the circuit; all False where nothing kept the target share.
        scores: final ranking of all edges: kept ones first, then by the mean of their normalised scores.
        rankings: what each method gave.
        chosen: ranking that led to the smallest circuit.
        interactions: pair effects and roles, of a position-free graph.
        notes: what was left out, and why.
    """

    kept: Bool[Tensor, "sender receiver *place"]
    scores: Float[Tensor, "sender receiver *place"]
    rankings: dict[str, Ranking]
    chosen: str
    interactions: Interactions | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Course:
    """State of one search while it runs."""

    problem: Problem
    settings: Settings
    tell: Tell
    rankings: dict[str, Ranking] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def search(self, warm: Tensor | None = None, steps: int = STEPS[1]) -> Search:
        return Search(self.problem, seed=self.settings.seed, warm=warm, steps=steps, tell=self.tell)

    def runs_allowed(self, parts: tuple[str, ...] = ("score", "choose")) -> int:
        """Circuits whose runs on some parts are predicted to fit the budget."""
        return int(self.settings.seconds / seconds_per_run(self.problem, parts))

    def fits(self, name: str, search: Search) -> bool:
        """Whether a method is predicted to stay within the budget; says so where it is not."""
        seconds = load("search", name).predicted_seconds(search)
        if seconds <= self.settings.seconds:
            return True
        self.notes.append(
            f"{name} left out: predicted {seconds:,.0f} s of processor time, {self.settings.seconds:,.0f} s allowed"
        )
        return False


def seconds_per_run(problem: Problem, parts: tuple[str, ...]) -> float:
    """Processor seconds that one circuit's run is predicted to take: two forward passes, the readers' own inputs."""
    work = 0.0
    for name in parts:
        n_prompts, n_pos = problem.parts[name].pairs.clean.shape
        work += 2 * n_prompts * forward_flops(problem.decoder, n_pos, logits=False)
    return work / product_speed(problem.decoder, 1024)


def find_circuit(
    problem: Problem, settings: Settings, tell: Tell = silent, *, look_for_interactions: bool = True
) -> Found:
    """Search one circuit.

    Edges are scored exactly in both directions where that fits the budget, else by EAP-IG (inputs and activations,
    averaged) with the top ones scored exactly. Gates trained from there refine the ranking. The ranking whose smallest
    circuit of top edges keeps the target share with the fewest edges is taken, and edges of it are removed exactly
    while the share holds; both on the parts "score" and "choose". What is not on a path is dropped.

    Raises:
        UsageError: if a single method was asked for that does not fit the problem.
    """
    course = _Course(problem, settings, tell)
    (_score_all if settings.method == "auto" else _score_one)(course)
    keeping = Keeping([problem.parts["score"], problem.parts["choose"]])
    target = min(settings.target + MARGIN, (1 + settings.target) / 2)
    circuits = {}
    for name, ranking in course.rankings.items():
        tell(f"smallest circuit by {name}", 0, 1)
        found = smallest(problem, ranking.scores, target, keeping)
        if found is not None:
            circuits[name] = joined(problem, found)
    empty = torch.zeros_like(problem.live)
    if not circuits:
        course.notes.append(f"no circuit of live edges keeps {target:.0%} of the metric, not even all of them")
        return Found(empty, _final(course, empty, None), course.rankings, "", None, tuple(course.notes))
    chosen = min(circuits, key=lambda name: int(circuits[name].sum()))
    scores = course.rankings[chosen].scores
    removals = min(settings.removals, course.runs_allowed())
    if removals < settings.removals:
        course.notes.append(f"edges removed exactly with {removals} runs of circuits, {settings.removals} asked for")
    before = keeping.spent
    kept = removed(problem, circuits[chosen], scores, target, keeping, removals, tell)
    if keeping.spent - before >= removals - 1:
        course.notes.append(f"removal stopped after {removals} runs of circuits: further edges may not be needed")
    seen = None
    if look_for_interactions and not problem.by_position and settings.method == "auto":
        seen = _interactions(course, scores)
    return Found(kept, _final(course, kept, seen), course.rankings, chosen, seen, tuple(course.notes))


def _score_one(course: _Course) -> None:
    name = course.settings.method
    method, problem = load("search", name), course.problem
    if problem.by_position and not method.by_position:
        raise UsageError(f"method: {name} ranks no edges with positions; leave positions out, or take exact or masks")
    if method.needs_corrupted and problem.ablation != "resample":
        raise UsageError(f"method: {name} needs corrupted prompts, so resample ablation; this is {problem.ablation}")
    course.rankings[name] = method.rank(course.search())


def _score_all(course: _Course) -> None:
    problem, search = course.problem, course.search()
    if course.fits("exact", search):
        course.rankings["exact"] = load("search", "exact").rank(search)
    elif problem.by_position or problem.ablation != "resample":
        course.notes.append("edges are ranked by masks alone: gradients have no form with positions or without donors")
    elif course.fits("eap_ig", search):
        course.rankings["eap_ig"] = _confirmed(course, load("search", "eap_ig").rank(search))
    else:
        course.rankings["eap"] = _confirmed(course, load("search", "eap").rank(search))
    warm = next(iter(course.rankings.values())).scores if course.rankings else None
    steps = _affordable_steps(course, warm)
    if steps:
        course.rankings["masks"] = load("search", "masks").rank(course.search(warm, steps))
    if len(course.rankings) == 2:
        course.rankings["average"] = _averaged(course)


def _affordable_steps(course: _Course, warm: Tensor | None) -> int:
    """Gradient steps of the masks that fit the budget; 0 where too few do."""
    masks = load("search", "masks")
    if course.rankings and not masks.circuits_at_once(course.search(warm, 1)):
        course.notes.append("masks left out: their gradients do not fit the memory for batched runs")
        return 0
    one = masks.predicted_seconds(course.search(warm, 1))
    steps = min(STEPS[1], int(course.settings.seconds / max(one, 1e-9)))
    if steps >= STEPS[0]:
        return steps
    if course.rankings:
        course.notes.append(f"masks left out: {STEPS[0]} steps are predicted to take {one * STEPS[0]:,.0f} s")
        return 0
    return STEPS[0]  # without any other ranking the budget gives way


def _averaged(course: _Course) -> Ranking:
    """Mean of the ranks that the methods give, so that no unit dominates."""
    live = course.problem.live
    ranks = [one.scores[live].abs().argsort().argsort().float() for one in course.rankings.values()]
    scores = torch.zeros_like(next(iter(course.rankings.values())).scores)
    scores[live] = ((torch.stack(ranks).mean(0) + 1) / max(1, int(live.sum()))).to(scores)
    return Ranking(scores, f"mean rank of {' and '.join(course.rankings)}", "share of live edges ranked below")


def _confirmed(course: _Course, ranking: Ranking) -> Ranking:
    """The top edges of a screening, scored by leaving each out exactly, in front of all others."""
    problem, part = course.problem, course.problem.parts["score"]
    allowed = min(course.settings.top_k, 2 * course.runs_allowed(("score",)))  # layers before the edge are not run
    if allowed < course.settings.top_k:
        course.notes.append(f"{allowed} edges confirmed exactly, {course.settings.top_k} asked for")
    order = order_of(ranking.scores, problem.live)[:allowed]
    if not len(order):
        return ranking
    order = order[(order % problem.live.shape[1]).argsort(stable=True)]  # by reader, so that runs share their start
    runs, exact = part.runs, []
    size = runs.at_once(problem.live[None].expand(len(order), *problem.live.shape))
    for number, some in enumerate(order.split(size)):
        kept = problem.live.flatten().repeat(len(some), 1)
        kept[torch.arange(len(some)), some] = False
        exact.append((runs.clean - runs.values(kept.view(-1, *problem.live.shape))).mean(1))
        course.tell("exact top edges", min((number + 1) * size, len(order)), len(order))
    scores = normalised(ranking.scores).flatten()
    lost = normalised(torch.cat(exact))
    lost = larger(lost, scores[order].to(lost))  # leaving out one edge misses those that stand in for each other
    scores[order] = torch.where(lost < 0, lost - 1, lost + 1).to(scores)
    note = f"{ranking.method}, top {len(order)} exactly"
    return Ranking(scores.view(ranking.scores.shape), note, ranking.kind, ranking.parts)


def _interactions(course: _Course, scores: Tensor) -> Interactions | None:
    problem, live = course.problem, course.problem.live
    part = problem.parts["score"]
    order = [tuple(divmod(int(i), live.shape[1])) for i in order_of(scores, live)]
    one = part.runs.bytes_each(False)  # a rough measure of a run's size: small ones are cheap
    small = len(order) <= FINE and one < 2**24
    sizes = {"n_edges": 8, "n_nodes": 12, "most": 2500} if small else {"n_edges": 5, "n_nodes": 5, "most": 0}
    return interactions(problem, order, live, **sizes, tell=course.tell)


def _final(course: _Course, kept: Tensor, seen: Interactions | None) -> Tensor:
    """One ranking: mean of the normalised scores, stand-ins at least by theirs, kept edges in front."""
    rankings = [normalised(one.scores) for name, one in course.rankings.items() if name != "average"]
    total = torch.stack(rankings).mean(0)
    if seen is not None:
        total = larger(total, normalised(seen.conditional).to(total))
    sign = torch.where(total < 0, -1.0, 1.0)
    return torch.where(kept, total + sign, total) * course.problem.live
