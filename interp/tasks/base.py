"""The types every task speaks: vocabulary, split, batch, intervention pairs and the `Task` protocol."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Int
from pydantic import BaseModel
from torch import Generator, Tensor

from interp.config import DataConfig, RunConfig
from interp.errors import TaskError, UnknownName

PairFamily = Literal["input", "state", "clock"]


@dataclass(frozen=True)
class Vocabulary:
    """Token names in id order: specials first, then values. Two tasks share a token when they share its name."""

    tokens: tuple[str, ...]
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {name: index for index, name in enumerate(self.tokens)})

    def __len__(self) -> int:
        return len(self.tokens)

    def id(self, name: str) -> int:
        """Id of a token name.

        Raises:
            UnknownName: if the vocabulary has no such token.
        """
        if name not in self.ids:
            raise UnknownName("token", name, self.tokens)
        return self.ids[name]

    def names(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Token names of one sequence of ids."""
        return [self.tokens[index] for index in tokens.tolist()]


@dataclass(frozen=True)
class Layout:
    """Where things stand in a sequence of one length L; positions count from 0.

    `inputs[i]` holds x_{i+1}; `states[i]` holds s_{i+1}; `queries[t]` is the position whose next-token prediction is
    s_{t+1}, for t = 0..L-1 (so `queries[0]` is `eoi`); `end` is the position that predicts the first EoS.
    """

    length: int
    n_pos: int
    inputs: tuple[int, ...]
    eoi: int
    states: tuple[int, ...]
    queries: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class Split:
    """Distinct sequences by length, train and test disjoint; a pure function of the task and the seed.

    `duplicates[length]` counts the draws that repeated a sequence and were counted once.
    """

    train: dict[int, Int[Tensor, "_sequence _pos"]]
    test: dict[int, Int[Tensor, "_sequence _pos"]]
    duplicates: dict[int, int]


@dataclass(frozen=True)
class PairBatch:
    """Clean sequences and donors for one intervention at one position.

    `clean` and `donor` are full ground-truth sequences (donor: the corrupted run). `query` is the absolute position,
    the same in both, whose next-token prediction is read: step `t` of the clean sequence, step `t_donor` of the donor.
    `clean_answer` and `donor_answer` are the right next tokens in each run. `swap_answer` is the oracle's answer when
    the component under test takes its value from the donor and everything else stays clean:
    input: f(s_t, donor x_{t+1}); state: f(donor s_t, x_{t+1}); clock: f(s_t, x_{t_donor+1}).
    """

    family: PairFamily
    length: int
    donor_length: int
    t: int
    t_donor: int
    query: int
    clean: Int[Tensor, "batch pos"]
    donor: Int[Tensor, "batch donor_pos"]
    clean_answer: Int[Tensor, "batch"]
    donor_answer: Int[Tensor, "batch"]
    swap_answer: Int[Tensor, "batch"]

    @property
    def differs(self) -> Bool[Tensor, "batch"]:
        """True where the swap would change the answer; only these cases count."""
        return self.swap_answer != self.clean_answer


@runtime_checkable
class Task(Protocol):
    """A controlled task with a known algorithm. Lengths are numbers of inputs."""

    name: str
    summary: str
    params: BaseModel
    vocabulary: Vocabulary
    chain_of_thought: bool

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length the task trains and tests on."""

    @property
    def n_ctx(self) -> int:
        """Positions of the longest sequence."""

    def layout(self, length: int) -> Layout:
        """Named positions of a sequence of this length."""

    def split(self, seed: int, data: DataConfig) -> Split:
        """Train and test sequences of every length."""

    def target_mask(self, length: int, loss: Literal["states", "all"] = "states") -> Bool[Tensor, "pos"]:
        """True at each position whose next-token prediction is scored; the last position is never True."""

    def oracle(self, state: Int[Tensor, "..."], value: Int[Tensor, "..."], t: int) -> Int[Tensor, "..."]:
        """Token id of s_{t+1} given the token ids of s_t and x_{t+1}; `state` is ignored at t = 0."""

    def encode(self, inputs: Int[Tensor, "batch length"]) -> Int[Tensor, "batch pos"]:
        """Full sequences, with the states written out, from the token ids of their inputs."""

    def pairs(
        self,
        family: PairFamily,
        length: int,
        t: int,
        *,
        n: int,
        generator: Generator,
        donor_length: int | None = None,
        clean: Int[Tensor, "sequence pos"] | None = None,
    ) -> PairBatch:
        """`n` intervention pairs; clean sequences are drawn with replacement from `clean` where it is given."""

    def attention_targets(self, length: int) -> dict[str, list[tuple[int, int]]]:
        """Ground-truth (query, key) positions by role: `clock` and `reading`."""


def require_length(task: Task, length: int) -> None:
    """Raise TaskError unless the task has this length."""
    if length not in task.lengths:
        raise TaskError(
            f"{task.name}: no length {length}; lengths are {task.lengths[0]} to {task.lengths[-1]} (set max_length)"
        )


@dataclass(frozen=True)
class TaskEntry:
    """What a task file exports as `TASK`: how to build the task and its recommended run."""

    summary: str
    params: type[BaseModel]
    build: Any  # (params) -> Task
    preset: Any  # () -> RunConfig


def preset_of(entry: TaskEntry) -> RunConfig:
    """The run that a task's author recommends, as a checked configuration."""
    return entry.preset()
