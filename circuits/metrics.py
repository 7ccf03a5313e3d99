"""What a patch is measured by: a number per prompt, computed from the logits at stated positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UsageError

Positions = str | int | Tensor | tuple[int, ...] | list[int]


@dataclass(frozen=True)
class Rows:
    """The (prompt, position) pairs that a metric reads, in order of prompt; its value is their mean per prompt."""

    prompt: Int[Tensor, "row"]
    pos: Int[Tensor, "row"]
    column: Int[Tensor, "row"]  # which of the prompt's positions this is, to index targets
    n_prompts: int

    def mean(self, values: Float[Tensor, "*branch row"]) -> Float[Tensor, "*branch prompt"]:
        """Mean over the rows of each prompt."""
        total = values.new_zeros(*values.shape[:-1], self.n_prompts).index_add(-1, self.prompt, values)
        return total / self.counts.to(values)

    @property
    def counts(self) -> Int[Tensor, "prompt"]:
        """Rows per prompt."""
        return torch.bincount(self.prompt, minlength=self.n_prompts)


@runtime_checkable
class Metric(Protocol):
    """A metric of the logits at `positions`; `change` is what a patch does to it, computed from differences."""

    positions: Positions

    def of_logits(
        self, logits: Float[Tensor, "row d_vocab"], rows: Rows, base: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, "row"]:
        """Value of each row; `base` are the logits of the run that is patched into."""

    def change(
        self, delta: Float[Tensor, "case d_vocab"], index: Int[Tensor, "case"], rows: Rows, base: Tensor
    ) -> Float[Tensor, "case"]:
        """of_logits(base + delta) - of_logits(base) for row `index` of each case, without cancellation."""


@dataclass(frozen=True)
class LogitDiff:
    """Logit of the correct token minus logit of the wrong one. Any real number; larger is better; 0 at random.

    Args:
        correct, wrong: token ids, [batch] for all positions alike, or [batch, n_pos] for each position.
        positions: where the answer is predicted: "last", "all", one place, or places [batch] or [batch, n_pos].
    """

    correct: Int[Tensor, "batch *pos"]
    wrong: Int[Tensor, "batch *pos"]
    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        index = torch.arange(len(logits), device=logits.device)
        return logits[index, of_rows(self.correct, rows)] - logits[index, of_rows(self.wrong, rows)]

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        case = torch.arange(len(delta), device=delta.device)
        correct, wrong = of_rows(self.correct, rows)[index], of_rows(self.wrong, rows)[index]
        return delta[case, correct] - delta[case, wrong]

    def directions(self, W_U: Float[Tensor, "d_model d_vocab"], rows: Rows) -> Float[Tensor, "row d_model"]:
        """d(metric) / d(normalised final residual): the metric is linear in it."""
        return (W_U[:, of_rows(self.correct, rows)] - W_U[:, of_rows(self.wrong, rows)]).mT


@dataclass(frozen=True)
class AnswerDiff:
    """Mean logit of the right tokens minus that of the wrong ones. Any real number; larger is better; 0 at random.

    With one right and one wrong token the logit difference. Source of sets: Hanna, Liu and Variengien 2023, section 2
    (years above a threshold against those below).

    Args:
        right, other: token ids [batch, column, choice], padded with -1; at least one of each in every entry.
        positions: as for `LogitDiff`; `column` counts a prompt's positions.
    """

    right: Int[Tensor, "batch column choice"]
    other: Int[Tensor, "batch column wrong"]
    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        return mean_of(self.right, logits, rows) - mean_of(self.other, logits, rows)

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        some = Rows(rows.prompt[index], rows.pos[index], rows.column[index], rows.n_prompts)
        return mean_of(self.right, delta, some) - mean_of(self.other, delta, some)

    def directions(self, W_U: Float[Tensor, "d_model d_vocab"], rows: Rows) -> Float[Tensor, "row d_model"]:
        """d(metric) / d(normalised final residual): the metric is linear in it."""
        tokens = W_U.mT
        found = []
        for choices in (self.right, self.other):
            some = choices.to(rows.prompt.device)[rows.prompt, rows.column]  # [row choice]
            real = (some >= 0)[..., None].to(W_U)
            found.append((tokens[some.clamp(min=0)] * real).sum(1) / real.sum(1))
        return found[0] - found[1]


@dataclass(frozen=True)
class LogProb:
    """Log-probability (nats) of the target token. At most 0; -log(d_vocab) for a uniform guess; 0 for certainty."""

    target: Int[Tensor, "batch *pos"]
    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        return logits.log_softmax(-1).gather(-1, of_rows(self.target, rows)[:, None])[:, 0]

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        centred, log_ratio = log_mean_exp(delta, base[index])
        return centred.gather(-1, of_rows(self.target, rows)[index, None])[:, 0] - log_ratio


@dataclass(frozen=True)
class KL:
    """KL(base || patched) of the next-token distributions, in nats. At least 0; 0 where a patch changes nothing."""

    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        return self.change(logits - base, torch.arange(len(logits), device=logits.device), rows, base)

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        return log_mean_exp(delta, base[index])[1]


@dataclass(frozen=True)
class Accuracy:
    """Whether the target has the largest logit: 0 or 1 per row; 1 / d_vocab at random."""

    target: Int[Tensor, "batch *pos"]
    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        return (logits.argmax(-1) == of_rows(self.target, rows)).to(logits)

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        target, before = of_rows(self.target, rows)[index], base[index]
        return ((before + delta).argmax(-1) == target).to(delta) - (before.argmax(-1) == target).to(delta)


@dataclass(frozen=True)
class ChoiceAccuracy:
    """Whether some right token has a larger logit than every wrong one: 0 or 1 per row.

    Where no token is given as wrong, all other tokens are. At random 1 / (1 + wrong) for one right token.

    Args:
        right, other, positions: as for `AnswerDiff`; `other` may be empty.
    """

    right: Int[Tensor, "batch column choice"]
    other: Int[Tensor, "batch column wrong"]
    positions: Positions = "last"

    def of_logits(self, logits: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "row"]:
        """Value of each row."""
        right, other = (x.to(logits.device)[rows.prompt, rows.column] for x in (self.right, self.other))
        best = logits.gather(1, right.clamp(min=0)).masked_fill(right < 0, -torch.inf).amax(1)
        if not other.shape[1] or bool((other < 0).all(1).any()):
            row = torch.arange(len(logits), device=logits.device)[:, None].expand_as(right)
            rest = logits.index_put((row[right >= 0], right[right >= 0]), logits.new_tensor(-torch.inf)).amax(1)
        if other.shape[1]:
            given = logits.gather(1, other.clamp(min=0)).masked_fill(other < 0, -torch.inf).amax(1)
            rest = torch.where((other < 0).all(1), rest, given) if bool((other < 0).all(1).any()) else given
        return (best > rest).to(logits)

    def change(self, delta: Tensor, index: Tensor, rows: Rows, base: Tensor) -> Float[Tensor, "case"]:
        """What `delta` adds to the value of each case's row."""
        some = Rows(rows.prompt[index], rows.pos[index], rows.column[index], rows.n_prompts)
        return self.of_logits(base[index] + delta, some, base) - self.of_logits(base[index], some, base)


