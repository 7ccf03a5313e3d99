"""From the last residual differences to what they do to the metric."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.engine import packed
from circuits.engine.products import Products
from circuits.engine.record import Record
from circuits.engine.rows import Chosen, OneRow, Rows
from circuits.engine.sweep import Branches
from circuits.engine.wave import norm_delta
from circuits.metrics import KL, Metric, UserMetric
from circuits.metrics import Rows as MetricRows
from interp.decoder import Decoder, affine
from interp.errors import UsageError

LOGITS_AT_A_TIME = 1 << 24  # numbers of one block of logit differences


class Scores:
    """Adds up what branches do to the metric of each prompt.

    Attributes:
        effect: [prompt, slot], metric of the patched run minus metric of the base run.
    """

    def __init__(self, decoder: Decoder, base: Record, metric: Metric | UserMetric, rows: MetricRows, n_slots: int):
        self.decoder, self.metric, self.rows = decoder, metric, rows
        n_prompts, n_pos = base.final.shape[:2]
        with torch.inference_mode(False):  # an ordinary tensor, which may be large and need not be copied at the end
            self.effect = torch.zeros(n_prompts, n_slots, dtype=base.final.dtype, device=base.final.device)
        self.row_of = torch.full((n_prompts, n_pos), -1, device=base.final.device)
        self.row_of[rows.prompt, rows.pos] = torch.arange(len(rows.pos), device=base.final.device)
        self.counts = rows.counts.to(base.final)
        self.directions = metric.directions(decoder.W_U, rows) if hasattr(metric, "directions") else None
        self.base_logits: Tensor | None = None
        if self.directions is None:
            self.base_logits = decoder_logits(decoder, base)[rows.prompt, rows.pos]
        if isinstance(metric, UserMetric):
            self.whole = decoder_logits(decoder, base)
            self.before = user_value(metric, self.whole)

    def add(
        self, branches: Branches, where: OneRow | Rows, base: Record, prompts: Int[Tensor, "prompt"], mul: Products
    ) -> None:
        """Book the branches of some prompts; differences are those of the last residual stream."""
        if isinstance(where, OneRow):
            rows = self.row_of[prompts[:, None], where.positions(len(prompts))]  # [batch branch]
        else:
            rows = self.row_of[prompts[:, None], where.positions(len(prompts), prompts.device)]  # [batch row]
            rows = rows.masked_fill(~where.counts, -1) if isinstance(where, Chosen) else rows
        norm, one_row = self.decoder.ln_final, isinstance(where, OneRow)
        if isinstance(self.metric, UserMetric):
            self._user(branches, where, norm_delta(norm, base.final, where, branches.delta, mul), prompts, mul)
            return
        table = rows
        rows = rows if one_row else rows[:, None].expand(branches.delta.shape[:-1])
        if self.directions is not None and norm is not None and mul.kernel_for("norm_logit", branches.delta):
            change = packed.norm_logit(norm, base.final, where, branches.delta, rows, self.directions, mul)
        elif self.directions is not None and not one_row:
            change = self._linear(norm_delta(norm, base.final, where, branches.delta, mul), table, mul)
        else:
            change = self._change(norm_delta(norm, base.final, where, branches.delta, mul), rows, mul)
        change = change if one_row else change.sum(-1)  # [batch branch]
        share = change / self.counts[prompts, None]
        self.effect[prompts[:, None], branches.slot] += share

    def _linear(
        self, dy: Float[Tensor, "batch branch row d_model"], rows: Int[Tensor, "batch row"], mul: Products
    ) -> Float[Tensor, "batch branch row"]:
        """The same for rows that all branches share, and a metric with directions: one product for each of them."""
        mul.count(2 * dy.numel())
        used = self.directions[rows.clamp(min=0)] * (rows >= 0)[..., None]  # [batch row d_model]
        return (dy.transpose(1, 2) @ used[..., None])[..., 0].mT

    def _change(self, dy: Float[Tensor, "*case d_model"], rows: Int[Tensor, "*case"], mul: Products) -> Tensor:
        """Change of the metric of each case; 0 where no metric row is."""
        if self.directions is not None:
            mul.count(2 * dy.numel())
            used = self.directions[rows.clamp(min=0)]
            return (dy * used).sum(-1) * (rows >= 0)
        out, read = dy.new_zeros(rows.shape), rows >= 0
        cases, index = dy[read], rows[read]  # [case d_model], [case]
        if isinstance(self.metric, KL) and mul.kernel_for("kl", dy):
            out[read] = mul.run("kl", self.base_logits, index, cases.contiguous(), self.decoder.W_U)
            return out
        step = max(1, LOGITS_AT_A_TIME // self.decoder.W_U.shape[1])
        pieces = [
            self.metric.change(
                mul(cases[i : i + step], self.decoder.W_U), index[i : i + step], self.rows, self.base_logits
            )
            for i in range(0, len(cases), step)
        ]
        out[read] = torch.cat(pieces) if pieces else out[read]
        return out

    def _user(
        self, branches: Branches, where: OneRow | Rows, dy: Tensor, prompts: Int[Tensor, "prompt"], mul: Products
    ) -> None:
        """Full logits of each branch, handed to the user's function one branch at a time."""
        at = where.positions(len(prompts), dy.device)  # [batch branch] or [batch row]
        for n in range(len(branches.p)):
            delta = mul(dy[:, n], self.decoder.W_U)  # [batch d_vocab] or [batch row d_vocab]
            logits = self.whole.clone()
            if isinstance(where, OneRow):
                logits[prompts, at[:, n]] += delta
            else:
                logits[prompts[:, None], at] += delta
            change = user_value(self.metric, logits) - self.before
            self.effect[prompts, branches.slot[n]] += change[prompts]


def decoder_logits(decoder: Decoder, run: Record) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a recorded run."""
    return affine(run.normed_final, decoder.W_U, decoder.b_U)


def user_value(metric: UserMetric, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
    """The user's function, checked.

    Raises:
        UsageError: if it does not give one finite number per prompt.
    """
    value = metric.fn(logits)
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"metric: the function gave {shape}: expected one number per prompt, shape [{len(logits)}]")
    return value


def metric_value(
    decoder: Decoder, run: Record, base: Record, metric: Metric | UserMetric, rows: MetricRows
) -> Float[Tensor, "prompt"]:
    """The metric of a whole run; `base` is the run that is patched into (for KL)."""
    if isinstance(metric, UserMetric):
        return user_value(metric, decoder_logits(decoder, run))
    logits = decoder.logits(run.final[rows.prompt, rows.pos])
    return rows.mean(metric.of_logits(logits, rows, decoder.logits(base.final[rows.prompt, rows.pos])))


def is_read(rows: MetricRows, n_prompts: int, n_pos: int) -> Bool[Tensor, "prompt pos"]:
    """Which positions the metric reads."""
    read = torch.zeros(n_prompts, n_pos, dtype=torch.bool, device=rows.pos.device)
    read[rows.prompt, rows.pos] = True
    return read
