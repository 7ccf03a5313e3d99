"""Random unions of input-to-output paths among the live edges, with wanted numbers of edges of each type."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.graph import EdgeGraph, fed_by

TRIES = 60  # paths drawn in a row that do not fit before a union is left as it is
GUESSES = 12  # at something that fits before all that could fit is listed
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

    def that_fits(self, options: Sequence[int], fits: Callable[[int], bool]) -> int | None:
        """One of the options that fit, all equally likely; None where none does.

        Guesses come first: most options fit mostly, and looking at hundreds of them costs more than a few guesses.
        """
        for _ in range(GUESSES if options else 0):
            one = options[self.below(len(options))]
            if fits(one):
                return one
        left = [one for one in options if fits(one)]
        return left[self.below(len(left))] if left else None


class Union:
    """Edges taken so far, and how many of each type are still wanted; below 0 there are too many.

    Args:
        types: of every edge.
        target: how many of each type are wanted.
    """

    def __init__(self, types: Sequence[int], target: Sequence[int]):
        self.types, self.wanted, self.have = types, list(target), bytearray(len(types))
        self.size, self.lacking = 0, sum(target)
        self._wishes()

    def _wishes(self) -> None:
        """List each type as often as it is wanted, with the turn from which on a wish is fulfilled."""
        self.wishes = [(kind, turn) for kind, count in enumerate(self.wanted) for turn in range(count)]

    def wished(self, uniform: Uniform) -> int:
        """A type, as likely as edges of it are lacking."""
        for _ in range(GUESSES):
            kind, turn = self.wishes[uniform.below(len(self.wishes))]
            if turn < self.wanted[kind]:
                return kind
        self._wishes()
        return self.wishes[uniform.below(len(self.wishes))][0]

    def welcome(self, edge: int) -> bool:
        """Whether an edge is there already, or one of its type is still wanted."""
        return bool(self.have[edge]) or self.wanted[self.types[edge]] > 0

    def new(self, edge: int) -> bool:
        """Whether an edge is not there yet."""
        return not self.have[edge]

    def exceeded(self, edges: Sequence[int]) -> bool:
        """Whether new edges are more of some type than are wanted."""
        counts = Counter(self.types[edge] for edge in edges)
        return any(count > max(0, self.wanted[kind]) for kind, count in counts.items())

    def add(self, edges: Sequence[int]) -> None:
        """Take edges that are not there yet."""
        for edge in edges:
            self.have[edge] = 1
            self.lacking -= self.wanted[self.types[edge]] > 0
            self.wanted[self.types[edge]] -= 1
        self.size += len(edges)


class Paths:
    """Draws among the live edges, which are numbered in the order of `live.nonzero()`.

    Args:
        types: a number from 0 up for each live edge: the type that is matched.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        live: Bool[Tensor, "sender receiver *place"],
        types: Sequence[int],
        generator: torch.Generator,
    ):
        self.uniform, self.types = Uniform(generator), types
        places = live.nonzero().tolist()
        feeds, ends = fed_by(graph), [(0, 0) if len(place) == 2 else (place[2], place[3]) for place in places]
        out_of: dict[tuple[int, int], list[int]] = {}  # (node, position) -> edges that leave it
        into: dict[tuple[int, int], list[int]] = {}  # (node, position) -> edges that it reads
        self.of_type: list[list[int]] = [[] for _ in range(max(types, default=-1) + 1)]
        for edge, ((sender, receiver, *_), (key, query)) in enumerate(zip(places, ends, strict=True)):
            self.of_type[types[edge]].append(edge)
            out_of.setdefault((sender, key), []).append(edge)
            for node in feeds[receiver]:
                into.setdefault((node, query), []).append(edge)
        self.starts = [place[0] == 0 for place in places]
        self.stops = [not feeds[place[1]] for place in places]
        self.before = [into.get((place[0], key), []) for place, (key, _) in zip(places, ends, strict=True)]
        leaving: dict[tuple[int, int], list[int]] = {}  # (reader, position) -> edges that leave what it feeds
        for (_, receiver, *_), (_, query) in zip(places, ends, strict=True):
            if (receiver, query) not in leaving:
                leaving[receiver, query] = [edge for node in feeds[receiver] for edge in out_of.get((node, query), ())]
        self.after = [leaving[place[1], query] for place, (_, query) in zip(places, ends, strict=True)]

    def union(self, target: Sequence[int], size: int) -> list[int]:
        """Numbers of the edges of one random union of at most `size` edges, near `target` edges of each type.

        Paths are drawn through edges of types that still lack some; one that would bring too many of a type is drawn
        again, and taken all the same only after half of the tries.
        """
        union, tries = Union(self.types, target), 0
        while union.size < size and tries < TRIES and union.lacking:
            new = [edge for edge in self._path(union) if union.new(edge)]
            if not new or union.size + len(new) > size or (tries < TRIES // 2 and union.exceeded(new)):
                tries += 1
                continue
            union.add(new)
            tries = 0
        return [edge for edge, there in enumerate(union.have) if there]

    def _path(self, union: Union) -> list[int]:
        """A path from the embedding to the metric over a new edge of a type that lacks some; empty at a dead end."""
        middle = self.uniform.that_fits(self.of_type[union.wished(self.uniform)], union.new)
        if middle is None:
            return []
        path = [middle]
        for ended, onward in ((self.starts, self.before), (self.stops, self.after)):
            edge = middle
            while not ended[edge]:
                options = onward[edge]
                if not options:
                    return []
                found = self.uniform.that_fits(options, union.welcome)
                edge = options[self.uniform.below(len(options))] if found is None else found
                path.append(edge)
        return path
