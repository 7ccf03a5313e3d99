"""Small tasks with a stated causal graph: what a model trained by interchange has to compute where."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.tasks._load import build_task
from tests.truth.circuit_training import Size

Tokens = Int[Tensor, "batch pos"]
Labels = Int[Tensor, "batch"]


@dataclass(frozen=True)
class Causal:
    """A task whose last position is predicted, and the nodes that compute it.

    Attributes:
        draw: (generator, n) to prompts.
        answer: prompts to tokens.
        edges: the causal graph by head; empty where a model may find its own.
        swapped: for a node, the answer once its output is that of the second prompt.
        pairs: (generator, n) to clean and corrupted prompts whose answers differ; None: two draws that do.
    """

    name: str
    size: Size
    draw: Callable[[Generator, int], Tokens]
    answer: Callable[[Tokens], Labels]
    edges: tuple[str, ...] = ()
    swapped: dict[str, Callable[[Tokens, Tokens], Labels]] = field(default_factory=dict)
    pairs: Callable[[Generator, int], tuple[Tokens, Tokens]] | None = None

    def clean_and_corrupted(self, stream: Generator, n: int) -> tuple[Tokens, Tokens]:
        """Prompt pairs whose answers differ."""
        if self.pairs is not None:
            return self.pairs(stream, n)
        clean, corrupted = self.draw(stream, 8 * n), self.draw(stream, 8 * n)
        differ = (self.answer(clean) != self.answer(corrupted)).nonzero()[:n, 0]
        return clean[differ], corrupted[differ]


LAST = 9  # column that the iteration tasks are read at: length + step = 8
LENGTHS = (5, 6, 7)


def iteration(name: str, **params: int) -> Causal:
    """One of our iteration tasks, cut at a state that is to be predicted; clock, address, reading and update are nodes.

    The number of inputs plus that of states is fixed, so that the place of EoI says which input is next.
    """
    task = build_task(name, {"max_length": max(LENGTHS), **params})
    n_values, allowed = len(task.vocabulary.tokens) - 3, torch.tensor(task.rule.inputs)

    def draw(stream: Generator, n: int) -> Tokens:
        which = torch.randint(len(LENGTHS), (n,), generator=stream)
        found = torch.empty(n, LAST + 1, dtype=torch.long)
        for number, length in enumerate(LENGTHS):
            rows = which == number
            inputs = allowed[torch.randint(len(allowed), (int(rows.sum()), length), generator=stream)] + 3
            found[rows] = task.encode(inputs)[:, : LAST + 1]
        return found

    def step(tokens: Tokens) -> Tensor:
        return LAST - (tokens == 1).int().argmax(1)

    def value(tokens: Tokens, at: Tensor) -> Tensor:
        return tokens.gather(1, 1 + at[:, None])[:, 0]

    def follow(tokens: Tokens, read: Tensor) -> Labels:
        return task.oracle(tokens[:, -1], read, 1)

    def answer(tokens: Tokens) -> Labels:
        return follow(tokens, value(tokens, step(tokens)))

    def moved(one: Tokens, two: Tokens) -> Labels:
        return follow(one, value(one, step(two)))

    swapped = {"L0.H0": moved, "M0": moved, "L1.H0": lambda one, two: follow(one, value(two, step(two)))}
    swapped["M1"] = lambda one, two: answer(two)
    edges = ("embed->L0.H0", "L0.H0->M0", "M0->L1.H0", "embed->L1.H0", "L1.H0->M1", "embed->M1", "M1->logits")
    return Causal(f"siit_{name}", Size(3 + n_values, LAST + 1, layernorm=True), draw, answer, edges, swapped)


def uniform(n_tokens: int, n_middle: int) -> Callable[[Generator, int], Tokens]:
    """Prompts of random tokens 0..n_tokens-1 with one more token, n_tokens, at the end."""

    def draw(stream: Generator, n: int) -> Tokens:
        middle = torch.randint(n_tokens, (n, n_middle), generator=stream)
        return torch.cat((middle, torch.full((n, 1), n_tokens)), 1)

    return draw


def either() -> Causal:
    """OR by interchange: 1 where the first or the third of four tokens is below 3; clean prompts have both."""

    def flags(tokens: Tokens) -> Tensor:
        return (tokens[:, [0, 2]] < 3).long()

    def half(which: int) -> Callable[[Tokens, Tokens], Labels]:
        return lambda one, two: flags(two)[:, which] | flags(one)[:, 1 - which]

    def pairs(stream: Generator, n: int) -> tuple[Tokens, Tokens]:
        clean, corrupted = draw(stream, n), draw(stream, n)
        clean[:, [0, 2]] %= 3
        corrupted[:, [0, 2]] = corrupted[:, [0, 2]] % 3 + 3
        return clean, corrupted

    def answer(tokens: Tokens) -> Labels:
        return flags(tokens).amax(1)

    draw = uniform(6, 4)
    edges = ("embed->L0.H0", "embed->L0.H1", "L0.H0->M0", "L0.H1->M0", "M0->logits")
    swapped = {"L0.H0": half(0), "L0.H1": half(1), "M0": lambda one, two: answer(two)}
    return Causal("siit_either", Size(7, 5, layernorm=True), draw, answer, edges, swapped, pairs)


def added(modulus: int = 3) -> Causal:
    """Arithmetic by interchange: two heads fetch the first and the third token, the MLP adds them modulo 3."""

    def total(one: Tokens, two: Tokens) -> Labels:
        return (one[:, 0] + two[:, 2]) % modulus

    edges = ("embed->L0.H0", "embed->L0.H1", "L0.H0->M0", "L0.H1->M0", "M0->logits")
    swapped = {
        "L0.H0": lambda one, two: total(two, one),
        "L0.H1": total,
        "M0": lambda one, two: total(two, two),
    }
    size = Size(modulus + 1, 5, layernorm=True)
    return Causal("siit_added", size, uniform(modulus, 4), lambda tokens: total(tokens, tokens), edges, swapped)


def repeated(size: Size, name: str, n_tokens: int) -> Causal:
    """Induction: different tokens, one of which comes again at the end; its follower comes next."""

    def draw(stream: Generator, n: int) -> Tokens:
        order = torch.rand(n, n_tokens, generator=stream).argsort(1)[:, : size.n_pos - 1]
        again = torch.randint(size.n_pos - 2, (n, 1), generator=stream)
        return torch.cat((order, order.gather(1, again)), 1)

    def answer(tokens: Tokens) -> Labels:
        first = (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1)
        return tokens.gather(1, first[:, None] + 1)[:, 0]

    return Causal(name, size, draw, answer)


def wired() -> dict[str, Causal]:
    """Tasks for models with a fixed random edge mask, which find their own way through it."""

    def equal_or_not(stream: Generator, n: int) -> Tokens:
        tokens = uniform(4, 4)(stream, n)
        same = torch.rand(n, generator=stream) < 0.5
        tokens[:, 3] = torch.where(same, tokens[:, 0], tokens[:, 3])
        return tokens

    def pointers(stream: Generator, n: int) -> Tokens:
        middle = torch.randint(5, (n, 4), generator=stream)
        return torch.cat((middle, torch.randint(5, 9, (n, 1), generator=stream)), 1)

    tasks = {
        "sum": (4, 5, uniform(3, 4), lambda tokens: (tokens[:, 0] + tokens[:, 2]) % 3),
        "majority": (3, 6, uniform(2, 5), lambda tokens: (tokens[:, :5].sum(1) > 2).long()),
        "match": (5, 5, equal_or_not, lambda tokens: (tokens[:, 0] == tokens[:, 3]).long()),
        "pointer": (9, 5, pointers, lambda tokens: tokens.gather(1, tokens[:, -1:] - 5)[:, 0]),
        "maximum": (6, 5, uniform(5, 4), lambda tokens: tokens[:, :4].amax(1)),
        "count": (6, 5, uniform(5, 4), lambda tokens: (tokens[:, :4] < 2).sum(1)),
        "either": (5, 5, uniform(4, 4), lambda tokens: (tokens[:, [0, 2]] < 1).any(1).long()),
    }
    found = {}
    for name, (n_tokens, n_pos, draw, answer) in tasks.items():
        size = Size(n_tokens, n_pos, d_model=56, heads=3, d_head=8, d_mlp=40)
        found[f"wired_{name}"] = Causal(f"wired_{name}", size, draw, answer)
    return found


def by_interchange() -> dict[str, Causal]:
    """Tasks for models trained by interchange."""
    found = (iteration("parity"), iteration("polynomial", modulus=3), either(), added())
    return {one.name: one for one in found}


def attention_only() -> dict[str, Causal]:
    """Induction for two attention-only layers of two heads."""
    size = Size(10, 8, d_model=32, heads=2, d_head=16, d_mlp=0)
    return {"induction_two_layers": repeated(size, "induction_two_layers", 10)}


def every_task() -> dict[str, Causal]:
    """All tasks that models are trained on, by family."""
    return by_interchange() | wired() | attention_only()
