"""Labels a model `textbook`, `other`, `ambiguous` or `unsolved` by surgery on attention rows, without any detector.

    python tests/truth/pattern_surgery.py STORE [RUN ...]

Reading head R at key t+1 (all at single queries e+t, lengths from 4 up):
  own       the larger half of R's attention lies on key t+1
  directed  R's row forced to a random other input key j: the prediction becomes f(s_t, x_j)
  kept      R's row forced to key t+1: the prediction stays right
  lost      key t+1 removed from R's row: share of right predictions that turn wrong, over what guessing would turn
Clock head C in an earlier layer than R, for t >= 1:
  own       the larger half of C's attention lies on EoI
  told      C's output becomes its value vector at EoI of a run of another length L' (the same absolute position is
            then step t' = L + t - L' >= 1): R's most attended key becomes t'+1; it is R's pattern that is measured
  kept      C's row forced to EoI: R's most attended key stays t+1
  lost      EoI removed from C's row: R's most attended key leaves t+1
A head is clear when own, directed or told, and kept are all at 0.8 or more and lost at 0.5 or more; it is possible when
they reach 0.65 and 0.35 (what a head reports once its key is gone is arbitrary, and so may still be right: hence the
lower bar for lost). `textbook`: exactly one pair (R, C) is possible, and both are clear. `other`: no pair is possible.
The rest is `ambiguous`. The margin is the smallest of the shares, lost counted with 0.3 on top.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp.evaluate import teacher_forced
from interp.hooks import HookedModel
from interp.rng import generator
from interp.run import Store
from interp.tasks.base import Task
from interp.train import load_model

CLEAR, POSSIBLE = 0.8, 0.65  # bars of the score; two heads that share a role equally reach 0.5 each
LOST_BONUS = 0.3  # puts the bars of `lost` at 0.5 and 0.35
SOLVED = 0.99
SHORTEST = 4
LENGTHS, SEQUENCES, SCORED = 5, 16, 1024

Verdict = Literal["textbook", "other", "ambiguous", "unsolved"]
Sequences = dict[int, Int[Tensor, "sequence pos"]]
Head = tuple[int, int]
Row = Callable[[Float[Tensor, "batch k_pos"]], Float[Tensor, "batch k_pos"]]


@dataclass(frozen=True)
class Label:
    """A label with the shares it rests on, by head."""

    label: Verdict
    reading: str = ""
    clock: str = ""
    margin: float = 0.0
    lowest_accuracy: float = 0.0
    readers: dict[str, dict[str, float]] = field(default_factory=dict)
    clocks: dict[str, dict[str, float]] = field(default_factory=dict)


def name_of(head: Head) -> str:
    """Name of a head, as L1.H0."""
    return f"L{head[0]}.H{head[1]}"


def lowest_accuracy(model: HookedModel, task: Task, sequences: Sequences) -> float:
    """Sequence accuracy at the worst length."""
    scores = [
        teacher_forced(model, task, tokens[:SCORED], length).sequence.float().mean().item()
        for length, tokens in sequences.items()
        if len(tokens)
    ]
    return min(scores)


def chosen_lengths(sequences: Sequences) -> list[int]:
    """Up to 5 lengths spread from 4 to the longest."""
    lengths = sorted(length for length, tokens in sequences.items() if length >= SHORTEST and len(tokens))
    places = torch.linspace(0, len(lengths) - 1, min(LENGTHS, len(lengths))).round().long().tolist()
    return [lengths[place] for place in places]


@torch.inference_mode()
def run(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], hooks: list[tuple[str, Callable]], watch: Head | None = None
) -> tuple[Float[Tensor, "batch pos d_vocab"], Float[Tensor, "batch q_pos k_pos"] | None]:
    """Logits under the hooks, and the pattern of one head."""
    seen: list[Tensor] = []
    if watch is not None:
        name = f"blocks.{watch[0]}.attn.hook_pattern"
        hooks = [*hooks, (name, lambda pattern, hook: seen.append(pattern[:, watch[1]].clone()))]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, seen[0] if seen else None


def rewrite_row(head: Head, query: int, row: Row) -> tuple[str, Callable]:
    """A hook that replaces one attention row of one head."""

    def hook(pattern: Tensor, hook: object) -> Tensor:
        changed = pattern.clone()
        changed[:, head[1], query] = row(pattern[:, head[1], query])
        return changed

    return f"blocks.{head[0]}.attn.hook_pattern", hook


def replace_output(head: Head, query: int, value: Float[Tensor, "batch d_head"]) -> tuple[str, Callable]:
    """A hook that replaces one head's output before W_O at one position."""

    def hook(z: Tensor, hook: object) -> Tensor:
        changed = z.clone()
        changed[:, query, head[1]] = value
        return changed

    return f"blocks.{head[0]}.attn.hook_z", hook


