"""Planted models that are not the textbook circuit: some solve their task by another one, some only look like it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.model import Transformer
from interp.tasks.base import Task
from tests.truth.planted import (
    EOI,
    EOS,
    LENGTHS,
    MAX_LENGTH,
    Planter,
    Sequences,
    Shape,
    held_out,
    planted_task,
    textbook,
)

FIXED = 6
SPREAD_GAIN, GUARD = 20.0, 24.0  # the gathered input is at most SPREAD_GAIN strong, so a lookup must guard with more


@dataclass(frozen=True)
class Case:
    """One model that must not be called an iteration head; `solves` says whether it solves its task.

    `lengths` are the only ones it is made for; empty: all.
    """

    name: str
    model: Transformer
    task: Task
    shape: Shape
    solves: bool
    lengths: tuple[int, ...] = ()

    @property
    def sequences(self) -> Sequences:
        """Held-out sequences of its lengths."""
        return held_out(self.task, self.lengths or LENGTHS)


def wide(n_layers: int, n_heads: int) -> Shape:
    """Room for the features of every circuit below."""
    return Shape(n_layers, n_heads, d_model=128, d_head=32, d_mlp=160)


def any_head(planter: Planter, layer: int, taken: tuple[int, ...] = ()) -> tuple[int, int]:
    """A head of the layer that is not taken, from the planter's stream."""
    free = [head for head in range(planter.shape.n_heads) if head not in taken]
    return layer, free[int(torch.randint(len(free), (), generator=planter.stream))]


def finished(planter: Planter, name: str, *, solves: bool = True, lengths: tuple[int, ...] = ()) -> Case:
    """The case of a planted model."""
    return Case(name, planter.model, planter.task, planter.shape, solves, lengths)


def other_offset(n_heads: int, seed: int) -> Case:
    """Solves the task whose states consume the inputs `input_shift` places further on."""
    task = planted_task("polynomial", input_shift=1 + seed % 2)
    planter = _direct(task, wide(2, n_heads), seed)
    return finished(planter, "another offset")


def reversed_order(n_heads: int, seed: int) -> Case:
    """Solves the task whose states consume the inputs from last to first."""
    planter = _direct(planted_task("polynomial", order="reversed"), wide(2, n_heads), seed)
    return finished(planter, "reversed order")


def _direct(task: Task, shape: Shape, seed: int) -> Planter:
    """One clock head, one reading head."""
    planter = Planter(task, shape, seed)
    planter.clock(any_head(planter, 0))
    planter.keys(0)
    planter.read(any_head(planter, 1))
    planter.update(1)
    return planter


def split_reading(n_heads: int, seed: int) -> Case:
    """Two heads of one layer read the even and the odd keys; neither of them is the reading head."""
    planter = Planter(planted_task("polynomial"), wide(2, n_heads), seed)
    planter.clock(any_head(planter, 0))
    planter.keys(0)
    first = any_head(planter, 1)
    second = any_head(planter, 1, (first[1],))
    for head, start in ((first, 1), (second, 2)):
        other = 3 - start
        planter.read(head, keys=range(start, MAX_LENGTH + 2, 2))
        idle = planter.features["key"][other : MAX_LENGTH + 2 : 2].sum(0, keepdim=True)
        _rest_on_bos(planter, head, idle)
    planter.update(1)
    return finished(planter, "split reading")


@torch.no_grad()
def _rest_on_bos(planter: Planter, head: tuple[int, int], when: Tensor) -> None:
    """One more channel of the head: it attends to BoS, whose token it does not carry, when `when` is on."""
    attn, channel = planter.model.blocks[head[0]].attn, planter.shape.d_head - 1
    attn.W_Q[head[1], :, channel] = 20 * planter.shape.d_head**0.5 * when[0]
    attn.W_K[head[1], :, channel] = planter.features["pos"][0]


def shared_clock(n_heads: int, seed: int) -> Case:
    """Two heads of the first layer each report EoI at every other position and rest on BoS in between."""
    planter = Planter(planted_task("polynomial"), wide(2, n_heads), seed)
    first = any_head(planter, 0)
    second = any_head(planter, 0, (first[1],))
    f = planter.features
    for head, start in ((first, 0), (second, 1)):
        planter.clock(head)
        busy, idle = (f["pos"][place::2].sum(0, keepdim=True) for place in (start, 1 - start))
        planter.look(head, busy, f["tok"][EOI : EOI + 1])
        _rest_on_bos(planter, head, idle)
    planter.keys(0)
    planter.read(any_head(planter, 1))
    planter.update(1)
    return finished(planter, "shared clock")


