"""The iteration task: BoS, x_1..x_L, EoI, s_1..s_L, EoS, where a rule gives each state from the last and one input.

Source: "Iteration Head: A Mechanistic Study of Chain-of-Thought" (NeurIPS 2024), section on controlled tasks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from interp.config import DataConfig
from interp.errors import TaskError
from interp.rng import generator as seeded
from interp.tasks._describe import description
from interp.tasks._pairs import clock_donor_lengths, default_donor, other_than, refuse_clock, refuse_step
from interp.tasks._rule import IterationParams, Rule
from interp.tasks._split import distinct_inputs, train_size
from interp.tasks.base import Layout, PairBatch, PairFamily, Split, Vocabulary, require_length

SPECIALS = ("BoS", "EoI", "EoS")


@dataclass(frozen=True, eq=False)
class IterationTask:
    """A `Task` made of a rule and the parameters that all iteration tasks share.

    Token ids are the specials BoS, EoI, EoS, then the values 0..m-1. Without chain of thought only s_L follows EoI:
    the layout then has a single query and a single state.
    """

    name: str
    summary: str
    params: IterationParams
    rule: Rule

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Specials, then the values in decimal."""
        return Vocabulary((*SPECIALS, *map(str, range(self.rule.modulus))))

    @property
    def chain_of_thought(self) -> bool:
        """Whether every state is written out."""
        return self.params.chain_of_thought

    @property
    def lengths(self) -> tuple[int, ...]:
        """1 to max_length."""
        return tuple(range(1, self.params.max_length + 1))

    @property
    def n_ctx(self) -> int:
        """2 max_length + 3, also without chain of thought, so that both kinds of model have the same shape."""
        return 2 * self.params.max_length + 3

    def layout(self, length: int) -> Layout:
        """Named positions; with e = L+1 the position of EoI, s_t stands at e+t and is predicted at e+t-1."""
        require_length(self, length)
        eoi = length + 1
        written = length if self.chain_of_thought else 1
        return Layout(
            length=length,
            n_pos=eoi + written + 2,
            inputs=tuple(range(1, length + 1)),
            eoi=eoi,
            states=tuple(range(eoi + 1, eoi + written + 1)),
            queries=tuple(range(eoi, eoi + written)),
            end=eoi + written,
        )

    def input_index(self, length: int, t: int) -> int:
        """Index into `layout.inputs` of the input that s_{t+1} consumes: t, unless `order` or `input_shift` is set."""
        index = (t + self.params.input_shift) % length
        return index if self.params.order == "forward" else length - 1 - index

    def target_mask(self, length: int, loss: Literal["states", "all"] = "states") -> Bool[Tensor, "pos"]:
        """True where the next-token prediction is scored: the written states and the first EoS, or all positions."""
        layout = self.layout(length)
        mask = torch.zeros(layout.n_pos, dtype=torch.bool)
        mask[list((*layout.queries, layout.end)) if loss == "states" else slice(layout.n_pos - 1)] = True
        return mask

    def oracle(self, state: Int[Tensor, "..."], value: Int[Tensor, "..."], t: int) -> Int[Tensor, "..."]:
        """Token id of s_{t+1} given those of s_t and of the input it consumes; `state` is ignored at t = 0.

        Raises:
            TaskError: if a token that is used is not a value.
        """
        state, value = torch.broadcast_tensors(state, value)
        inputs = self._values(value)
        if t == 0:
            following = self.rule.first.to(inputs.device)[inputs]
        else:
            following = self.rule.table.to(inputs.device)[self._values(state), inputs]
        return following + len(SPECIALS)

    def _values(self, tokens: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Values of token ids."""
        values = tokens - len(SPECIALS)
        if bool(((values < 0) | (values >= self.rule.modulus)).any()):
            last = len(SPECIALS) + self.rule.modulus - 1
            raise TaskError(
                f"{self.name}: values have token ids {len(SPECIALS)} to {last}, got {tokens.unique().tolist()}"
            )
        return values

    def encode(self, inputs: Int[Tensor, "batch length"]) -> Int[Tensor, "batch pos"]:
        """Full sequences, with the states written out, from the token ids of their inputs.

        Raises:
            TaskError: if the length or a token is not one the inputs can have.
        """
        layout = self.layout(inputs.shape[1])
        allowed = self._input_ids().to(inputs.device)
        if not bool(torch.isin(inputs, allowed).all()):
            raise TaskError(f"{self.name}: inputs have token ids {allowed.tolist()}, got {inputs.unique().tolist()}")
        tokens = inputs.new_full((len(inputs), layout.n_pos), SPECIALS.index("EoS"))
        tokens[:, 0] = SPECIALS.index("BoS")
        tokens[:, 1 : layout.eoi] = inputs
        tokens[:, layout.eoi] = SPECIALS.index("EoI")
        self._write_states(tokens, layout, 0)
        return tokens

    def _write_states(self, tokens: Int[Tensor, "batch pos"], layout: Layout, t: int) -> None:
        """Write s_{t+1}..s_L in place, from s_t as it stands in `tokens` (from nothing at t = 0)."""
        state = tokens[:, layout.eoi + t]
        for step in range(t, layout.length):
            state = self.oracle(state, self._consumed(tokens, layout, step), step)
            if self.chain_of_thought:
                tokens[:, layout.states[step]] = state
        if not self.chain_of_thought:
            tokens[:, layout.states[0]] = state

    def _consumed(self, tokens: Int[Tensor, "batch pos"], layout: Layout, t: int) -> Int[Tensor, "batch"]:
        """The input tokens that s_{t+1} consumes."""
        return tokens[:, layout.inputs[self.input_index(layout.length, t)]]

    def _input_ids(self) -> Int[Tensor, "choice"]:
        """Token ids that inputs are drawn from."""
        return torch.tensor(self.rule.inputs) + len(SPECIALS)

    def draw(self, length: int, n: int, generator: Generator) -> Int[Tensor, "sequence pos"]:
        """`n` full sequences with independent uniform inputs."""
        require_length(self, length)
        choices = self._input_ids()
        return self.encode(choices[torch.randint(len(choices), (n, length), generator=generator)])

    def split(self, seed: int, data: DataConfig) -> Split:
        """Distinct sequences of every length, divided into train and test; each length has its own random stream.

        A length with a single possible sequence has an empty test set of shape [0, n_pos].
        """
        train, test, duplicates = {}, {}, {}
        for length in self.lengths:
            stream = seeded(seed, "split", self.name, length)
            inputs, duplicates[length] = distinct_inputs(self._input_ids(), length, data.per_length, stream)
            size = train_size(len(inputs), data.train_share)
            tokens = self.encode(inputs)
            train[length], test[length] = tokens[:size], tokens[size:]
        return Split(train=train, test=test, duplicates=duplicates)

    def clock_donors(self, length: int, t: int) -> tuple[int, ...]:
        """Lengths whose sequences can be clock donors at step `t`; empty without chain of thought."""
        self.layout(length)
        return clock_donor_lengths(self.lengths, length, t) if self.chain_of_thought and 0 <= t < length else ()

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
        """`n` intervention pairs at step `t`; see `PairBatch` for what each family asks.

        input: x_{t+1} differs, s_1..s_t are the same, later states follow. state (t >= 1): s_t is another value that
        can occur at step t, later states follow; for copy the answer never changes. clock: the donor is an unrelated
        sequence of another length, by default the nearest possible. What a pair swaps is the input that s_{t+1}
        consumes, which is x_{t+1} unless `order` or `input_shift` is set. Whether the update is that of the first
        step is decided by the clean sequence's t. Without chain of thought only *input* exists, and the answer
        is s_L.

        Args:
            clean: full sequences to draw from with replacement, such as held-out ones; None: random inputs.
            donor_length: only for clock pairs.

        Raises:
            TaskError: if no such pair exists; the message says which do.
        """
        layout = self.layout(length)
        refuse_step(self, family, layout, t, n, donor_length)
        source = self.draw(length, n, generator) if clean is None else self._resampled(clean, layout, n, generator)
        query = layout.queries[t] if self.chain_of_thought else layout.eoi
        if family == "clock":
            return self._clock_pairs(layout, t, donor_length, source, generator)
        donor = source.clone()
        if family == "input":
            position = layout.inputs[self.input_index(length, t)]
            donor[:, position] = other_than(source[:, position], self._input_ids(), generator)
        else:
            choices = self.rule.reachable(t).nonzero().flatten() + len(SPECIALS)
            if len(choices) < 2:
                raise TaskError(f"{self.name}: no state pair at t={t}, where s_t has a single value; use input pairs")
            donor[:, query] = other_than(source[:, query], choices, generator)
        self._write_states(donor, layout, t if self.chain_of_thought else 0)
        clean_answer, answer = source[:, query + 1], donor[:, query + 1]
        return PairBatch(family, length, length, t, t, query, source, donor, clean_answer, answer, answer)

    def _clock_pairs(
        self, layout: Layout, t: int, donor_length: int | None, source: Int[Tensor, "batch pos"], generator: Generator
    ) -> PairBatch:
        """Donors of another length whose query stands at the same absolute position, at another step."""
        possible = self.clock_donors(layout.length, t)
        if not possible or donor_length not in (None, *possible):
            raise refuse_clock(self.name, layout.length, t, donor_length, self.clock_donors)
        chosen = default_donor(possible, layout.length) if donor_length is None else donor_length
        donor_t = layout.length + t - chosen
        query = layout.queries[t]
        donor = self.draw(chosen, len(source), generator).to(source.device)
        swapped = self.oracle(source[:, query], self._consumed(source, layout, donor_t), t)
        answers = source[:, query + 1], donor[:, query + 1], swapped
        return PairBatch("clock", layout.length, chosen, t, donor_t, query, source, donor, *answers)

    def _resampled(
        self, clean: Int[Tensor, "sequence pos"], layout: Layout, n: int, generator: Generator
    ) -> Int[Tensor, "batch pos"]:
        """`n` rows drawn with replacement."""
        if clean.ndim != 2 or clean.shape[1] != layout.n_pos or not len(clean):
            raise TaskError(
                f"{self.name}: clean sequences of length {layout.length} need shape [at least 1, {layout.n_pos}], "
                f"got {list(clean.shape)}"
            )
        return clean[torch.randint(len(clean), (n,), generator=generator).to(clean.device)]

    def attention_targets(self, length: int) -> dict[str, list[tuple[int, int]]]:
        """The textbook (query, key) positions by role, whatever `order` and `input_shift` say.

        clock: (e+t, e) for t = 1..L-1. reading: (e+t, t+1) for t = 0..L-1. Empty without chain of thought.
        """
        layout = self.layout(length)
        if not self.chain_of_thought:
            return {}
        return {
            "clock": [(query, layout.eoi) for query in layout.queries[1:]],
            "reading": list(zip(layout.queries, layout.inputs, strict=True)),
        }

    def true_targets(self, length: int) -> dict[str, list[tuple[int, int]]]:
        """Like `attention_targets`, with the input that each state really consumes as the reading key."""
        targets = self.attention_targets(length)
        if targets:
            layout = self.layout(length)
            keys = [layout.inputs[self.input_index(length, t)] for t in range(length)]
            targets["reading"] = list(zip(layout.queries, keys, strict=True))
        return targets

    def permutation_invariant(self) -> bool:
        """Whether the order of the inputs never matters, so that the task can be solved without the states."""
        return self.rule.permutation_invariant()

    def describe(self, length: int) -> dict[str, Any]:
        """Everything `interp tasks show` says about the task at one length, ready for JSON."""
        return description(self, length)

    def example(self, length: int, generator: Generator) -> dict[str, Any]:
        """One random sequence, as token names and as ids, ready for JSON."""
        tokens = self.draw(length, 1, generator)[0]
        names = self.vocabulary.names(tokens)
        return {"length": length, "text": " ".join(names), "tokens": names, "ids": tokens.tolist()}
