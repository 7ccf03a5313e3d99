"""The prompt pairs that circuit discovery consumes: tokens, answers, spans, groups and parts in one frozen type."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.config import canonical_json
from interp.errors import UnknownName, UsageError
from interp.pairs.alignment import PositionLabels, Span, agree, position_labels
from interp.pairs.parts import divided

Part = Literal["score", "choose", "evaluate", ""]
PARTS = ("score", "choose", "evaluate")
SHARES = {"score": 0.5, "choose": 0.25, "evaluate": 0.25}
NONE = -1  # fills answer and wrong sets that are shorter than the longest
SPAN_NAME = re.compile(r"[A-Za-z_][\w+*' -]{0,63}")


@dataclass(frozen=True)
class Source:
    """Where pairs come from, enough to make them again.

    `tokenizer` is the fingerprint of the tokenizer that wrote the tokens, "" where there was none. `bos` says what the
    first token is: "none" (nothing added), "added" (a BOS token was put first on request) or "task". `settings` are
    those of a generator or importer.
    """

    kind: str = "tokens"
    file: str = ""
    sha256: str = ""
    tokenizer: str = ""
    bos: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupted prompts that agree column by column, and what is read from them.

    A prompt and its corrupted version have the same number of tokens; prompts may differ, with padding at either end.
    All positions are columns of these tensors; `places` counts from the first real token instead.

    Args:
        clean, corrupted: token ids; padding may hold any id of the vocabulary.
        mask: true where a token is real; the real tokens of a prompt are consecutive.
        position: columns whose next-token prediction is read, the same number for each prompt.
        answers, wrong: sets of token ids for each read position, filled up with -1. Every token of `answers` is right,
            those of `wrong` are what the answer is compared with; `wrong` may be empty.
        unit: number of the sequence that a prompt is made from; the bootstrap resamples units, not prompts.
        d_vocab: number of token ids; all ids are below it.
        spans: per prompt, name to (start, stop) in columns.
        group: per prompt, any label, such as the template.
        part: per prompt "score", "choose", "evaluate" or "" (not yet given); a unit has one part.
        names: display names of the token ids that occur.
        source: where the pairs come from.

    Raises:
        UsageError: naming the prompt and what is wrong with it.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    position: Int[Tensor, "batch n_read"]
    answers: Int[Tensor, "batch n_read n_answers"]
    wrong: Int[Tensor, "batch n_read n_wrong"]
    unit: Int[Tensor, "batch"]
    d_vocab: int
    spans: tuple[Mapping[str, Span], ...]
    group: tuple[str, ...]
    part: tuple[Part, ...]
    names: Mapping[int, str] = field(default_factory=dict, repr=False)
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        _require_shapes(self)
        _require_tokens(self)
        _require_answers(self)
        _require_labels(self)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def n_read(self) -> int:
        """Read positions per prompt."""
        return self.position.shape[1]

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Real tokens of each prompt."""
        return self.mask.sum(1)

    @property
    def starts(self) -> Int[Tensor, "batch"]:
        """Column of the first real token of each prompt: 0 unless padding is at the left."""
        return self.mask.int().argmax(1)

    @property
    def places(self) -> Int[Tensor, "batch n_read"]:
        """`position` counted from the first real token, as metrics count."""
        return self.position - self.starts[:, None]

    @property
    def n_units(self) -> int:
        """Different sequences."""
        return len(self.unit.unique())

    @property
    def groups(self) -> tuple[str, ...]:
        """The different groups, sorted."""
        return tuple(sorted(set(self.group)))

    def tokens(self, prompt: int, run: Literal["clean", "corrupted"] = "clean") -> list[str]:
        """Display names of the real tokens of one prompt."""
        ids = getattr(self, run)[prompt][self.mask[prompt]].tolist()
        return [self.name(token) for token in ids]

    def name(self, token: int) -> str:
        """Display name of a token id."""
        return self.names.get(token, f"[{token}]")

    def subset(self, index: Int[Tensor, "some"] | Bool[Tensor, "batch"] | Sequence[int]) -> "Pairs":
        """The prompts of an index or mask, in its order; columns stay as they are.

        Raises:
            UsageError: if nothing is left or an index is outside the prompts.
        """
        chosen = torch.as_tensor(index, device=self.clean.device)
        if chosen.dtype == torch.bool:
            if chosen.shape != (len(self),):
                raise UsageError(f"subset: a mask of shape {list(chosen.shape)} for {len(self)} prompts")
            chosen = chosen.nonzero().flatten()
        if not chosen.numel():
            raise UsageError(f"subset: no prompt is left of {len(self)}")
        rows = chosen.tolist()
        if min(rows) < -len(self) or max(rows) >= len(self):
            raise UsageError(f"subset: prompts {min(rows)} to {max(rows)} asked for, there are {len(self)}")
        tensors = {name: getattr(self, name)[chosen] for name in TENSORS}
        lists = {name: tuple(getattr(self, name)[row] for row in rows) for name in ("spans", "group", "part")}
        return replace(self, **tensors, **lists)

    def of_part(self, part: Part) -> "Pairs":
        """The prompts of one part.

        Raises:
            UsageError: if there are none; `split` gives parts.
        """
        if part not in self.part:
            found = ", ".join(sorted({each or "none" for each in self.part}))
            raise UsageError(f"no prompt has part {part!r} (parts found: {found}); `split` divides the prompts")
        return self.subset([row for row, each in enumerate(self.part) if each == part])

    def seen_by(self, part: Part, others: Sequence[Part]) -> int:
        """How many pairs of a part have a clean or corrupted prompt that stands in other parts too, as either."""

        def prompts(row: int) -> set[tuple[int, ...]]:
            return {tuple(tokens[row][self.mask[row]].tolist()) for tokens in (self.clean, self.corrupted)}

        rows = range(len(self.part))
        known = set().union(*(prompts(row) for row in rows if self.part[row] in others))
        return sum(not known.isdisjoint(prompts(row)) for row in rows if self.part[row] == part)

    def of_group(self, group: str) -> "Pairs":
        """The prompts of one group.

        Raises:
            UnknownName: if no prompt has it.
        """
        if group not in self.group:
            raise UnknownName("group", group, self.groups)
        return self.subset([row for row, each in enumerate(self.group) if each == group])

    def split(self, seed: int, shares: Mapping[str, float] | None = None) -> "Pairs":
        """The same prompts with a part each: disjoint by unit, stratified by group, a pure function of the seed.

        Prompts that have a part keep it. Units are dealt so that each part has its share to about one unit.

        Args:
            shares: part to share; they sum to 1. None: a half for score, a quarter each for choose and evaluate.

        Raises:
            UsageError: for unknown parts, shares that do not sum to 1, or fewer units than parts.
        """
        given = dict(SHARES if shares is None else shares)
        for part in given:
            if part not in PARTS:
                raise UnknownName("part", str(part), PARTS)
        where = f"{self.source.file}: " if self.source.file else ""
        return replace(self, part=divided(self.unit.tolist(), self.group, self.part, seed, given, where))

    def aligned(self) -> bool:
        """Whether all prompts have their tokens and their spans in the same columns."""
        return agree(self.mask, self.spans)

    def position_labels(self, wanted_for: str = "position-resolved results") -> PositionLabels:
        """A canonical name for each column, from the spans where prompts do not agree; see `alignment`.

        Raises:
            UsageError: if prompts differ and the spans cannot align them; the message says what would.
        """
        same = (self.clean == self.clean[:1]).all(0) & (self.corrupted == self.clean[:1]).all(0)
        common = {column: self.name(int(self.clean[0, column])) for column in same.nonzero().flatten().tolist()}
        return position_labels(self.mask.cpu(), self.spans, common, wanted_for)

    def to(self, device: torch.device | str) -> "Pairs":
        """The same pairs with their tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def fingerprint(self) -> str:
        """sha256 over everything that a result depends on: all fields but the display names and the source."""
        arrays = {name: getattr(self, name).tolist() for name in TENSORS}
        labels = {"spans": [dict(each) for each in self.spans], "group": self.group, "part": self.part}
        return hashlib.sha256(canonical_json({**arrays, **labels, "d_vocab": self.d_vocab})).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Source, size and fingerprint, ready for JSON."""
        counts = {"prompts": len(self), "units": self.n_units, "groups": {g: self.group.count(g) for g in self.groups}}
        return {**asdict(self.source), **counts, "fingerprint": self.fingerprint()}

    def to_jsonl(self, path: Path | str) -> None:
        """Write the pairs as token ids; `from_jsonl` gives the same pairs back. See `interp.pairs.jsonl`."""
        from interp.pairs.jsonl import write_jsonl

        write_jsonl(self, Path(path))

    @staticmethod
    def from_jsonl(path: Path | str, **options: Any) -> "Pairs":
        """Read pairs from JSON lines; the format and the options are those of `interp.pairs.jsonl.read_jsonl`."""
        from interp.pairs.jsonl import read_jsonl

        return read_jsonl(Path(path), **options)


