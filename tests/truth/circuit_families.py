"""Families of hand-set circuits whose edges are known: additive and serial ones, and those in which edges interact.

Each family is a function of a seed that gives a `Planted`. Prompts are of one length and their last position is read;
what the corrupted prompts change is said in each. An edge whose sender differs between the runs only in what its reader
does not use, such as the embedding in front of a head that attends by position to another head's output, can be known
to belong to the program without any prompt exercising it: such edges are `open` and are not scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from interp.decoder import Decoder
from interp.pairs.base import Pairs
from interp.rng import generator
from tests.truth.hand_circuits import Bench, Form

N_PROMPTS = 64
N_CONTENT = 8  # content tokens; further ones have names below
BOS, BLANK, ASK = N_CONTENT, N_CONTENT + 1, N_CONTENT + 2
N_TOKENS = N_CONTENT + 3
Prompts = Int[Tensor, "batch pos"]


@dataclass(frozen=True)
class Planted:
    """A hand-set circuit before it is dressed in a form.

    Attributes:
        answers, wrong: token ids [batch].
        true: edges by head.
        open: edges of the program that the prompts do not exercise.
        roles: (node, role, other) that a search has to name.
    """

    bench: Bench
    clean: Prompts
    corrupted: Prompts
    answers: Int[Tensor, "batch"]
    wrong: Int[Tensor, "batch"]
    true: tuple[str, ...]
    open: tuple[str, ...] = ()
    roles: tuple[tuple[str, str, str], ...] = ()

    def decoder(self, form: Form) -> Decoder:
        """The decoder in a form."""
        return self.bench.decoder(form, self.clean)

    def pairs(self) -> Pairs:
        """The prompt pairs, every prompt its own unit, divided into parts."""
        return pairs_of(self.clean, self.corrupted, self.answers, self.wrong, len(self.bench["tok"]))


def pairs_of(clean: Prompts, corrupted: Prompts, answers: Tensor, wrong: Tensor, d_vocab: int) -> Pairs:
    """Prompt pairs read at their last position; every prompt is its own unit."""
    n = len(clean)
    return Pairs(
        clean=clean,
        corrupted=corrupted,
        mask=torch.ones_like(clean, dtype=torch.bool),
        position=torch.full((n, 1), clean.shape[1] - 1),
        answers=answers[:, None, None],
        wrong=wrong[:, None, None],
        unit=torch.arange(n),
        d_vocab=d_vocab,
        spans=({},) * n,
        group=("",) * n,
        part=("",) * n,
    ).split(0)


def content(stream: Generator, *shape: int) -> Tensor:
    """Random content tokens."""
    return torch.randint(N_CONTENT, shape, generator=stream)


def other(tokens: Tensor, stream: Generator) -> Tensor:
    """Other content tokens than given."""
    return (tokens + torch.randint(1, N_CONTENT, tokens.shape, generator=stream)) % N_CONTENT


def framed(middle: Tensor) -> Tensor:
    """BOS, content, ASK."""
    ends = [torch.full((len(middle), 1), token) for token in (BOS, ASK)]
    return torch.cat((ends[0], middle, ends[1]), 1)


def two_runs(stream: Generator, n_middle: int, cue: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random middles that differ at the cue; clean, corrupted and their tokens at the cue."""
    clean, corrupted = (content(stream, N_PROMPTS, n_middle) for _ in range(2))
    corrupted[:, cue] = other(clean[:, cue], stream)
    return clean, corrupted, clean[:, cue], corrupted[:, cue]


def copy(seed: int) -> Planted:
    """Two heads in different layers add what stands at the second place; everything is corrupted."""
    bench = Bench(N_TOKENS, 6, {"out": N_TOKENS}, seed=seed)
    for layer, head, gain in ((0, 0, 1.0), (1, 1, 0.6)):
        bench.at(layer, head, 2)
        bench.move(layer, head, (bench["tok"], gain * bench["out"]))
    clean, corrupted, answers, wrong = two_runs(generator(seed, "copy"), 4, 1)
    true = ("embed->L0.H0", "L0.H0->logits", "embed->L1.H1", "L1.H1->logits")
    return Planted(bench, framed(clean), framed(corrupted), answers, wrong, true)


