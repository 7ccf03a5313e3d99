"""How the work is cut into chunks that fit a budget, with what it will cost, before anything runs."""

import functools
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.decoder import Decoder

CACHE_ROWS = 8192  # rows of one chunk on a CPU: more fall out of the cache and run slower
LARGEST_ROWS = 1 << 17
OVERHEAD = 60e6  # floating-point operations that a CPU thread could do in the time that one layer's launches take
ROWS_PER_READING = 12  # rows that could be multiplied by a weight in the time that reading it from memory takes


@dataclass(frozen=True)
class Chunk:
    """Patches that run together."""

    prompts: tuple[int, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    components: tuple[int, int]  # first, and one past the last


@dataclass(frozen=True)
class EdgeChunk:
    """Edges that run together for all prompts: indices of their ends in the graph.

    Attributes:
        positions: where senders are patched; where edges are pooled, at all of these at once.
        senders: whose edges these are; each is wanted by some of the receivers.
    """

    positions: tuple[int, ...]
    receivers: tuple[int, ...]
    senders: tuple[int, ...]


@dataclass(frozen=True)
class SetChunk:
    """Sets of patches that run together for all prompts, by their numbers; `start` is their first position."""

    sets: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Plan:
    """What a call will do: chunks, the most rows at once, and the predicted cost.

    Attributes:
        patches: patches that will be run, counting each prompt.
        flops: 2 per multiply-add of the weight products of all branches and both base runs.
        bytes: memory of the largest chunk and of the recorded runs.
        naive_flops: the same patches by one full forward each.
        seconds: processor time at the speed of the decoder's own products on this machine; None where not asked for.
        branches: edges (one for each place) or sets that are carried, each for all prompts together; None for single
            patches.
    """

    chunks: tuple[Chunk, ...] | tuple[EdgeChunk, ...] | tuple[SetChunk, ...]
    patches: int
    rows: int
    flops: int
    bytes: int
    naive_flops: int
    budget: int
    seconds: float | None = None
    branches: int | None = None

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f", {in_words(self.seconds)}"
        return (
            f"{self.patches:,} patch{'es' * (self.patches != 1)} in {len(self.chunks)} "
            f"chunk{'s' * (len(self.chunks) != 1)} of at most {self.rows:,} rows: "
            f"{self.flops / 1e9:,.2f} GFLOP ({self.naive_flops / max(1, self.flops):,.0f} times fewer than one forward "
            f"per patch), {self.bytes / 2**20:,.0f} MiB with the recorded runs; chunks may take "
            f"{self.budget / 2**20:,.0f} MiB" + seconds
        )


def in_words(seconds: float) -> str:
    """A predicted time, no more exact than it is."""
    if seconds < 0.01:
        return "less than 0.01 s"
    return f"about {seconds:{',.0f' if seconds >= 10 else '.2g'}} s"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_of_system(int(time.monotonic()))


@functools.lru_cache(maxsize=1)
def _free_of_system(second: int) -> int:
    """Bytes that programs can have, looked up once a second: many short calls may come in it."""
    known = Path("/proc/meminfo")
    for line in known.read_text(encoding="ascii").splitlines()[:8] if known.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True)
