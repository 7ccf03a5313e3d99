"""Small decoders with hand-set heads of known types: each feature is one coordinate of the residual stream, no norm."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from interp.decoder import Attention, Decoder, Layer, forward

N_TOKENS, N_PLACES, N_HEADS = 12, 14, 4
SHARP = 12.0  # attention logit of a planted target
SIZES = {"tok": N_TOKENS, "pos": N_PLACES, "prev": N_TOKENS, "out": N_TOKENS}
D_MODEL, D_HEAD = sum(SIZES.values()), N_TOKENS + N_PLACES + 1
BOS = N_TOKENS - 1
FEATURES = dict(zip(SIZES, torch.eye(D_MODEL).split(list(SIZES.values())), strict=True))
TOK, POS, PREV, OUT = FEATURES.values()


class Hand:
    """A two-layer attention-only decoder with weak random heads, into which heads are written."""

    def __init__(self, seed: int = 0, distraction: float = 0.02):
        stream = torch.Generator().manual_seed(seed)

        def weak(*shape: int) -> Tensor:
            return distraction * torch.randn(shape, generator=stream)

        self.attn = [
            Attention(
                weak(N_HEADS, D_MODEL, D_HEAD),
                weak(N_HEADS, D_MODEL, D_HEAD),
                weak(N_HEADS, D_MODEL, D_HEAD),
                weak(N_HEADS, D_HEAD, D_MODEL),
                *[None] * 4,
                scale=1.0,
            )
            for _ in range(2)
        ]

    def look(
        self, layer: int, head: int, query: Float[Tensor, "row d_model"], key: Float[Tensor, "row d_model"]
    ) -> None:
        """Attention logits: the sum over rows of (query row . x_q) (key row . x_k)."""
        attn = self.attn[layer]
        attn.W_Q[head], attn.W_K[head] = 0, 0
        attn.W_Q[head, :, : len(query)] = SHARP * query.T
        attn.W_K[head, :, : len(key)] = key.T

    def move(
        self, layer: int, head: int, read: Float[Tensor, "row d_model"], write: Float[Tensor, "row d_model"]
    ) -> None:
        """The head adds a row of `write` for the row of `read` that its key has."""
        attn = self.attn[layer]
        attn.W_V[head], attn.W_O[head] = 0, 0
        attn.W_V[head, :, : len(read)] = read.T
        attn.W_O[head, : len(write)] = write

    def decoder(self) -> Decoder:
        """The decoder; logits are eight times the `out` features."""
        layers = tuple(Layer(None, attn, None, None) for attn in self.attn)
        return Decoder(TOK, POS, None, layers, None, 8 * OUT.T, None, N_PLACES, "hand-set")


def induction_pair(seed: int = 0) -> Decoder:
    """L0.H1 writes the previous token; L1.H2 looks for the current token there and predicts the token at that place."""
    hand = Hand(seed)
    hand.look(0, 1, POS[1:], POS[:-1])
    hand.move(0, 1, TOK, PREV)
    hand.look(1, 2, TOK, PREV)
    hand.move(1, 2, TOK, OUT)
    return hand.decoder()


def duplicate_head(seed: int = 0) -> Decoder:
    """L0.H3 looks at an earlier place with the current token and speaks for token 0; without one it rests on BOS."""
    hand = Hand(seed)
    everywhere = POS.sum(0, keepdim=True)
    hand.look(0, 3, torch.cat((TOK, -POS, everywhere / 2)), torch.cat((TOK, POS, TOK[BOS:])))
    hand.move(0, 3, TOK[:BOS], OUT[:1].expand(BOS, -1))
    return hand.decoder()


def copy_head(seed: int = 0) -> Decoder:
    """L1.H0 looks one place back and predicts the token there."""
    hand = Hand(seed)
    hand.look(1, 0, POS[1:], POS[:-1])
    hand.move(1, 0, TOK, OUT)
    return hand.decoder()


def fixed_offset(places: int, seed: int = 0) -> Decoder:
    """L1.H2 looks a fixed number of places back and predicts the token there, whatever the tokens are."""
    hand = Hand(seed)
    hand.look(1, 2, POS[places:], POS[:-places])
    hand.move(1, 2, TOK, OUT)
    return hand.decoder()


def without(decoder: Decoder, layer: int, head: int, matrix: str) -> Decoder:
    """The decoder with one matrix of one head set to zero."""
    attn = decoder.layers[layer].attn
    value = getattr(attn, matrix).clone()
    value[head] = 0
    changed = dataclasses.replace(decoder.layers[layer], attn=dataclasses.replace(attn, **{matrix: value}))
    layers = tuple(changed if number == layer else one for number, one in enumerate(decoder.layers))
    return dataclasses.replace(decoder, layers=layers)


def repeats_right(decoder: Decoder) -> float:
    """Share of repeated tokens that the decoder predicts, on one fixed sequence, from the second repeated token on.

    The first token has no previous one: a previous token head reads itself there.
    """
    tokens = torch.tensor([[3, 1, 4, 0, 5, 9, 2, 3, 1, 4, 0, 5, 9, 2]])
    return float((forward(decoder, tokens)[0, 8:-1].argmax(-1) == tokens[0, 9:]).float().mean())