def induction(seed: int) -> Planted:
    """L0.H1 writes the previous token; L1.H2 looks for the current one there; other sequences are the donors."""
    n_pos, stream = 8, generator(seed, "induction")
    bench = Bench(N_TOKENS, n_pos, {"prev": N_TOKENS, "out": N_TOKENS}, seed=seed)
    bench.look(0, 1, (bench["pos"][1:], bench["pos"][:-1]))
    bench.move(0, 1, (bench["tok"], bench["prev"]))
    bench.look(1, 2, (bench["tok"], bench["prev"]))
    bench.move(1, 2, (bench["tok"], bench["out"]))

    def sequences() -> tuple[Tensor, Tensor]:
        order = torch.rand(N_PROMPTS, N_CONTENT, generator=stream).argsort(1)[:, : n_pos - 2]
        place = torch.randint(n_pos - 3, (N_PROMPTS, 1), generator=stream)
        bos = torch.full((N_PROMPTS, 1), BOS)
        return torch.cat((bos, order, order.gather(1, place)), 1), order.gather(1, place + 1)[:, 0]

    (clean, answers), (corrupted, wrong) = sequences(), sequences()
    differ = answers != wrong
    wrong = torch.where(differ, wrong, other(answers, stream))
    true = ("embed->L0.H1", "L0.H1->L1.H2", "embed->L1.H2", "L1.H2->logits")
    return Planted(bench, clean, corrupted, answers, wrong, true)