def one_hot(keys: Int[Tensor, "batch"]) -> Row:
    """All attention on one key for each sequence."""
    return lambda row: torch.zeros_like(row).scatter(1, keys[:, None], 1.0)


def without(key: int) -> Row:
    """The row without one key, renormalised."""

    def row(old: Tensor) -> Tensor:
        rest = old.clone()
        rest[:, key] = 0
        return rest / rest.sum(1, keepdim=True).clamp(min=1e-9)

    return row


def share(hits: list[Tensor]) -> float:
    """Mean of all collected cases; 0 where there are none."""
    cases = torch.cat(hits).float() if hits else torch.zeros(0)
    return float(cases.mean()) if len(cases) else 0.0


def reading_shares(model: HookedModel, task: Task, sequences: Sequences, head: Head, g: Generator) -> dict[str, float]:
    """`own`, `directed`, `kept` and `lost` of one candidate reading head."""
    found: dict[str, list[Tensor]] = {"own": [], "directed": [], "kept": [], "right": [], "removed": []}
    guess: list[Tensor] = []
    for length in chosen_lengths(sequences):
        tokens, layout = sequences[length][:SEQUENCES], task.layout(length)
        logits, pattern = run(model, tokens, [], head)
        for t, query in enumerate(layout.queries):
            target, answer = layout.inputs[t], tokens[:, query + 1]
            other = (t + torch.randint(1, length, (len(tokens),), generator=g)) % length
            keys = torch.tensor(layout.inputs)[other]
            directed = task.oracle(tokens[:, query], tokens.gather(1, keys[:, None])[:, 0], t)

            def predicted(row: Row, query: int = query, tokens: Tensor = tokens) -> Tensor:
                return run(model, tokens, [rewrite_row(head, query, row)])[0][:, query].argmax(-1)

            differs = directed != answer
            found["own"].append(pattern[:, query, target] > 0.5)
            found["directed"].append((predicted(one_hot(keys)) == directed)[differs])
            found["kept"].append(predicted(one_hot(torch.full_like(keys, target))) == answer)
            found["right"].append(logits[:, query].argmax(-1) == answer)
            found["removed"].append(predicted(without(target)) == answer)
            guess.append((answer == answer.mode().values).float())
    shares = {name: share(hits) for name, hits in found.items()}
    right, removed = shares.pop("right"), shares.pop("removed")
    room = max(right - share(guess), 1e-9)  # what removing all knowledge of the input could cost
    return shares | {"lost": min(max((right - removed) / room, 0.0), 1.0)}


def score(shares: dict[str, float]) -> float:
    """Smallest share of a head, `lost` counted with a bonus."""
    return min(min(value + LOST_BONUS, 1.0) if name == "lost" else value for name, value in shares.items())


def own_share(model: HookedModel, task: Task, sequences: Sequences, head: Head) -> float:
    """Share of queries at which the larger half of a head's attention lies on key t+1."""
    hits = []
    for length in chosen_lengths(sequences):
        layout = task.layout(length)
        _, pattern = run(model, sequences[length][:SEQUENCES], [], head)
        hits.append((pattern[:, list(layout.queries), list(layout.inputs)] > 0.5).flatten())
    return share(hits)


def steps_with_donors(task: Task, lengths: list[int], g: Generator) -> Iterator[tuple[int, int, int, int]]:
    """(length, t, donor length, t') for every state position that stands at step t' >= 1 in some other length."""
    for length in lengths:
        for t in range(1, length):
            donors = [d for d in task.lengths if d != length and 1 <= length + t - d < d]
            if donors:
                donor = donors[int(torch.randint(len(donors), (), generator=g))]
                yield length, t, donor, length + t - donor


