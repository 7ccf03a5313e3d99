"""Scores search methods and the whole pipeline on problems whose edges are known."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.edge_scoring import EdgeScore, edge_score, named, nodes, promoted
from circuits.find import Found, Settings, find_circuit
from circuits.graph import EdgeGraph
from circuits.problem import Problem
from circuits.search.base import Ranking, Search
from interp.decoder import Decoder
from interp.pairs.base import Pairs
from interp.registry import load
from tests.truth.circuit_families import FAMILIES, Planted
from tests.truth.hand_circuits import FORMS

SINGLE = ("exact", "eap", "eap_ig", "acdc", "masks")  # methods of the registry, each alone
ONE_WAY = ("noise", "denoise")  # the two directions of exact edge patching
DRAWS = 8  # of the weights of a hand-set model, at most


@dataclass(frozen=True)
class Known:
    """A problem with the edges that are known.

    Attributes:
        true: edges by head that a ranking has to put first.
        open: edges by head of which it is not known whether they matter; not scored.
        roles: (node, role, other) that a search has to name.
    """

    name: str
    decoder: Decoder
    pairs: Pairs
    true: tuple[str, ...]
    open: tuple[str, ...] = ()
    roles: tuple[tuple[str, str, str], ...] = ()
    rankings: dict[str, Ranking] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def problem(self) -> Problem:
        """The position-free problem under resample ablation."""
        return Problem(self.decoder, self.pairs)

    @property
    def graph(self) -> EdgeGraph:
        """Names of senders and receivers."""
        return self.problem.parts["score"].runs.graph

    @cached_property
    def edges(self) -> Bool[Tensor, "sender node"]:
        """The true edges."""
        return named(self.graph, self.true)

    @cached_property
    def scored(self) -> Bool[Tensor, "sender node"]:
        """Live edges of which it is known whether they are true."""
        return promoted(self.graph, self.problem.live) & ~named(self.graph, self.open)

    def ranking(self, method: str) -> Ranking:
        """What one search method gives; computed once."""
        if method not in self.rankings:
            self.rankings[method] = load("search", method).rank(Search(self.problem))
        return self.rankings[method]

    @cached_property
    def found(self) -> Found:
        """The circuit that the whole pipeline finds."""
        return find_circuit(self.problem, Settings())

    def scores(self, method: str) -> Float[Tensor, "sender receiver"]:
        """Scores of a method, of one direction of exact patching, or of the pipeline's final ranking."""
        if method == "pipeline":
            return self.found.scores
        if method in ONE_WAY:
            return self.ranking("exact").parts[method].mean(0)
        return self.ranking(method).scores

    def score(self, method: str, signed: bool = False) -> EdgeScore:
        """How well a method ranks the true edges."""
        return edge_score(self.graph, self.scores(method), self.edges, self.scored, signed)

    def effect(self, method: str, edge: str) -> float:
        """Score of one edge by head as a share of clean minus ablated."""
        runs = self.problem.parts["score"].runs
        sender, node = edge.split("->")
        values = promoted(self.graph, self.scores(method))
        value = float(values[self.graph.senders.index(sender), nodes(self.graph).index(node)])
        return value / float((runs.clean - runs.ablated).mean())

    def named_roles(self) -> set[tuple[str, str, str]]:
        """The roles that the pipeline names."""
        seen = self.found.interactions
        return {(role.node, role.role, role.other) for role in seen.roles} if seen is not None else set()

    def behaviour(self) -> tuple[float, float]:
        """Clean minus ablated metric: share of all prompts where it is positive, and its mean."""
        parts = [part.runs for part in self.problem.parts.values()]
        moved = torch.cat([runs.clean - runs.ablated for runs in parts])
        return float((moved > 0).float().mean()), float(moved.mean())


def hand_set(family: str, form: str, seed: int = 0) -> Known:
    """A hand-set circuit in a form: the first draw from a seed on that still does its task.

    Noise on every weight can break a circuit, and then there is none to find; what is looked at is behaviour alone.
    """
    for draw in range(seed, seed + DRAWS):
        planted = FAMILIES[family](draw)
        case = Known(f"{family}, {form}", planted.decoder(FORMS[form]), planted.pairs(), *_known(planted))
        plain = Known(f"{family}, plain", planted.decoder(FORMS["plain"]), planted.pairs(), *_known(planted))
        if does_its_task(case, plain):
            return case
    raise AssertionError(f"{family}, {form}: none of {DRAWS} draws does its task")


def does_its_task(case: Known, plain: Known) -> bool:
    """Clean above ablated on three quarters of the prompts, by at least 40 % of the plain model's difference."""
    share, difference = case.behaviour()
    return share >= 0.75 and difference > 0.4 * plain.behaviour()[1]


def _known(planted: Planted) -> tuple:
    return planted.true, planted.open, planted.roles
