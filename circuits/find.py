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
from circuits.search.exact import both_directions, seconds_each, stronger
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
    top_k: int = Field(200, ge=0, description="edges scored exactly in both directions after a screening")
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
    averaged), and again with the top ones scored exactly. Gates trained from there refine the ranking. The ranking
    whose smallest circuit of top edges keeps the target share with the fewest edges is taken, and edges of it are
    removed exactly while the share holds; both on the parts "score" and "choose". What is not on a path is dropped.

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
        tell(f"smallest circuit by {name}", 1, 1)
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
    kept, complete = removed(problem, circuits[chosen], scores, target, keeping, removals, tell)
    if not complete:
        course.notes.append(f"removal stopped, as {removals} runs pay for no finer blocks: more edges may be needless")
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
    else:
        name = "eap_ig" if course.fits("eap_ig", search) else "eap"
        course.rankings[name] = load("search", name).rank(search)
        if (confirmed := _confirmed(course, course.rankings[name])) is not None:
            course.rankings["confirmed"] = confirmed
    best = list(course.rankings.values())[-1:]  # exact as far as it could be
    warm = best[0].scores if best else None
    steps = _affordable_steps(course, warm)
    if steps:
        course.rankings["masks"] = load("search", "masks").rank(course.search(warm, steps))
        if best:
            course.rankings["average"] = _averaged(course, best[0], course.rankings["masks"])


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


def _averaged(course: _Course, *rankings: Ranking) -> Ranking:
    """Mean of the ranks that the methods give, so that no unit dominates."""
    live = course.problem.live
    ranks = [one.scores[live].abs().argsort().argsort().float() for one in rankings]
    scores = torch.zeros_like(rankings[0].scores)
    scores[live] = ((torch.stack(ranks).mean(0) + 1) / max(1, int(live.sum()))).to(scores)
    names = [name for name, one in course.rankings.items() if any(one is other for other in rankings)]
    return Ranking(scores, f"mean rank of {' and '.join(names)}", "share of live edges ranked below")


def _confirmed(course: _Course, screening: Ranking) -> Ranking | None:
    """The top edges of a screening scored exactly in both directions; None where the budget has room for none.

    Among them exact effects decide, the larger of noising (misses OR) and denoising (misses AND): a gradient's estimate
    of an effect has nothing to say where the effect itself is known. All other edges keep the screening's estimate,
    in the unit of exact effects: times what the confirmed edges are worth for each unit of their estimate. A confirmed
    edge without an effect so falls behind edges that nobody has run. With all edges confirmed this is exact patching.

    What is lost are edges that single effects miss in both directions (an OR of ANDs) and that gradients on the way
    between the runs can see: therefore the screening stays a ranking of its own.
    """
    problem, search = course.problem, course.search()
    asked = min(course.settings.top_k, int(problem.live.sum()))
    allowed = min(asked, int(course.settings.seconds / max(seconds_each(search), 1e-12)))
    if allowed < asked:
        course.notes.append(f"{allowed} edges confirmed exactly in both directions, {asked} asked for")
    if not allowed:
        return None
    order = order_of(screening.scores, problem.live)[:allowed]
    graph, top = search.part.runs.graph, torch.zeros_like(problem.live).flatten()
    top[order] = True
    top = top.view(problem.live.shape)
    found = both_directions(search, [graph.name(*edge) for edge in top.nonzero().tolist()])
    parts = {direction: effects * top for direction, effects in found.items()}
    exact, estimate = stronger(search, parts), screening.scores
    unit = exact.abs().sum() / estimate[top].abs().sum().clamp(min=torch.finfo(estimate.dtype).tiny)
    kind = "exact effect of the top edges; of the others the estimate, scaled to what those are worth"
    method = f"{screening.method}, top {allowed} exactly in both directions"
    return Ranking(torch.where(top, exact, unit * estimate), method, kind, parts)


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
