"""Baselines in plain PyTorch: one fused forward per patch, batches of them, and batches that resume at the patch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks._patching_cases import Problem
from interp.decoder import Attention, Decoder, Layer, normed

Patches = Int[Tensor, "patch 3"]  # layer, head, position


@dataclass(frozen=True)
class Kept:
    """What a run leaves behind, by layer: stream between attention and MLP, keys, values, head outputs."""

    mid: list[Float[Tensor, "pair pos d_model"]]
    k: list[Float[Tensor, "pair kv_head pos d_head"]]
    v: list[Float[Tensor, "pair kv_head pos d_head"]]
    z: list[Float[Tensor, "pair pos head d_head"]]


class Lean:
    """A decoder with one matrix for q, k and v, fused attention, and nothing else that costs time."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.joined = [_joined(layer.attn) for layer in decoder.layers]
        self.outward = [layer.attn.W_O.flatten(0, 1).contiguous() for layer in decoder.layers]

    def logits(self, x: Float[Tensor, "pair pos d_model"]) -> Float[Tensor, "pair pos d_vocab"]:
        """Final norm and unembedding."""
        return affine(normed(self.decoder.ln_final, x), self.decoder.W_U, self.decoder.b_U)

    def forward(self, tokens: Int[Tensor, "pair pos"], edit=None, kept: Kept | None = None) -> Tensor:
        """Logits at all positions; `edit(layer, z)` may write into head outputs, `kept` is filled."""
        x = self.decoder.embed(tokens)
        for number in range(len(self.decoder.layers)):
            x = self.block(number, x, edit=edit, kept=kept)
        return self.logits(x)

    def block(
        self,
        number: int,
        x: Float[Tensor, "pair row d_model"],
        past: tuple[Tensor, Tensor] | None = None,
        edit=None,
        kept: Kept | None = None,
    ) -> Float[Tensor, "pair row d_model"]:
        """One block for the rows that follow the `past` keys and values."""
        layer = self.decoder.layers[number]
        y = normed(layer.ln1, x)
        q, k, v = self.project(number, y, 0 if past is None else past[0].shape[2])
        z = _attend(layer.attn, q, k, v, past)
        if edit is not None:
            edit(number, z)
        mid = (y if layer.adds_to_normed else x) + affine(z.flatten(2), self.outward[number], layer.attn.b_O)
        if kept is not None:
            for name, value in (("mid", mid), ("k", k), ("v", v), ("z", z)):
                getattr(kept, name).append(value)
        return self.after_attention(layer, mid)

    def project(self, number: int, y: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [pair head row d_head] of rows at positions start.. ."""
        attn, (weight, bias) = self.decoder.layers[number].attn, self.joined[number]
        heads, groups = attn.W_Q.shape[0], attn.W_K.shape[0]
        joined = affine(y, weight, bias).unflatten(-1, (heads + 2 * groups, -1))
        q, k, v = joined.split((heads, groups, groups), 2)
        if attn.rotary is not None:
            position = torch.arange(start, start + y.shape[1])[None]
            q, k = attn.rotary(q, position), attn.rotary(k, position)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def after_attention(self, layer: Layer, mid: Tensor) -> Tensor:
        """The stream after the MLP."""
        return mid if layer.mlp is None else mid + layer.mlp(normed(layer.ln2, mid))

    def record(self, tokens: Int[Tensor, "pair pos"]) -> tuple[Tensor, Kept]:
        """Logits and what the run leaves behind."""
        kept = Kept([], [], [], [])
        return self.forward(tokens, kept=kept), kept


def affine(x: Tensor, weight: Float[Tensor, "n_in n_out"], bias: Tensor | None) -> Tensor:
    """x W + b, in one call."""
    return x @ weight if bias is None else F.linear(x, weight.mT, bias)


def _joined(attn: Attention) -> tuple[Tensor, Tensor | None]:
    """One matrix [d_model heads*d_head] for q, k and v, with its bias."""
    matrices = [w.transpose(0, 1).flatten(1) for w in (attn.W_Q, attn.W_K, attn.W_V)]
    biases = [b for b in (attn.b_Q, attn.b_K, attn.b_V) if b is not None]
    return torch.cat(matrices, 1), torch.cat(biases).flatten() if biases else None


def _attend(attn: Attention, q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
    """z [pair row head d_head]; the past is shared by all pairs of the batch."""
    mask = None
    if past is not None:
        before, n_rows = past[0].shape[2], q.shape[2]
        k, v = (torch.cat((old.expand(len(new), -1, -1, -1), new), 2) for old, new in zip(past, (k, v), strict=True))
        mask = torch.ones(n_rows, before + n_rows, dtype=torch.bool).tril(before)
    grouped = attn.group > 1
    z = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=attn.scale, enable_gqa=grouped
    )
    return z.transpose(1, 2)


@dataclass(frozen=True)
class Runs:
    """The two runs a full-forward baseline needs before its first patch."""

    source: list[Float[Tensor, "pair pos head d_head"]]
    base: Float[Tensor, "pair"]


def both_runs(problem: Problem, lean: Lean) -> Runs:
    """Head outputs of the clean run and the metric of the corrupted one."""
    return Runs(lean.record(problem.clean)[1].z, problem.value(lean.forward(problem.corrupted)))


def full_forwards(
    problem: Problem, lean: Lean, runs: Runs, patches: Patches, batch: int
) -> Float[Tensor, "pair patch"]:
    """Effects by whole forwards with `batch` patches stacked in each; one patch at a time for batch 1."""
    effects = []
    for chunk in patches.split(batch):
        layers = chunk[:, 0].tolist()

        def edit(number: int, z: Tensor, chunk: Patches = chunk, layers: list[int] = layers) -> None:
            if number not in layers:
                return
            some = (chunk[:, 0] == number).nonzero()[:, 0]
            head, pos = chunk[some, 1], chunk[some, 2]
            rows = z.view(len(chunk), -1, *z.shape[1:])  # [patch pair pos head d_head]
            rows[some, :, pos, head] = runs.source[number][:, pos, head].transpose(0, 1)

        logits = lean.forward(problem.corrupted.repeat(len(chunk), 1), edit)
        for part in logits.split(problem.case.pairs):
            effects.append(problem.value(part) - runs.base)
    return torch.stack(effects, 1)


def resumed(problem: Problem, lean: Lean, group: int) -> Float[Tensor, "pair layer head pos"]:
    """Effects of every patch by batches that resume at the patched layer, for one prompt pair.

    All heads at `group` neighbouring positions run together: from the stream of the base run after that layer's
    attention, on the rows from the first patched position on, with the base run's keys and values before it, and the
    unembedding at the rows that the metric reads only.
    """
    base_logits, base = lean.record(problem.corrupted)
    source, n_pos, heads = lean.record(problem.clean)[1].z, problem.clean.shape[1], problem.decoder.n_heads
    effect = base_logits.new_zeros(1, len(base.z), heads, n_pos)
    for number, layer in enumerate(lean.decoder.layers):
        change = torch.einsum(
            "phd,hdm->phm", (source[number] - base.z[number])[0], layer.attn.W_O
        )  # [pos head d_model]
        for start in range(problem.case.equal_before, n_pos, group):
            places = torch.arange(start, min(n_pos, start + group)).repeat_interleave(heads)  # [branch]
            x = base.mid[number][:, start:].repeat(len(places), 1, 1)  # [branch row d_model]
            x[torch.arange(len(places)), places - start] += change[start : start + group].flatten(0, 1)
            x = lean.after_attention(layer, x)
            for later in range(number + 1, len(base.z)):
                x = lean.block(later, x, (base.k[later][:, :, :start], base.v[later][:, :, :start]))
            effect[0, number, :, start : start + group] = _read(problem, lean, x, base_logits, start).view(-1, heads).T
    return effect


def _read(
    problem: Problem, lean: Lean, x: Float[Tensor, "branch row d_model"], base: Tensor, start: int
) -> Float[Tensor, "branch"]:
    """Change of the metric, from the rows that it reads."""
    last = problem.case.read == "last"
    logits, before = lean.logits(x[:, -1:] if last else x), base[:, -1:] if last else base[:, start:]
    correct, wrong = int(problem.correct), int(problem.wrong)
    after = logits[..., correct] - logits[..., wrong]  # [branch row]
    return (after - (before[..., correct] - before[..., wrong])).sum(-1) / (1 if last else base.shape[1])