def iteration(seed: int) -> Planted:
    """Inputs, EOI, states: a clock head finds EOI, an MLP the place to read, a head reads it, an MLP adds modulo 3.

    Half of the donors have another number of inputs, so that the clock moves.
    """
    n, modulus, eoi, stream = 10, 3, 3, generator(seed, "iteration")
    bench = Bench(4, n, {"eoi": n, "key": n, "val": modulus, "out": 4}, heads=3, seed=seed)
    tok, pos = bench["tok"], bench["pos"]
    bench.look(0, 0, (bench["one"], tok[eoi:]))
    bench.move(0, 0, (pos, bench["eoi"]))
    for place in range(n):
        for end in range(place):
            if place - end < end:
                bench.both(0, pos[place] + bench["eoi"][end], bench["key"][place - end])
    bench.look(1, 1, (bench["key"], pos))
    bench.move(1, 1, (tok[:modulus], bench["val"]))
    for state in range(modulus):
        for value in range(modulus):
            bench.both(1, tok[state] + bench["val"][value], bench["out"][(state + value) % modulus])

    def sequences(n_inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens, answers = torch.empty(N_PROMPTS, n, dtype=torch.long), []
        for row, length in enumerate(n_inputs.tolist()):
            inputs = torch.randint(modulus, (length,), generator=stream)
            states = inputs.cumsum(0) % modulus
            tokens[row] = torch.cat((inputs, torch.tensor([eoi]), states))[:n]
            answers.append(int(states[n - length - 1]))
        return tokens, torch.tensor(answers)

    lengths = torch.randint(6, 9, (N_PROMPTS,), generator=stream)
    donors = torch.where(torch.arange(N_PROMPTS) % 2 == 0, lengths, 6 + (lengths - 5) % 3)
    (clean, answers), (corrupted, theirs) = sequences(lengths), sequences(donors)
    wrong = torch.where(theirs != answers, theirs, (answers + 1) % modulus)
    true = ("embed->L0.H0", "L0.H0->M0", "M0->L1.H1", "embed->L1.H1", "L1.H1->M1", "embed->M1", "M1->logits")
    return Planted(bench, clean, corrupted, answers, wrong, true, ("embed->M0",))


def relay(seed: int) -> Planted:
    """Three heads pass a token on from place to place; everything is corrupted."""
    bench = Bench(N_TOKENS, 7, {"one_on": N_TOKENS, "two_on": N_TOKENS, "out": N_TOKENS}, layers=3, heads=3, seed=seed)
    steps = ((0, 1, 1, 3, "tok", "one_on"), (1, 0, 3, 4, "one_on", "two_on"), (2, 2, 4, 6, "two_on", "out"))
    for layer, head, source, reader, read, write in steps:
        bench.at(layer, head, source, reader)
        bench.move(layer, head, (bench[read], bench[write]))
    clean, corrupted, answers, wrong = two_runs(generator(seed, "relay"), 5, 0)
    true = ("embed->L0.H1", "L0.H1->L1.H0", "L1.H0->L2.H2", "L2.H2->logits")
    roles = (("L1.H0", "relay", "L0.H1"), ("L2.H2", "relay", "L1.H0"))
    return Planted(
        bench, framed(clean), framed(corrupted), answers, wrong, true, ("embed->L1.H0", "embed->L2.H2"), roles
    )


def gated_decoy(seed: int) -> Planted:
    """A head copies the answer through an open gate; another one copies it from elsewhere to a gate that is shut."""
    more = {"copied": N_TOKENS, "decoy": N_TOKENS, "shut": 1, "out": N_TOKENS}
    bench = Bench(N_TOKENS, 6, more, seed=seed)
    for head, place, write in ((0, 1, "copied"), (1, 3, "decoy")):
        bench.at(0, head, place)
        bench.move(0, head, (bench["tok"], bench[write]))
    for token in range(N_CONTENT):
        bench.both(0, bench["copied"][token] + bench["tok"][ASK], bench["out"][token])
        bench.both(0, bench["decoy"][token] + bench["shut"][0], bench["out"][token])
    clean, corrupted, answers, wrong = two_runs(generator(seed, "gated decoy"), 4, 0)
    clean[:, 2], corrupted[:, 2] = answers, wrong
    true = ("embed->L0.H0", "L0.H0->M0", "M0->logits")
    return Planted(bench, framed(clean), framed(corrupted), answers, wrong, true, ("embed->M0",))


def flagged(stream: Generator, places: tuple[int, ...], n_middle: int) -> tuple[Tensor, Tensor]:
    """Middles that have a token below 4 at every place, and donors that have one from 4 on there."""
    clean, corrupted = (content(stream, N_PROMPTS, n_middle) for _ in range(2))
    for place in places:
        clean[:, place] %= 4
        corrupted[:, place] = corrupted[:, place] % 4 + 4
    return clean, corrupted


def _flag_heads(bench: Bench, heads: tuple[tuple[int, int, int], ...]) -> None:
    """Heads (layer, head, place) write flag number i where the token at their place is below 4."""
    for number, (layer, head, place) in enumerate(heads):
        bench.at(layer, head, place)
        bench.move(layer, head, (bench["tok"][:4], bench["flag"][number].expand(4, -1)))


def _yes_or_no() -> tuple[Tensor, Tensor]:
    return torch.zeros(N_PROMPTS, dtype=torch.long), torch.ones(N_PROMPTS, dtype=torch.long)


def conjunction(seed: int) -> Planted:
    """AND: yes where three places hold a token below 4, two of them joined in layer 0; donors hold none."""
    bench = Bench(N_TOKENS, 6, {"flag": 3, "pair": 1, "out": N_TOKENS}, seed=seed)
    _flag_heads(bench, ((0, 0, 1), (0, 1, 2), (1, 1, 4)))
    bench.both(0, bench["flag"][0] + bench["flag"][1], bench["pair"][0])
    bench.both(1, bench["pair"][0] + bench["flag"][2], bench["out"][0])
    clean, corrupted = flagged(generator(seed, "conjunction"), (0, 1, 3), 4)
    true = ("embed->L0.H0", "embed->L0.H1", "L0.H0->M0", "L0.H1->M0", "M0->M1", "embed->L1.H1", "L1.H1->M1")
    return Planted(bench, framed(clean), framed(corrupted), *_yes_or_no(), (*true, "M1->logits"))


def _any_of(bench: Bench, layer: int, reads: Tensor, writes: Tensor) -> None:
    """Adds `writes` once where at least one feature of `reads` is on."""
    bench.unit(layer, reads, 0.25, 2 * writes)
    bench.unit(layer, reads, 0.75, -2 * writes)


def disjunction(seed: int) -> Planted:
    """OR: yes where one of two places holds a token below 4; clean prompts hold one at both, donors at none."""
    bench = Bench(N_TOKENS, 6, {"flag": 2, "out": N_TOKENS}, seed=seed)
    _flag_heads(bench, ((0, 0, 1), (0, 2, 3)))
    _any_of(bench, 0, bench["flag"].sum(0), bench["out"][0])
    clean, corrupted = flagged(generator(seed, "disjunction"), (0, 2), 4)
    true = ("embed->L0.H0", "embed->L0.H2", "L0.H0->M0", "L0.H2->M0", "M0->logits")
    return Planted(bench, framed(clean), framed(corrupted), *_yes_or_no(), true)


def nested(seed: int) -> Planted:
    """OR of ANDs: two of four places would do, each pair joined in layer 0, and both pairs are there."""
    bench = Bench(N_TOKENS, 6, {"flag": 4, "pair": 2, "out": N_TOKENS}, heads=5, seed=seed)
    _flag_heads(bench, tuple((0, head, head + 1) for head in range(4)))
    for number in range(2):
        bench.both(0, bench["flag"][2 * number] + bench["flag"][2 * number + 1], bench["pair"][number])
    _any_of(bench, 1, bench["pair"].sum(0), bench["out"][0])
    clean, corrupted = flagged(generator(seed, "nested"), (0, 1, 2, 3), 4)
    true = tuple(edge for head in range(4) for edge in (f"embed->L0.H{head}", f"L0.H{head}->M0"))
    return Planted(bench, framed(clean), framed(corrupted), *_yes_or_no(), (*true, "M0->M1", "M1->logits"))


def blanked(stream: Generator, n_middle: int, places: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Middles with one token at all places, which donors lack: they are blank there."""
    clean, corrupted = (content(stream, N_PROMPTS, n_middle) for _ in range(2))
    answers = content(stream, N_PROMPTS)
    for place in places:
        clean[:, place], corrupted[:, place] = answers, BLANK
    return framed(clean), framed(corrupted), answers, other(answers, stream)


def backup(seed: int) -> Planted:
    """L0.H0 copies the cue and says so; L1.H1 copies it only where nobody has said so. Donors have no cue."""
    bench = Bench(N_TOKENS, 6, {"done": 1, "out": N_TOKENS}, seed=seed)
    tok, cue = bench["tok"][:N_CONTENT], 2
    bench.at(0, 0, cue)
    bench.move(0, 0, (tok, bench["out"][:N_CONTENT] + bench["done"]))
    bench.look(1, 1, (bench["one"], bench["pos"][cue : cue + 1]), (2 * bench["done"], bench["tok"][BOS : BOS + 1]))
    bench.move(1, 1, (tok, bench["out"][:N_CONTENT]))
    true = ("embed->L0.H0", "L0.H0->logits", "L0.H0->L1.H1", "embed->L1.H1", "L1.H1->logits")
    given = blanked(generator(seed, "backup"), 4, (cue - 1,))
    return Planted(bench, *given, true, roles=(("L1.H1", "backup", "L0.H0"),))


def negative_head(seed: int) -> Planted:
    """A main head copies the answer; of what another one copies, L1.H0 adds 0.8 and L1.H1 takes 0.8 away again."""
    bench = Bench(N_TOKENS, 6, {"copied": N_TOKENS, "out": N_TOKENS}, seed=seed)
    bench.at(0, 1, 1)
    bench.move(0, 1, (bench["tok"], bench["out"]))
    bench.at(0, 0, 3)
    bench.move(0, 0, (bench["tok"], bench["copied"]))
    for head, gain in ((0, 0.8), (1, -0.8)):
        bench.at(1, head, 5, 5)
        bench.move(1, head, (bench["copied"], gain * bench["out"]))
    clean, corrupted, answers, wrong = two_runs(generator(seed, "negative head"), 4, 0)
    clean[:, 2], corrupted[:, 2] = answers, wrong
    true = ("embed->L0.H1", "L0.H1->logits", "embed->L0.H0", "L0.H0->L1.H0", "L0.H0->L1.H1")
    true = (*true, "L1.H0->logits", "L1.H1->logits")
    still = ("embed->L1.H0", "embed->L1.H1")
    given = framed(clean), framed(corrupted), answers, wrong
    return Planted(bench, *given, true, still, (("L1.H1", "negative", ""),))


def self_repair(seed: int) -> Planted:
    """L0.H0 writes the answer at 0.8, L0.H1 a hint of it; the MLP adds what the hint has more. Donors: no cue."""
    bench = Bench(N_TOKENS, 6, {"hint": N_TOKENS, "out": N_TOKENS}, seed=seed)
    tok = bench["tok"][:N_CONTENT]
    bench.at(0, 0, 1)
    bench.move(0, 0, (tok, 0.8 * bench["out"][:N_CONTENT]))
    bench.at(0, 1, 3)
    bench.move(0, 1, (tok, bench["hint"][:N_CONTENT]))
    for token in range(N_CONTENT):
        bench.unit(0, bench["hint"][token] - bench["out"][token], 0.0, bench["out"][token])
    true = ("embed->L0.H0", "L0.H0->logits", "L0.H0->M0", "embed->L0.H1", "L0.H1->M0", "M0->logits")
    given = blanked(generator(seed, "self-repair"), 4, (0, 2))
    return Planted(bench, *given, true, roles=(("M0", "backup", "L0.H0"),))


PLAIN: dict[str, Callable[[int], Planted]] = {
    "copy": copy,
    "induction": induction,
    "iteration": iteration,
    "relay": relay,
    "gated_decoy": gated_decoy,
}
INTERACTING: dict[str, Callable[[int], Planted]] = {
    "conjunction": conjunction,
    "disjunction": disjunction,
    "nested": nested,
    "backup": backup,
    "negative_head": negative_head,
    "self_repair": self_repair,
}
FAMILIES = PLAIN | INTERACTING
