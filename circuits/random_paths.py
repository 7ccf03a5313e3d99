"""Random unions of input-to-output paths among the live edges, with wanted numbers of edges of each type."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.graph import EdgeGraph, fed_by

TRIES = 60  # paths drawn in a row that do not fit before a union is left as it is
BLOCK = 4096  # uniform numbers drawn at once


class Uniform:
    """Random choices from a generator; numbers are drawn in blocks, since one at a time costs more than a choice."""

    def __init__(self, generator: torch.Generator):
        self.generator, self.numbers = generator, iter(())

    def below(self, n: int) -> int:
        """One of 0 to n - 1, all equally likely."""
        number = next(self.numbers, None)
        if number is None:
            block = torch.rand(BLOCK, generator=self.generator, dtype=torch.float64, device=self.generator.device)
            self.numbers = iter(block.tolist())
            number = next(self.numbers)
        return min(int(number * n), n - 1)

    def weighted(self, weights: np.ndarray) -> int:
        """An index with a probability in proportion to its whole-number weight."""
        total = weights.cumsum()
        return int(total.searchsorted(self.below(int(total[-1])), side="right"))


@dataclass
class Union:
    """Edges taken so far, [edge], and how many of each type are still wanted, [type]; below 0 there are too many."""

    have: np.ndarray
    wanted: np.ndarray

    def add(self, edges: np.ndarray, types: np.ndarray) -> None:
        """Take some edges that are not there yet."""
        self.have[edges] = True
        np.subtract.at(self.wanted, types, 1)


class Paths:
    """Draws among the live edges, which are numbered in the order of `live.nonzero()`.

    Args:
        types: [edge], a number from 0 up for each live edge: the type that is matched.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        live: Bool[Tensor, "sender receiver *place"],
        types: np.ndarray,
        generator: torch.Generator,
    ):
        self.uniform, self.types = Uniform(generator), types
        places = live.nonzero().cpu().numpy()  # [edge 2] or [edge 4]
        self.sender, self.receiver = places[:, 0], places[:, 1]
        by_position = places.shape[1] == 4
        self.key, self.query = (places[:, 2], places[:, 3]) if by_position else (0 * places[:, 0], 0 * places[:, 0])
        self.feeds = fed_by(graph)
        self.of_type = grouped(self.types.tolist())
        self.out_of = grouped(zip(self.sender.tolist(), self.key.tolist(), strict=True))
        reads = list(zip(self.receiver.tolist(), self.query.tolist(), strict=True))
        arriving = [(sender, at, edge) for edge, (to, at) in enumerate(reads) for sender in self.feeds[to]]
        edges = np.array([edge for *_, edge in arriving], dtype=np.int64)
        found = grouped((sender, at) for sender, at, _ in arriving)
        self.into = {place: edges[index] for place, index in found.items()}  # (node, position) -> edges that it reads
        self.onward: dict[tuple[int, int], np.ndarray] = {}

    def union(self, target: np.ndarray, size: int) -> np.ndarray:
        """Numbers of the edges of one random union of at most `size` edges, near `target` edges of each type.

        Paths are drawn through edges of types that still lack some; one that would bring too many of a type is drawn
        again, and taken all the same only after half of the tries.
        """
        union, tries, n = Union(np.zeros(len(self.types), dtype=bool), target.copy()), 0, 0
        while n < size and tries < TRIES and bool((union.wanted > 0).any()):
            path = self._path(union)
            new = path[~union.have[path]]
            types = self.types[new]
            if not len(new) or n + len(new) > size or (tries < TRIES // 2 and self._too_many(types, union)):
                tries += 1
                continue
            union.add(new, types)
            tries, n = 0, n + len(new)
        return union.have.nonzero()[0]

    @staticmethod
    def _too_many(types: np.ndarray, union: Union) -> bool:
        kinds, counts = np.unique(types, return_counts=True)
        return bool((counts > np.maximum(union.wanted[kinds], 0)).any())

    def _path(self, union: Union) -> np.ndarray:
        """A path from the embedding to the metric over a new edge of a type that lacks some; empty at a dead end."""
        options = self.of_type[self.uniform.weighted(np.maximum(union.wanted, 0))]
        options = options[~union.have[options]]
        if not len(options):
            return options
        middle = int(options[self.uniform.below(len(options))])
        path, edge = [middle], middle
        while self.sender[edge] != 0:
            edge = self._pick(self.into.get((int(self.sender[edge]), int(self.key[edge]))), union)
            if edge is None:
                return options[:0]
            path.append(edge)
        edge = middle
        while self.feeds[int(self.receiver[edge])]:
            edge = self._pick(self._leaving(int(self.receiver[edge]), int(self.query[edge])), union)
            if edge is None:
                return options[:0]
            path.append(edge)
        return np.unique(np.array(path))

    def _leaving(self, receiver: int, at: int) -> np.ndarray | None:
        """Edges out of the nodes that a receiver feeds, at one position."""
        if (receiver, at) not in self.onward:
            found = [self.out_of[sender, at] for sender in self.feeds[receiver] if (sender, at) in self.out_of]
            self.onward[receiver, at] = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
        return self.onward[receiver, at]

    def _pick(self, options: np.ndarray | None, union: Union) -> int | None:
        """One of several edges: one that is there already or still wanted where possible."""
        if options is None or not len(options):
            return None
        good = options[union.have[options] | (union.wanted[self.types[options]] > 0)]
        options = good if len(good) else options
        return int(options[self.uniform.below(len(options))])


def grouped(keys: Iterable[Hashable]) -> dict[Hashable, np.ndarray]:
    """Where each key stands among them."""
    found: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    return {key: np.array(index, dtype=np.int64) for key, index in found.items()}