class Room:
    """Memory that a call may use.

    Attributes:
        budget: bytes that its chunks may take.
        per_row: bytes of one row of one branch of one prompt.
        rows: rows that a chunk may have, of all branches and prompts together; fewer on a CPU than fit its memory.
    """

    budget: int
    per_row: int
    rows: int

    @classmethod
    def of(cls, decoder: Decoder, final: Tensor, max_bytes: int | None) -> "Room":
        """The room of a call whose recorded runs end in a tensor like `final`."""
        budget = free_memory(final.device) // 4 if max_bytes is None else max_bytes
        per_row = row_bytes(decoder, final.element_size())
        most = CACHE_ROWS if final.device.type == "cpu" else LARGEST_ROWS
        return cls(budget, per_row, max(1, min(most, budget // per_row)))


def recorded_bytes(final: Tensor, n_runs: int, n_layers: int) -> int:
    """Memory of recorded runs that end in a tensor like `final`."""
    return n_runs * final.numel() * final.element_size() * (14 + 3 * 4) * n_layers


def product_speed(decoder: Decoder, rows: int) -> float:
    """Floating-point operations per second of a block's largest product, as timed now; the best of five."""
    layer = decoder.layers[0]
    weight = layer.attn.W_O.flatten(0, 1) if layer.mlp is None else layer.mlp.W_in
    x, best = weight.new_ones(rows, weight.shape[0]), math.inf
    for _ in range(5):
        started = time.process_time()
        x @ weight
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        best = min(best, max(time.process_time() - started, 1e-6))
    return 2 * rows * weight.numel() / best


def row_bytes(decoder: Decoder, width: int) -> int:
    """Bytes that one row of one branch needs at the peak of a block: stream, heads, MLP and keys."""
    attn, mlp = decoder.layers[0].attn, decoder.layers[0].mlp
    heads = attn.W_Q.shape[0] * attn.W_Q.shape[2]
    d_mlp = 0 if mlp is None else mlp.W_in.shape[1] * (2 if mlp.W_gate is None else 3)
    return width * (6 * decoder.d_model + 8 * heads + d_mlp)


def forward_flops(decoder: Decoder, n_pos: int, logits: bool = True, last_rows: int | None = None) -> int:
    """Work of one full forward of one prompt, 2 per multiply-add.

    Args:
        last_rows: rows of the last block that are wanted; the others give keys and values only.
    """
    total = 2 * decoder.W_U.numel() * n_pos if logits else 0
    for number, layer in enumerate(decoder.layers):
        rows = n_pos if last_rows is None or number < len(decoder.layers) - 1 else last_rows
        keys = 2 * (layer.attn.W_K.numel() + layer.attn.W_V.numel())
        total += keys * n_pos + (layer_row_flops(layer) - keys) * rows
        total += 4 * n_pos * rows * layer.attn.W_Q.shape[0] * layer.attn.W_Q.shape[2]
    return total


def layer_row_flops(layer) -> int:
    """Weight products of one row in one block."""
    weights = [layer.attn.W_Q, layer.attn.W_K, layer.attn.W_V, layer.attn.W_O]
    if layer.mlp is not None:
        weights += [w for w in (layer.mlp.W_in, layer.mlp.W_gate, layer.mlp.W_out) if w is not None]
    return 2 * sum(w.numel() for w in weights)


def positions_together(decoder: Decoder, carried: int, device: torch.device) -> int:
    """How many positions a chunk should have for the least work per position.

    All branches of a chunk carry the rows from its first position on: with c positions, c (c - 1) / 2 rows too many for
    each of the `carried` row-layers per position of a suffix. Against that stands what each chunk costs by itself, in
    every layer: some OVERHEAD, and the reading of all weights from memory.
    """
    if device.type != "cpu" or not carried:
        return LARGEST_ROWS
    alone = sum(OVERHEAD / layer_row_flops(layer) + ROWS_PER_READING for layer in decoder.layers)
    return max(1, round(math.sqrt(2 * alone / carried)))


def chunks_for(
    *,
    active: Tensor,
    layers: tuple[int, ...],
    n_components: int,
    positions: tuple[int, ...],
    stop: int,
    long_layers: int,
    out_rows: int,
    max_rows: int,
    most_positions: int,
) -> list[Chunk]:
    """Cut prompts x positions x components so that no chunk has more than `max_rows` rows at once.

    Args:
        most_positions: positions of one chunk, of which all but the first carry rows before their own.
        active: [prompt, position of the list], whether anything there can have an effect.
        stop: one past the last position that the metric needs.
        long_layers: how many of the layers have branches that live on as whole suffixes; the others have `out_rows`.
    """
    chunks: list[Chunk] = []
    index = 0
    while index < len(positions):
        suffix = max(1, stop - positions[index])
        per_component = long_layers * suffix + (len(layers) - long_layers) * min(suffix, out_rows)
        per_position = n_components * per_component
        prompts = active[:, index].nonzero()[:, 0].tolist()
        if per_position > max_rows:
            size = max(1, max_rows // per_component)
            for first in range(0, n_components, size):
                part = (first, min(n_components, first + size))
                chunks += [Chunk((prompt,), (positions[index],), layers, part) for prompt in prompts]
            index += 1
            continue
        most = min(most_positions, len(positions) - index)
        count = max(1, min(max_rows // (per_position * max(1, len(prompts))), most))
        while count > 1 and bool((active[:, index : index + count] != active[:, index : index + 1]).any()):
            count -= 1
        size = max(1, max_rows // (per_position * count))
        for first in range(0, len(prompts), size):
            group = tuple(prompts[first : first + size])
            chunks.append(Chunk(group, tuple(positions[index : index + count]), layers, (0, n_components)))
        index += count
    return chunks
