"""The live edges of a large circuit as one text: arrays, compressed, so that a file of millions stays small."""

import base64
import binascii
import math
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph import edge_graph
from interp.arrays import decode_arrays, encode_arrays
from interp.errors import StoreError, UsageError

if TYPE_CHECKING:
    from circuits.problem import Problem

MOST_LISTED = 20_000  # live edges that a file lists one by one; more are packed
MOST_EDGES = 7_000_000  # live edges that a file has room for, however little they compress
MOST_ENTRIES = 500_000_000  # of the mask of a circuit, in memory
BYTES_EACH, HEADERS = 4 + 4 + 4 + 1, 1 << 16  # gap, score, frequency, kept


class Edges(NamedTuple):
    """What a packed text holds; `frequency` is None where no searches were rerun."""

    live: Bool[Tensor, "sender receiver *place"]
    kept: Bool[Tensor, "sender receiver *place"]
    scores: Float[Tensor, "sender receiver *place"]
    frequency: Float[Tensor, "sender receiver *place"] | None


def packed(edges: Edges) -> str:
    """Base64 of compressed .npz bytes; equal edges give equal text.

    `gap` counts from one live entry of the flattened mask to the next, `kept` is one bit and `score`, `frequency` are
    float32 for each of them.

    Raises:
        StoreError: for scores that are not finite.
    """
    live = edges.live.flatten()
    place = live.nonzero()[:, 0].cpu()
    values = {"score": edges.scores, "frequency": edges.frequency}
    arrays = {"gap": np.diff(place.numpy(), prepend=0).astype(np.uint32)}
    arrays["kept"] = np.packbits(edges.kept.flatten()[live].cpu().numpy())
    for name, value in values.items():
        if value is not None:
            arrays[name] = value.flatten()[live].detach().cpu().numpy().astype(np.float32)
            if not np.isfinite(arrays[name]).all():
                raise StoreError(f"{name} of a circuit: not every value is finite, so it cannot be written")
    return base64.b64encode(zlib.compress(encode_arrays(arrays, "circuit"), 6)).decode("ascii")


def unpacked(text: str, size: tuple[int, ...], n_live: int, where: str) -> Edges:
    """The edges of a packed text.

    Args:
        size: of the mask.
        n_live: what the file says beside it; nothing larger is unpacked.

    Raises:
        StoreError: for anything that is not such a text, or does not fit the mask.
    """
    if not 0 <= n_live <= MOST_EDGES:
        raise StoreError(f"{where}: n_live {n_live}: expected 0 to {MOST_EDGES}")
    room = n_live * BYTES_EACH + HEADERS
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text, validate=True), room)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise StoreError(f"{where}: packed: not readable ({str(error)[:80]}); the file is damaged") from None
    if not unzip.eof:
        raise StoreError(f"{where}: packed: holds more than n_live {n_live} edges; the file is damaged")
    arrays = decode_arrays(data, f"{where}: packed")
    place = _places(arrays, size, n_live, where)
    live = torch.zeros(math.prod(size), dtype=torch.bool)
    live[place] = True
    kept = torch.zeros_like(live)
    kept[place] = torch.from_numpy(np.unpackbits(arrays["kept"], count=n_live).astype(bool))
    values = {name: torch.zeros(len(live)) for name in ("score", "frequency") if name in arrays}
    for name, value in values.items():
        value[place] = torch.from_numpy(arrays[name])
    frequency = values["frequency"].view(size) if "frequency" in values else None
    return Edges(live.view(size), kept.view(size), values["score"].view(size), frequency)


def _places(arrays: dict[str, np.ndarray], size: tuple[int, ...], n_live: int, where: str) -> Tensor:
    """Live entries of the flattened mask, once every array is what it should be."""
    kinds = {"gap": (np.uint32, n_live), "kept": (np.uint8, -(-n_live // 8))}
    kinds |= {name: (np.float32, n_live) for name in ("score", "frequency") if name in arrays or name == "score"}
    for name, (kind, count) in kinds.items():
        found = arrays.get(name)
        if found is None or found.dtype != kind or found.shape != (count,):
            raise StoreError(f"{where}: packed: {name}: expected {count} of {np.dtype(kind).name}; the file is damaged")
        if kind is np.float32 and not np.isfinite(found).all():
            raise StoreError(f"{where}: packed: {name}: a value is not finite; the file is damaged")
    if arrays.keys() - kinds.keys():
        raise StoreError(f"{where}: packed: unknown arrays; a newer version may read them")
    place = np.cumsum(arrays["gap"], dtype=np.int64)
    if n_live and (int(place[-1]) >= math.prod(size) or not (arrays["gap"][1:] > 0).all()):
        raise StoreError(f"{where}: packed: edges outside the mask of {list(size)}; the file is damaged")
    return torch.from_numpy(place)


def require_storable(problem: "Problem") -> None:
    """Refuse a search before it begins where its result could not be stored or read back.

    Raises:
        UsageError: saying how many edges there are, and what would make them fewer.
    """
    graph, n_pos = edge_graph(problem.decoder), problem.pairs.clean.shape[1]
    entries = len(graph.senders) * len(graph.receivers) * (n_pos**2 if problem.by_position else 1)
    n_live = int(problem.live.sum()) if entries <= MOST_ENTRIES else None
    if n_live is not None and n_live <= MOST_EDGES:
        return
    found = f"{entries:,} entries, at most {MOST_ENTRIES:,}" if n_live is None else f"{n_live:,} live edges, at most"
    most = "" if n_live is None else f" {MOST_EDGES:,}"
    fewer = "leave --positions out, or give shorter prompts" if problem.by_position else "it has too many heads"
    raise UsageError(f"the circuit could not be stored: {found}{most}; {fewer}")