def fixed_length(n_heads: int, seed: int) -> Case:
    """Sequences of a single length: the place of the query alone tells which input to read, and no clock exists."""
    planter = Planter(planted_task("polynomial"), wide(2, n_heads), seed)
    f, eoi = planter.features, FIXED + 1
    head = any_head(planter, 1)
    planter.look(head, f["pos"][eoi : 2 * eoi], f["pos"][1 : eoi + 1])
    planter.move(head, f["tok"][EOI:], f["val"][EOI:])
    planter.update(1)
    return finished(planter, "fixed length", lengths=(FIXED,))


def spread(n_heads: int, seed: int, *, decoy: bool = False) -> Case:
    """A head attends uniformly and carries all inputs bound to their places; the MLP picks x_{t+1} out of them.

    With `decoy`, another head of a later layer than the clock attends to x_{t+1} and writes nothing.
    """
    task = planted_task("binary_copy" if seed % 2 else "parity")
    deep = 3 if decoy and n_heads == 1 else 2
    places, tokens = range(1, MAX_LENGTH + 2), range(EOI, len(task.vocabulary))
    bound = [(token, place) for token in tokens if token != EOS for place in places]
    extra = {"bound": len(bound), "got": len(bound)}
    planter = Planter(task, wide(deep, n_heads), seed, distraction=0.1, extra=extra)
    f = planter.features
    planter.clock(any_head(planter, 0))
    used = planter.keys(0)
    pairs = [([f["tok"][v], f["pos"][k]], f["bound"][i]) for i, (v, k) in enumerate(bound)]
    planter.lookup(0, pairs, active=2, start=used)
    gather = any_head(planter, deep - 1)
    planter.look(gather, torch.zeros(1, 128), torch.zeros(1, 128))
    planter.move(gather, f["bound"], SPREAD_GAIN * f["got"])
    if decoy:
        reader = (1, 0) if deep == 3 else any_head(planter, 1, (gather[1],))
        planter.read(reader)
        _silence(planter.model, reader)
    got = {pair: f["got"][i] for i, pair in enumerate(bound)}
    _guarded_update(planter, deep - 1, got)
    return finished(planter, "spread reading with a silent textbook head" if decoy else "spread reading")


@torch.no_grad()
def _guarded_update(planter: Planter, layer: int, got: dict[tuple[int, int], Tensor]) -> None:
    """Lookups of (state, key, gathered input): two units each, so that any strength of the gathered input counts 1."""
    f, mlp, unit = planter.features, planter.model.blocks[layer].mlp, 0
    for place in range(1, MAX_LENGTH + 2):
        named: dict[int, Tensor] = {v: got[v, place] for v in range(planter.cfg.d_vocab) if (v, place) in got}
        source = [named.get(v, torch.zeros(planter.cfg.d_model)) for v in range(planter.cfg.d_vocab)]
        for (state, gathered), output in planter.transitions(source):
            at_start = bool(torch.equal(state, f["tok"][EOI]))
            if at_start != (place == 1) or (place == 1 and output is f["out"][EOS]):
                continue  # only EoI stands at t = 0, and nothing else does
            for threshold, sign in ((0.5, 1.0), (0.75, -1.0)):
                mlp.W_in[:, unit] = 4 * (GUARD * (state + f["key"][place]) + gathered)
                mlp.b_in[unit] = -4 * (2 * GUARD + threshold)
                mlp.W_out[unit] = sign * output
                unit += 1


@torch.no_grad()
def _silence(model: Transformer, head: tuple[int, int]) -> None:
    """The head's output becomes nothing; its pattern stays."""
    attn = model.blocks[head[0]].attn
    attn.W_O[head[1]] = 0
    attn.W_V[head[1]] = 0


def landmark(n_heads: int, seed: int, *, decoy: bool = False) -> Case:
    """The clock looks at s_1, marked in the first layer by a previous-token head, and never at EoI.

    With `decoy`, another head attends to EoI before the reading layer and writes nothing.
    """
    deep = 4 if decoy and n_heads == 1 else 3
    planter = Planter(planted_task("polynomial"), wide(deep, n_heads), seed, distraction=0.1, extra={"mark": 1})
    f, last = planter.features, planter.cfg.n_ctx
    previous = any_head(planter, 0)
    planter.look(previous, f["pos"][1:last], f["pos"][: last - 1])
    planter.move(previous, f["tok"][EOI : EOI + 1], f["mark"])
    if decoy:
        silent = any_head(planter, 1) if n_heads == 1 else any_head(planter, 0, (previous[1],))
        planter.clock(silent)
        _silence(planter.model, silent)
    clock = any_head(planter, deep - 2)
    planter.look(clock, planter.always(), f["mark"])
    planter.move(clock, f["pos"][3 : MAX_LENGTH + 3], f["eoi"][2:])
    used = planter.keys(deep - 2)
    planter.lookup(deep - 2, [([f["tok"][EOI]], f["key"][1])], active=2, start=used)
    planter.read(any_head(planter, deep - 1))
    planter.update(deep - 1)
    return finished(planter, "clock on s_1 with a silent textbook clock" if decoy else "clock on s_1")


