"""Controls of a what-if: other heads, MLPs or edges of the same kind nearby, then random changes of the same size."""

import torch
from torch import Generator

from circuits.controls import layer_of
from circuits.graph import EdgeGraph

NEAR = 1  # layers away that still count as neighbouring
WORDS = {
    "head": ("other head", "other heads"),
    "mlp": ("other MLP", "other MLPs"),
    "edge": ("edge of the same kind", "edges of the same kind"),
}


def kind_of(target: str) -> str:
    """Whether it is a head, an MLP or an edge."""
    return "edge" if "->" in target else "mlp" if target[0] == "M" else "head"


def matched(graph: EdgeGraph, target: str, n: int, generator: Generator) -> list[str]:
    """Up to n others of the same kind at random: of the same layer first, then of the neighbouring ones.

    Edges are matched by the kind of their sender and by what the receiver is: a query, key, value, MLP or the logits.
    """
    known = [graph.name(*edge) for edge in graph.edges] if "->" in target else graph.senders[1:]
    pool = [one for one in known if one != target and _type(one) == _type(target) and _distance(one, target) <= NEAR]
    order = torch.randperm(len(pool), generator=generator).tolist()
    return sorted((pool[index] for index in order), key=lambda one: _distance(one, target))[:n]


def control_words(target: str, names: list[str], n_random: int) -> str:
    """What the controls are, in a sentence."""
    one, several = WORDS[kind_of(target)]
    near = f"{len(names)} {one if len(names) == 1 else several} of the same layer or the next"
    changes = "change as large as this one in random directions"
    turned = f"{n_random} {changes if n_random == 1 else changes.replace('change', 'changes', 1)}"
    return " and ".join(part for part, count in ((near, len(names)), (turned, n_random)) if count) or "none"


def _type(target: str) -> tuple[str, str]:
    """What controls have in common with a target."""
    sender, arrow, receiver = target.partition("->")
    slot = receiver[-1] if receiver[-2:] in (".q", ".k", ".v") else receiver[:1]
    return sender[0], slot if arrow else ""


def _distance(one: str, other: str) -> int:
    """Layers between two nodes; between two edges the larger distance of their ends."""
    ends = zip(one.split("->"), other.split("->"), strict=True)
    return max(abs(layer_of(mine) - layer_of(theirs)) for mine, theirs in ends)
