"""Circuits that a found one has to beat: random paths of the same kinds of edges, shifted, by attention, complement."""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph import EdgeGraph
from circuits.live import connected
from circuits.masked import MaskedRuns
from circuits.naming import node_of
from circuits.pruning import read_positions
from circuits.random_paths import Paths

Mask = Bool[Tensor, "sender receiver *place"]


@dataclass(frozen=True)
class Control:
    """One kind of control.

    Attributes:
        matched: share of the found circuit's edges that have a counterpart of the same type, mean over the circuits.
        shared: share of the found circuit's edges that a control holds too, mean over the circuits.
        headline: whether a claim may rest on it.
    """

    name: str
    what: str
    circuits: tuple[Mask, ...]
    matched: float | None = None
    shared: float | None = None
    headline: bool = False


def layer_of(name: str) -> int:
    """Layer of a sender or receiver; -1 for the embedding, a large number for the logits."""
    outside = {"embed": -1, "logits": 10**6}
    return outside[name] if name in outside else int(name[1:].split(".")[0])


FINEST = "sender kind, reader slot, both layers and offset"
LEVELS = {
    FINEST: (0, 1, 2, 3, 4),
    "sender kind, reader slot and offset": (0, 2, 4),
    "sender kind, reader slot, both layers, same or earlier place": (0, 1, 2, 3, 5),
    "sender kind, reader slot, same or earlier place": (0, 2, 5),
    "number and offset alone": (4,),
    "number alone": (),
}
MOST_SHARED = 0.5  # of the found circuit's edges, expected in a random draw: with more it is the circuit that is drawn


def types_of(graph: EdgeGraph, places: list[tuple[int, ...]], parts: tuple[int, ...]) -> list[tuple]:
    """What is matched of each edge.

    Args:
        parts: some of 0 sender's kind, 1 its layer, 2 reader's slot, 3 its layer, 4 query minus key, 5 whether that
            is above 0.
    """
    kinds = {"e": "embed", "L": "head", "M": "mlp"}
    found = []
    for sender, receiver, *place in places:
        source, target = graph.senders[sender], graph.receivers[receiver]
        slot = target[-1] if target[-2:] in (".q", ".k", ".v") else target[0]
        offset = place[1] - place[0] if place else 0
        whole = (kinds[source[0]], layer_of(source), slot, layer_of(target), offset, offset > 0)
        found.append(tuple(whole[part] for part in parts))
    return found


def finest_level(graph: EdgeGraph, live: Mask, found: Mask) -> str:
    """The finest matching that leaves a choice: a draw is expected to hold at most half of the found circuit.

    In a small graph, and where a mechanism works at one offset, matching everything leaves little but the circuit.
    """
    every, kept = ([tuple(place) for place in mask.nonzero().tolist()] for mask in (live, found & live))
    for name, parts in LEVELS.items():
        there, taken = (Counter(types_of(graph, places, parts)) for places in (every, kept))
        expected = sum(count**2 / there[kind] for kind, count in taken.items())
        if expected <= MOST_SHARED * len(kept):
            return name
    return name


def random_paths(
    runs: MaskedRuns, live: Mask, found: Mask, n: int, generator: torch.Generator, level: str | None = None
) -> Control:
    """n random unions of input-to-output paths with as many live edges of each type as the found circuit.

    Types are kind and layer of the sender, slot and layer of the receiver and, by position, query minus key; coarser
    where that leaves too little choice. Paths are drawn through edges of types that still lack some; one that would
    bring too many of all is drawn again.

    Args:
        level: one of LEVELS; None for the finest that leaves a choice.
    """
    headline = level is None
    level = level or finest_level(runs.graph, live, found)
    places, size = live.nonzero(), int(found.sum())
    kinds = types_of(runs.graph, [tuple(place) for place in places.tolist()], LEVELS[level])
    number = {kind: index for index, kind in enumerate(dict.fromkeys(kinds))}
    types = torch.tensor([number[kind] for kind in kinds])
    target = types[found[live].cpu()].bincount(minlength=len(number))
    paths = Paths(runs.graph, live, types.tolist(), generator)
    circuits, matched, shared = [], [], []
    for _ in range(n):
        kept = torch.zeros_like(live)
        kept[tuple(places[paths.union(target.tolist(), size)].T)] = True
        kept = connected(runs.decoder, runs.graph, kept, read_positions(runs))
        circuits.append(kept)
        got = types[kept[live].cpu()].bincount(minlength=len(number))
        matched.append(int(torch.minimum(got, target).sum()) / max(1, size))
        shared.append(int((kept & found).sum()) / max(1, size))
    return Control(
        "random paths" if headline else "same types",
        f"random unions of live paths, matched by {level}",
        tuple(circuits),
        sum(matched) / n if n else None,
        sum(shared) / n if n else None,
        headline,
    )