@dataclass(frozen=True)
class UserMetric:
    """Any function of full logits [batch, pos, d_vocab] that gives one number per prompt [batch].

    It may read every position, so nothing can be left out and the logits of each patch are built: exact, and slower.
    """

    fn: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch"]]
    positions: Positions = "all"


def log_mean_exp(
    delta: Float[Tensor, "case d_vocab"], base: Float[Tensor, "case d_vocab"]
) -> tuple[Float[Tensor, "case d_vocab"], Float[Tensor, "case"]]:
    """x = delta - E_p[delta] and log E_p[exp x] for p = softmax(base).

    The second is KL(base || base + delta). Written as log1p(E_p[exp x - 1 - x]) it keeps its relative accuracy down
    to the smallest divergences, where log_softmax differences lose all digits.
    """
    p = base.softmax(-1)
    x = delta - (p * delta).sum(-1, keepdim=True)
    ratio = _log_mean(p, x)
    overflow = ~ratio.isfinite()
    if bool(overflow.any()):  # the rows that overflow are set to 0 first, or their gradient would be no number
        ratio = _log_mean(p, x.masked_fill(overflow[..., None], 0.0))
        ratio = torch.where(overflow, (base.log_softmax(-1) + x).logsumexp(-1), ratio)
    return x, ratio