def silent_reading(n_heads: int, seed: int) -> Case:
    """Right patterns, but the reading head writes nothing."""
    planted = textbook(planted_task("polynomial"), wide(2, n_heads), seed)
    _silence(planted.model, planted.reading)
    return _unsolved("silent reading head", planted.model, planted.task, planted.shape)


def silent_clock(n_heads: int, seed: int) -> Case:
    """The clock attends to EoI and is ignored: its output is nothing."""
    planted = textbook(planted_task("polynomial"), wide(2, n_heads), seed)
    _silence(planted.model, planted.clock)
    return _unsolved("silent clock head", planted.model, planted.task, planted.shape)


def wrong_offset(n_heads: int, seed: int) -> Case:
    """Reads x_{t+2} on the task that needs x_{t+1}."""
    planter = Planter(planted_task("polynomial"), wide(2, n_heads), seed)
    planter.clock(any_head(planter, 0))
    planter.keys(0)
    planter.read(any_head(planter, 1), shift=1)
    planter.update(1)
    return finished(planter, "wrong offset", solves=False)


def one_layer(n_heads: int, seed: int) -> Case:
    """Clock and reading head in the same layer, so that the reader cannot know the clock's answer (8 or 2 heads)."""
    planter = Planter(planted_task("polynomial"), wide(2, n_heads), seed)
    clock = any_head(planter, 1)
    planter.clock(clock)
    planter.keys(0)
    planter.read(any_head(planter, 1, (clock[1],)))
    planter.update(1)
    return finished(planter, "two heads in one layer", solves=False)


@torch.no_grad()
def blurred(n_heads: int, seed: int) -> Case:
    """The textbook circuit with the reading head's queries at zero: it attends everywhere."""
    planted = textbook(planted_task("polynomial"), wide(2, n_heads), seed)
    planted.model.blocks[planted.reading[0]].attn.W_Q[planted.reading[1]] = 0
    return _unsolved("spread attention", planted.model, planted.task, planted.shape)


@torch.no_grad()
def permuted_heads(n_heads: int, seed: int) -> Case:
    """What each head writes is moved to the next head; with one head, the two layers exchange their attention."""
    planted = textbook(planted_task("polynomial"), wide(2, n_heads), seed)
    attns = [block.attn for block in planted.model.blocks]
    if n_heads == 1:
        planted.model.blocks[0].attn, planted.model.blocks[1].attn = attns[1], attns[0]
        planted.model.setup()
    else:
        for attn in attns:
            attn.W_V.copy_(attn.W_V.roll(1, 0))
            attn.W_O.copy_(attn.W_O.roll(1, 0))
    return _unsolved("permuted heads", planted.model, planted.task, planted.shape)


@torch.no_grad()
def relabelled(n_heads: int, seed: int) -> Case:
    """The textbook circuit with the values of its answers permuted."""
    planted = textbook(planted_task("polynomial"), wide(2, n_heads), seed)
    values = planted.model.unembed.W_U[:, 3:]
    planted.model.unembed.W_U[:, 3:] = values.roll(1 + seed % 3, 1)
    return _unsolved("relabelled answers", planted.model, planted.task, planted.shape)


def other_task(n_heads: int, seed: int) -> Case:
    """Parity's circuit, asked for copies."""
    planted = textbook(planted_task("parity"), wide(2, n_heads), seed)
    return _unsolved("another task", planted.model, planted_task("binary_copy"), planted.shape)


def _unsolved(name: str, model: Transformer, task: Task, shape: Shape) -> Case:
    """A case that does not solve its task."""
    return Case(name, model, task, shape, False)


def untrained(n_heads: int, seed: int) -> Case:
    """Fresh weights; the seed picks one of four attention gains and one of three sizes of the other weights."""
    task = planted_task(("polynomial", "parity", "binary_copy")[seed % 3])
    shape = wide(2, n_heads)
    model = Transformer(shape.config(task), seed=seed).eval()
    gain, size = (1.0, 10.0, 30.0, 100.0)[seed % 4], (1.0, 0.3, 3.0)[seed // 4 % 3]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= gain * size if name.endswith("W_Q") else size
    return _unsolved(f"untrained, gain {gain:g}, size {size:g}", model, task, shape)


Maker = Callable[[int, int], Case]
ANY_HEADS: tuple[Maker, ...] = (
    other_offset,
    reversed_order,
    fixed_length,
    spread,
    landmark,
    lambda n_heads, seed: spread(n_heads, seed, decoy=True),
    lambda n_heads, seed: landmark(n_heads, seed, decoy=True),
)
SEVERAL_HEADS: tuple[Maker, ...] = (split_reading, shared_clock)
FAILING: tuple[Maker, ...] = (
    silent_reading,
    silent_clock,
    wrong_offset,
    blurred,
    permuted_heads,
    relabelled,
    other_task,
)