def shifted(live: Mask, found: Mask, by: int = 1) -> tuple[Mask, int]:
    """The circuit moved by some positions, within the live edges, and how many edges fell off."""
    moved = torch.zeros_like(found)
    n = found.shape[-1]
    if by > 0:
        moved[..., by:, by:] = found[..., : n - by, : n - by]
    else:
        moved[..., :by, :by] = found[..., -by:, -by:]
    moved &= live
    return moved, int(found.sum() - moved.sum())


def attention_top(runs: MaskedRuns, live: Mask, size: int, mass: Float[Tensor, "layer head q_pos k_pos"]) -> Mask:
    """As many live edges as asked for, of the heads (by position: at the key and query) with the most attention.

    An edge into or out of a head has the head's largest attention; edges between MLPs, embedding and logits come last.
    """
    graph, score = runs.graph, torch.zeros(live.shape)
    by_position = live.dim() == 4
    strength = mass.amax((-2, -1))  # [layer head]
    for index, name in enumerate(graph.senders):
        if name[0] == "L":
            layer, head = (int(part) for part in name[1:].split(".H"))
            at = mass[layer, head].amax(-1)[None, :, None] if by_position else strength[layer, head]
            score[index] = torch.maximum(score[index], torch.as_tensor(at).expand(score[index].shape))
    for index, name in enumerate(graph.receivers):
        if name[-2:] not in (".q", ".k", ".v"):
            continue
        layer = layer_of(name)
        group = int(node_of(name).split("H")[-1]) if ".H" in name else int(node_of(name).split("KV")[-1])
        heads = [group] if ".H" in name else _group(runs, layer, group)
        own = mass[layer, heads].amax(0)  # [q_pos k_pos]
        if not by_position:
            score[:, index] = torch.maximum(score[:, index], own.max())
        elif name.endswith(".q"):
            score[:, index] = torch.maximum(score[:, index], own.amax(-1).diag())
        else:
            score[:, index] = torch.maximum(score[:, index], own.T)
    order = score.masked_fill(~live, -1).flatten().argsort(descending=True, stable=True)[:size]
    kept = torch.zeros(live.numel(), dtype=torch.bool)
    kept[order] = True
    return kept.view(live.shape) & live


def _group(runs: MaskedRuns, layer: int, group: int) -> list[int]:
    size = runs.decoder.layers[layer].attn.group
    return list(range(group * size, (group + 1) * size))


def uniform(live: Mask, size: int, n: int, generator: torch.Generator) -> tuple[Mask, ...]:
    """n draws of as many live edges, whatever they connect."""
    places = live.flatten().nonzero()[:, 0]
    found = []
    for _ in range(n):
        kept = torch.zeros(live.numel(), dtype=torch.bool)
        kept[places[torch.randperm(len(places), generator=generator)[:size]]] = True
        found.append(kept.view(live.shape))
    return tuple(found)


def control_sets(
    runs: MaskedRuns,
    live: Mask,
    found: Mask,
    n: int,
    generator: torch.Generator,
    mass: Float[Tensor, "layer head q_pos k_pos"],
    n_beside: int | None = None,
) -> list[Control]:
    """All controls of a found circuit; the claim rests on the random paths alone.

    Args:
        n: random paths.
        n_beside: draws of each other random control; None for as many.
    """
    n_beside = n if n_beside is None else n_beside
    size = int(found.sum())
    controls = [random_paths(runs, live, found, n, generator)] if n else []
    if n_beside and FINEST not in controls[0].what:
        controls.append(random_paths(runs, live, found, n_beside, generator, FINEST))
    if live.dim() == 4:
        one, gone = shifted(live, found)
        back, lost = shifted(live, found, -1)
        what = f"the circuit one position later or earlier; {gone} and {lost} edges fall off"
        controls.append(Control("shifted", what, (one, back)))
    controls.append(Control("attention", "heads with the most attention", (attention_top(runs, live, size, mass),)))
    controls.append(Control("complement", "all live edges but the circuit's: low if it is needed", (live & ~found,)))
    if n_beside:
        what = "random live edges, most of them on no path"
        controls.append(Control("uniform", what, uniform(live, size, n_beside, generator)))
    return controls