def _log_mean(p: Float[Tensor, "case d_vocab"], x: Float[Tensor, "case d_vocab"]) -> Float[Tensor, "case"]:
    """log E_p[exp x] for x of mean 0."""
    small = x.abs() < 0.1
    series = x * x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    bounded = torch.where(small, torch.zeros_like(x), x)
    excess = torch.where(small, series, torch.expm1(bounded) - bounded)
    return torch.log1p((p * excess).sum(-1))


def mean_of(
    choices: Int[Tensor, "batch column choice"], logits: Float[Tensor, "row d_vocab"], rows: Rows
) -> Float[Tensor, "row"]:
    """Mean logit over each row's choices; -1 is no token."""
    some = choices.to(logits.device)[rows.prompt, rows.column]  # [row choice]
    real = some >= 0
    return (logits.gather(1, some.clamp(min=0)) * real).sum(1) / real.sum(1)


def of_rows(target: Int[Tensor, "batch *pos"], rows: Rows) -> Int[Tensor, "row"]:
    """The target of each row: the prompt's own, or the one of its position."""
    target = target.to(rows.prompt.device)
    return target[rows.prompt] if target.dim() == 1 else target[rows.prompt, rows.column]


def metric_rows(metric: Metric | UserMetric, lengths: Int[Tensor, "batch"]) -> Rows:
    """The rows that the metric reads in prompts of these lengths.

    Raises:
        UsageError: for positions outside a prompt or targets of another shape.
    """
    n, positions = len(lengths), metric.positions
    counts = torch.ones_like(lengths)
    if isinstance(positions, str):
        if positions not in ("last", "all"):
            raise UsageError(f"metric: positions={positions!r}: expected 'last', 'all', a place or places")
        if positions == "all":
            counts = lengths
        column = torch.cat([torch.arange(int(count), device=lengths.device) for count in counts])
        prompt = torch.arange(n, device=lengths.device).repeat_interleave(counts)
        pos = column if positions == "all" else lengths - 1
    else:
        places = _places(positions, n, lengths)
        prompt = torch.arange(n, device=lengths.device).repeat_interleave(places.shape[1])
        column, pos = torch.arange(places.shape[1], device=lengths.device).repeat(n), places.flatten()
    outside: Bool[Tensor, row] = (pos < 0) | (pos >= lengths[prompt])
    if bool(outside.any()):
        where = int(outside.nonzero()[0])
        raise UsageError(
            f"metric: position {int(pos[where])} is outside prompt {int(prompt[where])} of length "
            f"{int(lengths[prompt[where]])}"
        )
    rows = Rows(prompt, pos, column, n)
    for name in ("correct", "wrong", "target"):
        if (target := getattr(metric, name, None)) is not None:
            _check_target(name, target, rows)
    return rows


def _places(positions: int | Tensor | tuple[int, ...] | list[int], n: int, lengths: Tensor) -> Int[Tensor, "batch pos"]:
    places = torch.as_tensor(positions, device=lengths.device)
    if places.is_floating_point() or places.dim() > 2 or (places.dim() and len(places) != n):
        raise UsageError(
            f"metric: positions of shape {tuple(places.shape)}: expected one whole number, or whole numbers of shape "
            f"[{n}] or [{n}, n_pos]"
        )
    places = places.expand(n, 1) if places.dim() == 0 else places.reshape(n, -1)
    return torch.where(places < 0, places + lengths[:, None], places)


def _check_target(name: str, target: Tensor, rows: Rows) -> None:
    columns = int(rows.column.max()) + 1 if len(rows.column) else 0
    if target.is_floating_point() or len(target) != rows.n_prompts or target.dim() > 2:
        raise UsageError(
            f"metric: {name} of shape {tuple(target.shape)}: expected token ids of shape [{rows.n_prompts}] or "
            f"[{rows.n_prompts}, {columns}]"
        )
    if target.dim() == 2 and target.shape[1] < columns:
        raise UsageError(f"metric: {name} has {target.shape[1]} tokens per prompt for {columns} positions")