TENSORS = ("clean", "corrupted", "mask", "position", "answers", "wrong", "unit")


def _require_shapes(pairs: Pairs) -> None:
    """Tensors fit one another, and the real tokens of each prompt are consecutive."""
    if pairs.clean.ndim != 2 or not pairs.clean.numel():
        raise UsageError(f"clean of shape {list(pairs.clean.shape)}: expected [batch, pos] with at least one of each")
    n, width = pairs.clean.shape
    for name in ("corrupted", "mask"):
        if getattr(pairs, name).shape != (n, width):
            raise UsageError(
                f"{name} of shape {list(getattr(pairs, name).shape)}: expected that of clean, {[n, width]}"
            )
    if pairs.mask.dtype != torch.bool:
        raise UsageError(f"mask of {pairs.mask.dtype}: expected booleans, true where a token is real")
    if pairs.position.ndim != 2 or len(pairs.position) != n or not pairs.position.numel():
        raise UsageError(f"position of shape {list(pairs.position.shape)}: expected [{n}, at least 1 read position]")
    for name in ("answers", "wrong"):
        found = list(getattr(pairs, name).shape)
        if len(found) != 3 or found[:2] != list(pairs.position.shape):
            raise UsageError(f"{name} of shape {found}: expected {list(pairs.position.shape)} and a set for each")
    for name in ("unit", "spans", "group", "part"):
        if len(getattr(pairs, name)) != n:
            raise UsageError(f"{name} for {len(getattr(pairs, name))} prompts: expected {n}")
    edges = pairs.mask.int().diff(dim=1, prepend=pairs.mask.new_zeros(n, 1).int())
    broken = ((edges == 1).sum(1) != 1).nonzero().flatten().tolist()
    if broken:
        raise UsageError(f"prompt {broken[0]}: the real tokens of mask are not consecutive, or there are none")


