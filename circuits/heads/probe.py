"""Prompts that head detectors read: repeated random tokens, the same without the repeat, or prompts of a behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from interp.decoder import Decoder
from interp.errors import DetectorError, UsageError
from interp.pairs.base import Pairs

LEAST_BLOCK = 3
MOST_TOKENS = 256  # different token ids in random prompts, so that scans need a small part of a large vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """Token ids that random prompts may use.

    Args:
        usable: ids to draw from; None for all of the model's.
        special: ids to leave out, such as end of text and padding.
        bos: id that is put first; None for none. It is never drawn.
    """

    usable: Sequence[int] | None = None
    special: Sequence[int] = ()
    bos: int | None = None

    def ids(self, d_vocab: int) -> list[int]:
        """Sorted ids that may be drawn.

        Raises:
            UsageError: for an id that the model does not have.
        """
        wanted = range(d_vocab) if self.usable is None else self.usable
        left_out = {*self.special, *([] if self.bos is None else [self.bos])}
        for token in (*wanted, *left_out):
            if not 0 <= token < d_vocab:
                raise UsageError(f"token id {token} is outside the model's vocabulary of {d_vocab}")
        return sorted(set(wanted) - left_out)


@dataclass(frozen=True)
class Probe:
    """Sequences that a scan runs on; all of it stays on the CPU and is moved to the model where it is used.

    Attributes:
        tokens: the sequences of `clean`, then those of `broken`.
        start: first place of the first block; 1 after a BOS token.
        block: length of a block; the sequences are two of them. 0 for prompts of a behaviour, which have no blocks.
        queries: places whose attention is read for copying.
        unit: which independent sequence each prompt belongs to; the bootstrap resamples these.
        real: true where a token is no padding; padding is at the right. None: no padding.
        name: what the sequences are, in words.
    """

    tokens: Int[Tensor, "row pos"]
    n: int
    start: int
    block: int
    queries: Int[Tensor, "prompt query"]
    unit: Int[Tensor, "prompt"]
    real: Bool[Tensor, "prompt pos"] | None
    name: str

    @property
    def clean(self) -> Int[Tensor, "prompt pos"]:
        """Prompts with the repeat, or of the behaviour."""
        return self.tokens[: self.n]

    @property
    def broken(self) -> Int[Tensor, "prompt pos"]:
        """The same second blocks after a first block that shares no token with them."""
        return self.tokens[self.n :]

    @property
    def second(self) -> Int[Tensor, "place"]:
        """Places of the second block."""
        return torch.arange(self.start + self.block, self.start + 2 * self.block)

    @property
    def n_units(self) -> int:
        """Independent sequences."""
        return len(self.unit.unique())

    def by_unit(self, values: Float[Tensor, "prompt *rest"]) -> Float[Tensor, "unit *rest"]:
        """Means over the prompts of each unit."""
        _, index = self.unit.to(values.device).unique(return_inverse=True)
        total = values.new_zeros(self.n_units, *values.shape[1:]).index_add(0, index, values)
        count = torch.bincount(index).to(values)
        return total / count.view(-1, *[1] * (values.dim() - 1))


def repeat_probe(decoder: Decoder, vocabulary: Vocabulary, n: int, block: int | None, stream: Generator) -> Probe:
    """`n` sequences of a random block that is repeated, and the same with another first block.

    Tokens of both blocks of a sequence are drawn without replacement, so that a token of the second block occurs
    exactly once before it: in `clean` one block earlier, in `broken` never.

    Raises:
        DetectorError: for a model whose vocabulary or context is too small.
        UsageError: for token ids that the model does not have, or a block that does not fit.
    """
    ids, start = vocabulary.ids(len(decoder.W_E)), int(vocabulary.bos is not None)
    longest = min(len(ids) // 2, (decoder.n_ctx - start) // 2)
    if longest < LEAST_BLOCK:
        raise DetectorError(
            f"{decoder.name}: {len(ids)} usable token ids and a context of {decoder.n_ctx}: two random blocks without "
            f"a common token need {2 * LEAST_BLOCK} of each"
        )
    if block is not None and not LEAST_BLOCK <= block <= longest:
        raise UsageError(f"block {block}: expected {LEAST_BLOCK} to {longest} for this model")
    block = block or min(longest, 20)
    order = torch.randperm(len(ids), generator=stream)[: max(MOST_TOKENS, 2 * block)]
    pool = torch.tensor(ids)[order]
    rows = torch.rand(n, len(pool), generator=stream).argsort(1)[:, : 2 * block]
    first, other = pool[rows].split(block, 1)
    bos = torch.full((n, start), vocabulary.bos or 0)
    tokens = torch.cat((torch.cat((bos, first, first), 1), torch.cat((bos, other, first), 1)))
    queries = torch.arange(start + block, start + 2 * block - 1).expand(n, -1)
    return Probe(tokens, n, start, block, queries, torch.arange(n), None, "a repeated block of random tokens")


def pairs_probe(pairs: Pairs) -> Probe:
    """Clean prompts of a behaviour, read where their answers are read; padding is moved to the right."""
    n_pos = pairs.clean.shape[1]
    column = (torch.arange(n_pos) + pairs.starts[:, None].cpu()) % n_pos
    real = pairs.mask.cpu().gather(1, column)
    tokens = pairs.clean.cpu().gather(1, column).where(real, pairs.clean.cpu().gather(1, column[:, :1]))
    return Probe(tokens, len(pairs), 0, 0, pairs.places.cpu(), pairs.unit.cpu(), real, "the prompts given")


def narrowed(
    decoder: Decoder, probe: Probe, ids: list[int], stream: Generator
) -> tuple[Decoder, Int[Tensor, "row pos"]]:
    """The decoder with the token ids of the probe alone (and others up to 256 in all), and the probe's tokens in them.

    Attention and the scores of heads are those of the whole model: they never read another embedding, and logits over
    these ids are logits over a random part of the vocabulary.
    """
    import dataclasses

    used = set(probe.tokens.unique().tolist())
    spare = [token for token in ids if token not in used]
    extra = torch.randperm(len(spare), generator=stream)[: max(0, MOST_TOKENS - len(used))]
    kept = torch.tensor(sorted(used | {spare[index] for index in extra.tolist()}))
    own = kept.to(decoder.W_E.device)
    bias = None if decoder.b_U is None else decoder.b_U[own]
    small = dataclasses.replace(decoder, W_E=decoder.W_E[own], W_U=decoder.W_U[:, own], b_U=bias)
    return small, torch.searchsorted(kept, probe.tokens)
