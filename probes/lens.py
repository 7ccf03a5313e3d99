"""Logit lens: what the residual stream at each depth and position would answer if the model ended there."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from interp.decoder import Decoder, affine, attend, normed, qkv

DRAWS = 1000


def depth_names(decoder: Decoder) -> tuple[str, ...]:
    """The embedding, the stream after each attention that an MLP follows, and after each block."""
    names = ["embed"]
    for number, layer in enumerate(decoder.layers):
        names += [f"L{number} attention"] * (layer.mlp is not None and not layer.parallel) + [f"L{number}"]
    return tuple(names)


@torch.no_grad()
def residuals(decoder: Decoder, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "depth batch pos d_model"]:
    """The residual stream at every depth of `depth_names`."""
    x = decoder.embed(tokens)
    found = [x]
    for layer in decoder.layers:
        y = normed(layer.ln1, x)
        z, _ = attend(layer.attn, *qkv(layer, y))
        mid = (y if layer.adds_to_normed else x) + affine(z.flatten(-2), layer.attn.W_O.flatten(0, 1), layer.attn.b_O)
        if layer.mlp is not None and not layer.parallel:
            found.append(mid)
        x = mid if layer.mlp is None else mid + layer.mlp(normed(layer.ln2, x if layer.parallel else mid))
        found.append(x)
    return torch.stack(found)


@torch.no_grad()
def lens_logits(decoder: Decoder, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "depth batch pos d_vocab"]:
    """Final norm and unembedding of every depth; the last one gives the model's own logits.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). A direction that a later layer reads need not be
    one that the unembedding reads: a low probability is no proof that the answer is not there yet.
    """
    return decoder.logits(residuals(decoder, tokens))


@dataclass(frozen=True)
class Lens:
    """What the lens sees of the next token, over prompts.

    Attributes:
        probability: mean probability of the right next token; 1 is certain, 1 / d_vocab says nothing.
        low, high: its 95 % bootstrap interval over prompts.
        rank: mean rank of the right token; 1 is the most probable.
        first: share of prompts where it is the most probable.
        top, top_probability: the most probable token of the first prompts, [example depth pos].
        answer_probability, answer_rank: of the right token for the same prompts.
    """

    depths: tuple[str, ...]
    probability: Float[Tensor, "depth pos"]
    low: Float[Tensor, "depth pos"]
    high: Float[Tensor, "depth pos"]
    rank: Float[Tensor, "depth pos"]
    first: Float[Tensor, "depth pos"]
    top: Int[Tensor, "example depth pos"]
    top_probability: Float[Tensor, "example depth pos"]
    answer_probability: Float[Tensor, "example depth pos"]
    answer_rank: Int[Tensor, "example depth pos"]


def lens(decoder: Decoder, tokens: Int[Tensor, "batch pos"], generator: Generator, examples: int = 8) -> Lens:
    """The lens on whole sequences: position p is asked for token p + 1, so that the last column is only an answer."""
    read, answers = tokens[:, :-1], tokens[:, 1:]
    logits = lens_logits(decoder, read).double()  # [depth batch pos d_vocab]
    target = answers.expand(len(logits), -1, -1)[..., None]
    chance = logits.softmax(-1)
    of_answer = chance.gather(-1, target)[..., 0]  # [depth batch pos]
    rank = 1 + (logits > logits.gather(-1, target)).sum(-1)
    low, high = _bounds(of_answer, generator)
    best = chance[:, :examples].max(-1)
    return Lens(
        depths=depth_names(decoder),
        probability=of_answer.mean(1),
        low=low,
        high=high,
        rank=rank.double().mean(1),
        first=(rank == 1).double().mean(1),
        top=best.indices.transpose(0, 1),
        top_probability=best.values.transpose(0, 1),
        answer_probability=of_answer[:, :examples].transpose(0, 1),
        answer_rank=rank[:, :examples].transpose(0, 1),
    )


def answered_from(first: Float[Tensor, "depth pos"], scored: Bool[Tensor, "pos"], share: float = 0.9) -> int | None:
    """The first depth from which on the right token stays the most probable for `share` of the prompts, scored places.

    None where even the last depth does not reach it.
    """
    reached = (first[:, scored].mean(1) >= share).tolist()
    if not reached[-1]:
        return None
    return len(reached) - next((i for i, good in enumerate(reversed(reached)) if not good), len(reached))


def _bounds(values: Float[Tensor, "depth batch pos"], generator: Generator) -> tuple[Tensor, Tensor]:
    """2.5 % and 97.5 % quantiles of the mean over resampled prompts; the same draws for every depth and position."""
    n = values.shape[1]
    rows = torch.randint(n, (DRAWS, n), generator=generator)
    weights = torch.zeros(DRAWS, n, dtype=values.dtype)
    weights.scatter_add_(1, rows, torch.full(rows.shape, 1 / n, dtype=values.dtype))
    means = torch.einsum("rb,dbp->rdp", weights, values.cpu())
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype), dim=0)
    return low, high
