"""What attribution gives back: scores of edges or nodes per prompt, as matrices and tables, with what had no effect."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph import EdgeGraph
from interp.errors import UnknownName

if TYPE_CHECKING:
    import pandas as pd

NODE_SITES = ("embed", "z", "q", "k", "v", "mlp_out")


@dataclass(frozen=True)
class NoEffect:
    """A prompt, sender, receiver or node all of whose scores are exactly 0, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Work:
    """What a call did: passes, and matrix products in units of one plain forward pass with logits everywhere.

    Attributes:
        forwards, backwards: passes over every prompt.
        forward_equivalents: 2 FLOPs per multiply-add of all matrix products, over those of one plain forward pass.
    """

    forwards: int
    backwards: int
    forward_equivalents: float


@dataclass(frozen=True)
class EdgeScores:
    """Scores of edges: rows are senders, columns receivers.

    Attributes:
        scores: [prompt, sender, receiver], or [prompt, pos, sender, receiver] by position; 0 where there is no edge.
        graph: names of senders and receivers, and the mask of pairs that are edges.
        method: what was computed, in words.
        no_effect: prompts, senders and receivers whose scores are exactly 0.
        work: passes and matrix products.
    """

    scores: Float[Tensor, "prompt *pos sender receiver"]
    graph: EdgeGraph
    method: str
    no_effect: tuple[NoEffect, ...]
    work: Work

    @property
    def senders(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.graph.senders

    @property
    def receivers(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.graph.receivers

    @property
    def exists(self) -> Bool[Tensor, "sender receiver"]:
        """Which pairs are edges."""
        return self.graph.exists

    @property
    def mean(self) -> Float[Tensor, "*pos sender receiver"]:
        """Mean over prompts."""
        return self.scores.mean(0)

    def __getitem__(self, edge: str) -> Float[Tensor, "prompt *pos"]:
        """Scores of one edge by its name, such as `L0.H1->L1.H3.q`.

        Raises:
            UnknownName: if there is no such edge.
        """
        sender, receiver = self.graph.index(edge)
        return self.scores[..., sender, receiver]

    def to_frame(self, by_prompt: bool = False) -> "pd.DataFrame":
        """One line per edge (and position), the mean over prompts with their number, or one line for each prompt.

        The column `no_effect` says why all scores of an edge's sender or receiver are 0; it is empty for the others.
        """
        sender, receiver = torch.tensor(self.graph.edges).T.tolist()
        values = self.scores[..., sender, receiver] if by_prompt else self.mean[..., sender, receiver]
        axes = (["prompt"] if by_prompt else []) + (["pos"] if self.scores.dim() == 4 else [])
        reasons = {item.name: item.reason for item in self.no_effect}
        names = {
            "edge": [self.graph.name(*pair) for pair in self.graph.edges],
            "sender": [self.senders[row] for row in sender],
            "receiver": [self.receivers[column] for column in receiver],
        }
        why = zip(names["sender"], names["receiver"], strict=True)
        names["no_effect"] = [reasons.get(row) or reasons.get(column, "") for row, column in why]
        extra = {} if by_prompt else {"prompts": len(self.scores)}
        return frame(values, axes, names, extra)

    def __str__(self) -> str:
        shape = f"{len(self.graph.edges):,} edges, {len(self.scores):,} prompts"
        return summary(f"{self.method}: {shape}", self.no_effect, self.work)


@dataclass(frozen=True)
class NodeScores:
    """Scores of nodes.

    Attributes:
        embed: [prompt, pos], the embedding.
        z, q: [prompt, layer, head, pos], outputs of heads (before W_O) and their queries.
        k, v: [prompt, layer, kv_head, pos], keys and values, one of each per group of heads that share them.
        mlp_out: [prompt, layer, pos]; 0 in a layer without an MLP.
        names: names of the nodes of each site, by layer and head: `L0.H1`, `L0.H1.q`, `M0`, `embed`.
        method, no_effect, work: as in `EdgeScores`.
    """

    embed: Float[Tensor, "prompt pos"]
    z: Float[Tensor, "prompt layer head pos"]
    q: Float[Tensor, "prompt layer head pos"]
    k: Float[Tensor, "prompt layer kv_head pos"]
    v: Float[Tensor, "prompt layer kv_head pos"]
    mlp_out: Float[Tensor, "prompt layer pos"]
    names: dict[str, tuple[str, ...]]
    method: str
    no_effect: tuple[NoEffect, ...]
    work: Work

    def of(self, site: str) -> Float[Tensor, "prompt node pos"]:
        """Scores of one site with layers and heads on one axis, in the order of `names[site]`.

        Raises:
            UnknownName: for a site that attribution patching does not score.
        """
        if site not in NODE_SITES:
            raise UnknownName("site", site, NODE_SITES)
        values = getattr(self, site)
        return values.reshape(len(values), -1, values.shape[-1])

    def to_frame(self, by_prompt: bool = False) -> "pd.DataFrame":
        """One line per node and position, the mean over prompts with their number, or one line for each prompt."""
        import pandas as pd

        reasons = {item.name: item.reason for item in self.no_effect}
        parts = []
        for site in NODE_SITES:
            values = self.of(site).transpose(1, 2)  # [prompt pos node]
            nodes = self.names[site]
            names = {"node": nodes, "site": [site] * len(nodes), "no_effect": [reasons.get(node, "") for node in nodes]}
            axes, extra = (["prompt", "pos"], {}) if by_prompt else (["pos"], {"prompts": len(values)})
            kept = [index for index, node in enumerate(nodes) if node]
            if not kept:
                continue
            chosen = {key: [column[index] for index in kept] for key, column in names.items()}
            parts.append(frame((values if by_prompt else values.mean(0))[..., kept], axes, chosen, extra))
        return pd.concat(parts, ignore_index=True)

    def __str__(self) -> str:
        nodes = sum(bool(node) for names in self.names.values() for node in names)
        return summary(f"{self.method}: {nodes:,} nodes, {len(self.z):,} prompts", self.no_effect, self.work)


def frame(values: Tensor, axes: list[str], names: dict[str, list[str]], extra: dict[str, int]) -> "pd.DataFrame":
    """A table of `values` [*axes, item] with one line each, item names in the first columns."""
    import numpy as np
    import pandas as pd

    array = values.detach().cpu().numpy()
    repeat = array[..., 0].size
    columns = {name: np.tile(np.asarray(column, dtype=object), repeat) for name, column in names.items()}
    places = np.indices(array.shape)[:-1]  # one table of indices for each axis but the last
    positions = {axis: place.ravel() for axis, place in zip(axes, places, strict=True)}
    reason = {"no_effect": columns.pop("no_effect")}
    return pd.DataFrame({**columns, **positions, "score": array.ravel(), **extra, **reason})


def summary(head: str, no_effect: tuple[NoEffect, ...], work: Work) -> str:
    """The scores in a few lines: what, at which cost, and everything without effect."""
    passes = f"{work.forwards} forward and {work.backwards} backward passes"
    cost = f"{passes}, {work.forward_equivalents:.1f} forward-equivalents"
    return "\n".join([f"{head}; {cost}", *(f"no effect: {item.name}: {item.reason}" for item in no_effect)])
