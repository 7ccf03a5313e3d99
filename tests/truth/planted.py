"""Iteration circuits with hand-set weights in our Transformer: every feature is one direction of the residual stream.

Directions: `tok` and `pos` (embedding), `eoi` (place of EoI, written by the clock head), `key` (which input to read,
looked up from pos and eoi by the clock layer's MLP), `val` (the input token, written by the reading head), `out` (the
next token, looked up from tok and val by the reading layer's MLP). An MLP unit is a lookup: it is 1 when all of its
features are on. With a norm the number of features that are on at state positions is known, so its scale is undone in
the weights; the basis is then orthogonal to the all-ones direction, which makes LayerNorm and RMSNorm agree.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp.config import DataConfig, ModelConfig
from interp.model import Transformer
from interp.rng import generator
from interp.tasks._iteration import SPECIALS
from interp.tasks._load import build_task
from interp.tasks.base import Task

MAX_LENGTH = 9
LENGTHS = (2, *range(4, MAX_LENGTH + 1))  # the detector counts (length, step) cells from 4 up and needs 35 of them
TASKS = {"binary_copy": {}, "parity": {}, "polynomial": {"modulus": 5}}
SHARP = 20.0  # attention logit of a planted target
BOS, EOI, EOS = range(len(SPECIALS))
Head = tuple[int, int]
Sequences = dict[int, Int[Tensor, "sequence pos"]]


def planted_task(name: str, **params: object) -> Task:
    """A small task: lengths up to 9, modulus 5 for the polynomial."""
    return build_task(name, {"max_length": MAX_LENGTH, **TASKS[name], **params})


def held_out(task: Task, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Sequences:
    """Test sequences of some lengths."""
    test = task.split(seed, DataConfig(per_length=128)).test
    return {length: test[length] for length in lengths}


@dataclass(frozen=True)
class Shape:
    """What the planted models of one null share."""

    n_layers: int = 2
    n_heads: int = 1
    norm: str = "none"
    d_model: int = 96
    d_head: int = 12
    d_mlp: int = 64

    def config(self, task: Task) -> ModelConfig:
        """The model configuration for a task."""
        return ModelConfig(
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.d_model,
            d_head=self.d_head,
            d_mlp=self.d_mlp,
            d_vocab=len(task.vocabulary),
            n_ctx=task.n_ctx,
            norm=self.norm,
            activation="relu",
            bias=True,
        )


class Planter:
    """A Transformer with weak random weights, into which heads and lookups are written feature by feature.

    Args:
        distraction: size of the random weights of everything that is not planted, in units of 1/sqrt(d_model).
        extra: further features, name to count.
    """

    def __init__(
        self, task: Task, shape: Shape, seed: int, *, distraction: float = 0.3, extra: dict[str, int] | None = None
    ):
        self.task, self.shape, self.cfg = task, shape, shape.config(task)
        self.stream = generator(seed, "planted")
        self.model = Transformer(self.cfg, seed=seed).eval()
        n_vocab, n_ctx = self.cfg.d_vocab, self.cfg.n_ctx
        sizes = {"tok": n_vocab, "pos": n_ctx, "val": n_vocab, "out": n_vocab}
        sizes |= {"eoi": MAX_LENGTH + 2, "key": MAX_LENGTH + 2}  # indexed by position; EoI stands at 2..max_length+1
        self.features = self._basis(sizes | (extra or {}))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name.rsplit(".", 1)[1].startswith("W_"):
                    parameter.normal_(0.0, distraction * self.unit(4), generator=self.stream)
            self.model.embed.W_E.copy_(self.features["tok"])
            self.model.pos_embed.W_pos.copy_(self.features["pos"])
            self.model.unembed.W_U.copy_(10 * self.scale(6) * self.features["out"].T)

    def _basis(self, sizes: dict[str, int]) -> dict[str, Float[Tensor, "feature d_model"]]:
        """Orthonormal rows, randomly rotated, all orthogonal to the all-ones direction."""
        d_model, total = self.shape.d_model, sum(sizes.values())
        if total >= d_model:
            raise ValueError(f"{total} features need d_model > {total}, got {d_model}")
        columns = torch.randn(d_model, total + 1, generator=self.stream, dtype=torch.float64)
        columns[:, 0] = 1
        rows = torch.linalg.qr(columns).Q[:, 1:].T.float()
        return dict(zip(sizes, rows.split(list(sizes.values())), strict=True))

    def scale(self, active: int) -> float:
        """What a unit feature is divided by in the norm, where `active` of them are on."""
        return math.sqrt(active / self.shape.d_model) if self.cfg.norm != "none" else 1.0

    def unit(self, active: int) -> float:
        """Standard deviation at which random weights act alike with and without a norm."""
        return self.scale(active) / math.sqrt(self.shape.d_model)

    def always(self) -> Float[Tensor, "1 d_model"]:
        """A direction on which every position has a 1."""
        return self.features["pos"].sum(0, keepdim=True)

    @torch.no_grad()
    def look(self, head: Head, query: Tensor, key: Tensor, *, active: tuple[int, int] = (2, 2)) -> None:
        """Attention logits SHARP * sum over rows r of (query_r . x_q) (key_r . x_k).

        Args:
            active: features that are on at queries and keys, for the norm.
        """
        attn, rank = self.model.blocks[head[0]].attn, len(query)
        attn.W_Q[head[1]] = 0
        attn.W_K[head[1]] = 0
        gain = SHARP * math.sqrt(self.shape.d_head) * self.scale(active[0]) * self.scale(active[1])
        attn.W_Q[head[1], :, :rank] = gain * query.T
        attn.W_K[head[1], :, :rank] = key.T

    @torch.no_grad()
    def move(self, head: Head, read: Tensor, write: Tensor, *, active: int = 2) -> None:
        """The head adds write_r wherever its key has read_r."""
        attn, rank = self.model.blocks[head[0]].attn, len(read)
        attn.W_V[head[1]] = 0
        attn.W_O[head[1]] = 0
        attn.W_V[head[1], :, :rank] = self.scale(active) * read.T
        attn.W_O[head[1], :rank] = write

    @torch.no_grad()
    def lookup(self, layer: int, entries: list[tuple[list[Tensor], Tensor]], *, active: int, start: int = 0) -> None:
        """MLP units from `start` on, each 2 relu(sum of its features - n + 1/2), that add their output direction."""
        mlp = self.model.blocks[layer].mlp
        for unit, (needed, output) in enumerate(entries, start):
            mlp.W_in[:, unit] = 2 * self.scale(active) * torch.stack(needed).sum(0)
            mlp.b_in[unit] = 1 - 2 * len(needed)
            mlp.W_out[unit] = output

    @torch.no_grad()
    def noise(self, level: float) -> None:
        """Gaussian noise on every matrix."""
        for name, parameter in self.model.named_parameters():
            if name.rsplit(".", 1)[1].startswith("W_"):
                own = self.unit(4) if name.endswith(("W_Q", "W_K", "W_V", "W_in")) else 1 / math.sqrt(self.cfg.d_model)
                parameter += level * own * torch.randn(parameter.shape, generator=self.stream)

    def clock(self, head: Head) -> None:
        """The head attends to EoI and writes its place."""
        f = self.features
        self.look(head, self.always(), f["tok"][EOI : EOI + 1])
        self.move(head, f["pos"][2 : MAX_LENGTH + 2], f["eoi"][2:])

    def keys(self, layer: int, *, active: int = 3) -> int:
        """The MLP looks up which key to read from the query's place and EoI's: x_{t+1}, and EoI itself at t = L.

        Returns:
            How many units that took.
        """
        f, entries = self.features, []
        for length in self.task.lengths:
            layout = self.task.layout(length)
            for t, query in enumerate((*layout.queries, layout.end)):
                key = layout.inputs[self.task.input_index(length, t)] if t < length else layout.eoi
                entries.append(([f["pos"][query], f["eoi"][layout.eoi]], f["key"][key]))
        self.lookup(layer, entries, active=active)
        return len(entries)

    def read(self, head: Head, *, keys: range = range(1, MAX_LENGTH + 2), shift: int = 0) -> None:
        """The head attends to the key that was looked up (`shift` further) and writes its token, for some keys."""
        f, chosen = self.features, list(keys)
        self.look(head, f["key"][chosen], f["pos"][[key + shift for key in chosen]], active=(4, 2))
        self.move(head, f["tok"][EOI:], f["val"][EOI:])

    def transitions(self, source: list[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
        """Lookups s_{t+1} = f(s_t, x), s_1 = first(x), and EoS where EoI was read, from a direction per token read."""
        f, values = self.features, range(len(SPECIALS), self.cfg.d_vocab)
        entries = [([f["tok"][s], source[EOI]], f["out"][EOS]) for s in values]
        for x in values:
            first = int(self.task.oracle(torch.tensor(x), torch.tensor(x), 0))
            entries.append(([f["tok"][EOI], source[x]], f["out"][first]))
            for s in values:
                following = int(self.task.oracle(torch.tensor(s), torch.tensor(x), 1))
                entries.append(([f["tok"][s], source[x]], f["out"][following]))
        return entries

    def update(self, layer: int, *, active: int = 5) -> None:
        """The MLP looks up the next state."""
        self.lookup(layer, self.transitions(list(self.features["val"])), active=active)


@dataclass(frozen=True)
class Planted:
    """A planted model with the heads it was given."""

    model: Transformer
    task: Task
    shape: Shape
    clock: Head
    reading: Head
    level: float


def textbook(task: Task, shape: Shape, seed: int, *, level: float = 0.0) -> Planted:
    """The iteration circuit at a place drawn from the seed: any head of any layer, the clock earlier."""
    planter = Planter(task, shape, seed)
    clock, reading = placement(shape, planter.stream)
    planter.clock(clock)
    planter.keys(clock[0])
    planter.read(reading)
    planter.update(reading[0])
    planter.noise(level)
    return Planted(planter.model, task, shape, clock, reading, level)


def placement(shape: Shape, stream: Generator) -> tuple[Head, Head]:
    """A clock head and a reading head in a later layer, uniformly over layer pairs and heads."""
    layers = torch.randperm(shape.n_layers, generator=stream)[:2].sort().values.tolist()
    heads = torch.randint(shape.n_heads, (2,), generator=stream).tolist()
    return (layers[0], heads[0]), (layers[1], heads[1])