def _require_tokens(pairs: Pairs) -> None:
    """Token ids are in the vocabulary, read positions inside the prompt."""
    for name in ("clean", "corrupted", "answers", "wrong"):
        ids = getattr(pairs, name)
        lowest = NONE if name in ("answers", "wrong") else 0
        outside = ((ids < lowest) | (ids >= pairs.d_vocab)).flatten(1).any(1).nonzero().flatten().tolist()
        if outside:
            row = ids[outside[0]]
            token = int(row[(row < lowest) | (row >= pairs.d_vocab)][0])
            raise UsageError(
                f"prompt {outside[0]}: {name} has token id {token}, the vocabulary has 0 to {pairs.d_vocab - 1}"
            )
    width = pairs.clean.shape[1]
    inside = (pairs.position >= 0) & (pairs.position < width)
    inside &= pairs.mask.gather(1, pairs.position.clamp(0, width - 1))
    wrong = (~inside).any(1).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        start = int(pairs.starts[row])
        raise UsageError(
            f"prompt {row}: read position {int(pairs.position[row][~inside[row]][0])} is outside the prompt, whose "
            f"columns are {start} to {start + int(pairs.lengths[row]) - 1}"
        )


def _require_answers(pairs: Pairs) -> None:
    """Every read position has an answer, and no answer is wrong."""
    missing = (pairs.answers < 0).all(2).any(1).nonzero().flatten().tolist()
    if missing:
        raise UsageError(f"prompt {missing[0]}: a read position has no answer")
    for row, (answers, wrong) in enumerate(zip(pairs.answers.tolist(), pairs.wrong.tolist(), strict=True)):
        for right, other in zip(answers, wrong, strict=True):
            if both := (set(right) & set(other)) - {NONE}:
                raise UsageError(f"prompt {row}: {pairs.name(min(both))} is in both answers and wrong")


def _require_labels(pairs: Pairs) -> None:
    """Spans lie in the prompt, parts are known, and no unit has two parts."""
    starts, lengths = pairs.starts.tolist(), pairs.lengths.tolist()
    for row, spans in enumerate(pairs.spans):
        for name, (start, stop) in spans.items():
            if not SPAN_NAME.fullmatch(name):
                raise UsageError(f"prompt {row}: span name {name!r}: expected letters, digits, _ + * ' - and spaces")
            if not starts[row] <= start < stop <= starts[row] + lengths[row]:
                raise UsageError(
                    f"prompt {row}: span {name} covers columns {start} to {stop - 1}, the prompt has {starts[row]} to "
                    f"{starts[row] + lengths[row] - 1}"
                )
    parts: dict[int, str] = {}
    for row, (unit, part) in enumerate(zip(pairs.unit.tolist(), pairs.part, strict=True)):
        if part and part not in PARTS:
            raise UsageError(f"prompt {row}: part {part!r}: expected one of {', '.join(PARTS)}, or nothing")
        if parts.setdefault(unit, part) != part:
            raise UsageError(
                f"prompt {row}: its sequence (unit {unit}) is in part {parts[unit] or 'none'} and in {part or 'none'}; "
                "prompts that share a sequence belong to one part"
            )
