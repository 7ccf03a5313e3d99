"""Gradient mask pruning: a gate per edge, trained so that few open gates keep what the model does."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.engine.plan import forward_flops, product_speed
from circuits.masked import CHUNK_BYTES, MaskedRuns
from circuits.metrics import KL
from circuits.search.base import Ranking, Search
from interp.rng import generator

PRICES = (0.03, 0.1, 0.3, 1.0)  # of all live edges together, in losses of the empty circuit
WARMTH = 3.0  # logit of the gate of the best and worst edge at the start
RATE = 0.2
STRETCH = (-0.1, 1.1)
SHARPNESS = 1.5


class Masks:
    """Hard-concrete gates on all live edges, trained together on the circuit's own runs.

    Loss of a price: d(circuit) / d(empty circuit) + price * expected open share, where d is the mean over KL(model ||
    circuit) and |metric of the model - of the circuit|, each in units of the empty circuit's. The gates of
    several prices are trained at once; an edge's score is its mean open probability over them, so that edges
    that stay open at high prices come first. They start from the scores of another method where some are given.
    Source: Louizos, Welling and Kingma 2018 (hard concrete); Cao, Sanh and Rush 2021 (subnetwork probing); Bhaskar et
    al. 2024, "Finding Transformer Circuits with Edge Pruning".
    """

    by_position = True
    needs_corrupted = False

    def rank(self, search: Search) -> Ranking:
        """Score every edge on the prompts of the part "score"."""
        problem = search.problem
        runs, live = search.part.runs, problem.live
        prices = self.prices(search)
        with torch.inference_mode(False), torch.enable_grad():
            gates = trained(runs, live, start(search), prices, search)
        score = torch.zeros_like(live, dtype=gates.dtype)
        score[live] = gates.mean(0)
        method = f"gradient mask pruning ({search.steps} steps, {len(prices)} prices)"
        signed = score if search.warm is None else score * torch.where(search.warm < 0, -1.0, 1.0)
        return Ranking(signed, method, "mean open probability of the edge's gate", {"gates": gates})

    def circuits_at_once(self, search: Search) -> int:
        """Circuits whose gradients fit the memory budget: about ten tensors are kept for each reader's input."""
        runs = search.part.runs
        return runs.max_bytes // max(1, 10 * runs.bytes_each(search.problem.by_position))

    def prices(self, search: Search) -> tuple[float, ...]:
        """All prices; where gradients are large two from the middle or one, since each costs its own runs."""
        fit = self.circuits_at_once(search)
        return PRICES if fit >= len(PRICES) else PRICES[1:3] if fit > 1 else PRICES[1:2]

    def predicted_seconds(self, search: Search) -> float:
        """Six forward passes for each step and price, more where queries read keys anew."""
        problem, pairs = search.problem, search.part.pairs
        n_pos = pairs.clean.shape[1]
        work = forward_flops(problem.decoder, n_pos) * len(pairs) * (n_pos / 2 if problem.by_position else 1)
        return 6 * search.steps * len(self.prices(search)) * work / product_speed(problem.decoder, 1024)


def start(search: Search) -> Tensor:
    """Logits of the gates of live edges: by the rank of the given scores, else all alike and rather open."""
    live = search.problem.live
    if search.warm is None:
        return torch.full((int(live.sum()),), 1.0, dtype=search.part.runs.writes[0].dtype)
    order = search.warm[live].abs().argsort().argsort().to(search.part.runs.writes[0])
    return WARMTH * (2 * order / max(1, len(order) - 1) - 1) + 1.0


def trained(runs: MaskedRuns, live: Tensor, logits: Tensor, prices: tuple[float, ...], search: Search) -> Tensor:
    """Open probability of each gate at each price, [price edge]."""
    theta = logits.expand(len(prices), -1).clone()
    moments = torch.zeros(2, *theta.shape).to(theta)
    price, stream = theta.new_tensor(prices), generator(search.seed, "masks")
    empty = distances(runs, runs.run(theta.new_zeros(1, *live.shape)))[:, 0].detach()
    together = max(1, CHUNK_BYTES // runs.bytes_each(search.problem.by_position))  # more are not faster, only larger
    for step in range(search.steps):
        noise = torch.rand(theta.shape, generator=stream).to(theta).clamp(1e-6, 1 - 1e-6)
        pieces = zip(*(x.split(together) for x in (theta, noise.logit(), price)), strict=True)
        slope = torch.cat([gradient(runs, live, some, empty, *others) for some, *others in pieces])
        moments, change = adam(moments, slope, step)
        theta = theta - RATE * change
        search.tell("masks", step + 1, search.steps)
    return open_probability(theta)


def gradient(
    runs: MaskedRuns,
    live: Tensor,
    theta: Float[Tensor, "price edge"],
    empty: Float[Tensor, "two"],
    noise: Float[Tensor, "price edge"],
    price: Float[Tensor, "price"],
) -> Float[Tensor, "price edge"]:
    """Gradient of the loss at each price for gates drawn with the noise's logits."""
    theta = theta.detach().requires_grad_()
    gate = torch.sigmoid((theta + noise) * SHARPNESS)
    gate = (gate * (STRETCH[1] - STRETCH[0]) + STRETCH[0]).clamp(0, 1)
    places = live.nonzero(as_tuple=True)
    kept = theta.new_zeros(len(price), *live.shape).index_put(
        (torch.arange(len(price))[:, None], *(axis[None] for axis in places)), gate
    )
    loss = (distances(runs, runs.run(kept)) / empty[:, None]).mean(0) + price * open_probability(theta).mean(1)
    return torch.autograd.grad(loss.sum(), theta)[0]


def adam(
    moments: Float[Tensor, "two price edge"], slope: Float[Tensor, "price edge"], step: int
) -> tuple[Float[Tensor, "two price edge"], Float[Tensor, "price edge"]]:
    """Next moments and step direction of Adam (Kingma and Ba 2014); torch's own takes two seconds to load."""
    decay = moments.new_tensor((0.9, 0.999))[:, None, None]
    moments = decay * moments + (1 - decay) * torch.stack((slope, slope**2))
    first, second = moments / (1 - decay ** (step + 1))
    return moments, first / (second.sqrt() + 1e-8)


def distances(runs: MaskedRuns, logits: Float[Tensor, "circuit row d_vocab"]) -> Float[Tensor, "two circuit"]:
    """KL(model || circuit) and |metric of the model - of the circuit|, means over prompts."""
    rows, base, kl = runs.rows, runs.base_logits, KL(runs.metric.positions)
    divergence = [runs.mean(rows.mean(kl.of_logits(one, rows, base))) for one in logits]
    gap = [runs.mean((rows.mean(runs.metric.of_logits(one, rows, base)) - runs.clean).abs()) for one in logits]
    return torch.stack((torch.stack(divergence), torch.stack(gap)))


def open_probability(theta: Tensor) -> Tensor:
    """Probability that a gate is not 0."""
    return torch.sigmoid(theta * SHARPNESS - math.log(-STRETCH[0] / STRETCH[1]))


METHOD = Masks()