@torch.inference_mode()
def value_at(model: HookedModel, tokens: Int[Tensor, "batch pos"], head: Head, position: int) -> Tensor:
    """Value vector of one head at one position."""
    name = f"blocks.{head[0]}.attn.hook_v"
    return model.run_with_cache(tokens, names_filter=[name])[1][name][:, position, head[1]]


def clock_shares(
    model: HookedModel, task: Task, sequences: Sequences, head: Head, reader: Head, g: Generator
) -> dict[str, float]:
    """`own`, `told`, `kept` and `lost` of one candidate clock head, seen in the reading head's pattern."""
    found: dict[str, list[Tensor]] = {"own": [], "told": [], "kept": [], "right": [], "removed": []}
    for length, t, donor, donor_t in steps_with_donors(task, chosen_lengths(sequences), g):
        tokens, layout = sequences[length][:SEQUENCES], task.layout(length)
        query, eoi = layout.queries[t], layout.eoi
        others = task.draw(donor, len(tokens), g)
        value = value_at(model, others, head, task.layout(donor).eoi)

        def peak(hook: tuple[str, Callable] | None, query: int = query, tokens: Tensor = tokens) -> Tensor:
            return run(model, tokens, [hook] if hook else [], reader)[1][:, query].argmax(-1)

        _, pattern = run(model, tokens, [], head)
        here = layout.inputs[t]
        found["own"].append(pattern[:, query, eoi] > 0.5)
        found["told"].append(peak(replace_output(head, query, value)) == layout.inputs[donor_t])
        forced = rewrite_row(head, query, one_hot(torch.full((len(tokens),), eoi)))
        found["kept"].append(peak(forced) == here)
        found["right"].append(peak(None) == here)
        found["removed"].append(peak(rewrite_row(head, query, without(eoi))) == here)
    shares = {name: share(hits) for name, hits in found.items()}
    right, removed = shares.pop("right"), shares.pop("removed")
    return shares | {"lost": max(right - removed, 0.0) / max(right, 1e-9)}


def label_model(model: HookedModel, task: Task, sequences: Sequences, seed: int = 0) -> Label:
    """Label one model on held-out sequences by length; see the module docstring for the rule."""
    accuracy = lowest_accuracy(model, task, sequences)
    if accuracy < SOLVED:
        return Label("unsolved", lowest_accuracy=accuracy)
    if not task.chain_of_thought:
        return Label("other", lowest_accuracy=accuracy)
    g = generator(seed, "pattern surgery")
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    own = {h: own_share(model, task, sequences, h) for h in heads if h[0] > 0}
    readers = {
        h: reading_shares(model, task, sequences, h, g) if share_ >= POSSIBLE else {"own": share_}
        for h, share_ in own.items()
    }
    pairs: list[tuple[float, Head, Head]] = []
    clocks: dict[str, dict[str, float]] = {}
    for reader, shares in readers.items():
        if score(shares) < POSSIBLE:
            continue
        for head in [h for h in heads if h[0] < reader[0]]:
            found = clock_shares(model, task, sequences, head, reader, g)
            clocks[f"{name_of(head)}->{name_of(reader)}"] = found
            pairs.append((min(score(shares), score(found)), reader, head))
    clear = [pair for pair in pairs if pair[0] >= CLEAR]
    possible = [pair for pair in pairs if pair[0] >= POSSIBLE]
    verdict: Verdict = "textbook" if len(clear) == len(possible) == 1 else "ambiguous" if possible else "other"
    best = max(pairs, default=None)
    return Label(
        verdict,
        reading=name_of(best[1]) if best and possible else "",
        clock=name_of(best[2]) if best and possible else "",
        margin=best[0] if best else max(map(score, readers.values()), default=0.0),
        lowest_accuracy=accuracy,
        readers={name_of(head): shares for head, shares in readers.items()},
        clocks=clocks,
    )


def main() -> None:
    """Print one JSON line per run of a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", nargs="*")
    arguments = parser.parse_args()
    store = Store(arguments.store)
    torch.set_num_threads(1)
    for name in arguments.runs or store.names():
        run_ = store.run(name)
        if run_.status().state != "done":
            continue
        model, task, _ = load_model(run_)
        held_out = task.split(run_.config.seed, run_.config.data).test
        print(json.dumps({"run": name, **asdict(label_model(model, task, held_out))}), flush=True)


if __name__ == "__main__":
    main()
