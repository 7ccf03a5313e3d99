"""A family of eight algorithms written with the same parts: what each head attends to, moves, and what MLPs look up.

Every algorithm is a function of a seed, which also draws the heads that it is written into. Corrupted prompts are
other prompts of the same algorithm with another answer.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from interp.rng import generator
from tests.truth.circuit_families import N_PROMPTS, Planted
from tests.truth.hand_circuits import Bench

N, PLACES = 5, 5  # values and places; the token after them is the one that asks
ASK = N
Draw = Callable[[Generator, int], Tensor]


def bench(name: str, seed: int, more: dict[str, int], n_tokens: int = N + 1) -> tuple[Bench, list[int]]:
    """Empty layers, and for layers 0 and 1 in turn two drawn heads."""
    stream = generator(seed, name, "heads")
    heads = [int(head) for _ in range(2) for head in torch.randperm(4, generator=stream)[:2]]
    return Bench(n_tokens, PLACES + 1, {**more, "out": n_tokens}, heads=4, seed=seed), heads


def planted(
    name: str,
    seed: int,
    made: Bench,
    draw: Draw,
    answer: Callable[[Tensor], Tensor],
    true: tuple[str, ...],
    *open_: str,
) -> Planted:
    """The algorithm with its prompts: pairs of draws whose answers differ."""
    stream = generator(seed, name, "prompts")
    clean, corrupted = (draw(stream, 12 * N_PROMPTS) for _ in range(2))
    differ = (answer(clean) != answer(corrupted)).nonzero()[:N_PROMPTS, 0]
    clean, corrupted = clean[differ], corrupted[differ]
    return Planted(made, clean, corrupted, answer(clean), answer(corrupted), true, open_)


def values(stream: Generator, n: int) -> Tensor:
    """Random values and the token that asks."""
    return torch.cat((torch.randint(N, (n, PLACES), generator=stream), torch.full((n, 1), ASK)), 1)


def pointers(stream: Generator, n: int) -> Tensor:
    """Random values, the last of which is a place to look at."""
    return torch.randint(N, (n, PLACES + 1), generator=stream)


def _copy(made: Bench, layer: int, head: int, place: int, write: str) -> str:
    made.at(layer, head, place)
    made.move(layer, head, (made["tok"][:N], made[write][:N]))
    return f"L{layer}.H{head}"


def place(seed: int) -> Planted:
    """The value at the second place."""
    made, (head, *_) = bench("place", seed, {})
    name = _copy(made, 0, head, 1, "out")
    return planted("place", seed, made, values, lambda x: x[:, 1], (f"embed->{name}", f"{name}->logits"))


def pointer(seed: int) -> Planted:
    """The value at the place that the last value names."""
    made, (_, _, head, _) = bench("pointer", seed, {})
    made.look(1, head, (made["tok"][:N], made["pos"][:N]))
    made.move(1, head, (made["tok"][:N], made["out"][:N]))
    name = f"L1.H{head}"
    true = (f"embed->{name}", f"{name}->logits")
    return planted("pointer", seed, made, pointers, lambda x: x.gather(1, x[:, -1:])[:, 0], true)


def two_hops(seed: int) -> Planted:
    """The value at the place named by the value at the place that the last value names."""
    made, (one, _, two, _) = bench("two hops", seed, {"hop": N})
    made.look(0, one, (made["tok"][:N], made["pos"][:N]))
    made.move(0, one, (made["tok"][:N], made["hop"]))
    made.look(1, two, (made["hop"], made["pos"][:N]))
    made.move(1, two, (made["tok"][:N], made["out"][:N]))
    first, second = f"L0.H{one}", f"L1.H{two}"

    def answer(x: Tensor) -> Tensor:
        return x.gather(1, x.gather(1, x[:, -1:]))[:, 0]

    true = (f"embed->{first}", f"{first}->{second}", f"embed->{second}", f"{second}->logits")
    return planted("two hops", seed, made, pointers, answer, true)


def follower(seed: int) -> Planted:
    """The value behind the marker, which stands somewhere before."""
    marker = N + 1
    made, (one, _, two, _) = bench("follower", seed, {"before": 1}, n_tokens=N + 2)
    made.look(0, one, (made["pos"][1:], made["pos"][:-1]))
    made.move(0, one, (made["tok"][marker:], made["before"]))
    made.look(1, two, (made["one"], made["before"]))
    made.move(1, two, (made["tok"][:N], made["out"][:N]))

    def draw(stream: Generator, n: int) -> Tensor:
        x = values(stream, n)
        x[torch.arange(n), torch.randint(PLACES - 1, (n,), generator=stream)] = marker
        return x

    def answer(x: Tensor) -> Tensor:
        return x.gather(1, (x == marker).int().argmax(1, keepdim=True) + 1)[:, 0]

    first, second = f"L0.H{one}", f"L1.H{two}"
    true = (f"embed->{first}", f"{first}->{second}", f"embed->{second}", f"{second}->logits")
    return planted("follower", seed, made, draw, answer, true)


def _two_copies(name: str, seed: int) -> tuple[Bench, tuple[str, ...]]:
    """The first and the fourth value at the place that asks, and the edges so far, up to the MLP of layer 0."""
    made, (one, two, *_) = bench(name, seed, {"first": N, "second": N, "middle": N})
    heads = _copy(made, 0, one, 0, "first"), _copy(made, 0, two, 3, "second")
    return made, tuple(edge for head in heads for edge in (f"embed->{head}", f"{head}->M0"))


def addition(seed: int) -> Planted:
    """The sum of the first and the fourth value, modulo the number of values."""
    made, edges = _two_copies("addition", seed)
    for a in range(N):
        for b in range(N):
            made.both(0, made["first"][a] + made["second"][b], made["out"][(a + b) % N])
    return planted("addition", seed, made, values, lambda x: (x[:, 0] + x[:, 3]) % N, (*edges, "M0->logits"))


def looked_up(seed: int) -> Planted:
    """A function of the sum of the first and the fourth value, looked up in the next layer."""
    made, edges = _two_copies("looked up", seed)
    table = torch.randperm(N, generator=generator(seed, "table"))
    for a in range(N):
        for b in range(N):
            made.both(0, made["first"][a] + made["second"][b], made["middle"][(a + b) % N])
    for a in range(N):
        made.both(1, made["middle"][a], made["out"][int(table[a])], needed=1)
    true = (*edges, "M0->M1", "M1->logits")
    return planted("looked up", seed, made, values, lambda x: table[(x[:, 0] + x[:, 3]) % N], true)


def equality(seed: int) -> Planted:
    """1 where the first and the fourth value agree, else 0."""
    made, edges = _two_copies("equality", seed)
    for a in range(N):
        made.both(0, made["first"][a] + made["second"][a], made["out"][1] - made["out"][0])

    def draw(stream: Generator, n: int) -> Tensor:
        x = values(stream, n)
        x[:, 3] = torch.where(torch.rand(n, generator=stream) < 0.5, x[:, 0], x[:, 3])
        return x

    return planted("equality", seed, made, draw, lambda x: (x[:, 0] == x[:, 3]).long(), (*edges, "M0->logits"))


def majority(seed: int) -> Planted:
    """1 where more than half of the places hold a value below 2, else 0; a head takes the mean."""
    made, (head, *_) = bench("majority", seed, {"share": 1})
    made.move(0, head, (made["tok"][:2], made["share"].expand(2, -1)))
    made.unit(0, made["share"][0], 2.5 / (PLACES + 1), 6 * (made["out"][1] - made["out"][0]))
    true = (f"embed->L0.H{head}", f"L0.H{head}->M0", "M0->logits")
    return planted("majority", seed, made, values, lambda x: ((x[:, :PLACES] < 2).sum(1) > 2).long(), true)


ALGORITHMS: dict[str, Callable[[int], Planted]] = {
    "place": place,
    "pointer": pointer,
    "two_hops": two_hops,
    "follower": follower,
    "addition": addition,
    "looked_up": looked_up,
    "equality": equality,
    "majority": majority,
}
