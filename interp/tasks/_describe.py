"""What `interp tasks show` says about an iteration task: tokens, layout, known circuit, chance level."""

from dataclasses import asdict
from typing import Any

WITH_STATES = (
    "A clock head in an early layer looks from each state position back to EoI, which tells the step t. A reading head "
    "in a later layer looks from the position of s_t at the next input to consume. The residual stream carries s_t, "
    "the MLP computes s_{t+1}. Other circuits can solve the task too."
)
WITHOUT_STATES = "None is known: two layers solve only lengths 1 and 2 when the states are not written."


def description(task: Any, length: int) -> dict[str, Any]:
    """A JSON-ready description of an `IterationTask` at one length."""
    return {
        "format": 1,
        "task": task.name,
        "summary": task.summary,
        "rule": task.rule.formula,
        "params": task.params.model_dump(mode="json"),
        "tokens": list(task.vocabulary.tokens),
        "lengths": [task.lengths[0], task.lengths[-1]],
        "n_ctx": task.n_ctx,
        "layout": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(task.layout(length)).items()
        },
        "sequences": len(task.rule.inputs) ** length,
        "circuit": WITH_STATES if task.chain_of_thought else WITHOUT_STATES,
        "attention_targets": _listed(task.attention_targets(length)),
        "true_targets": _listed(task.true_targets(length)),
        "permutation_invariant": task.permutation_invariant(),
        "chance": chance(task, length),
    }


def chance(task: Any, length: int) -> dict[str, Any]:
    """Accuracy without looking at the sequence.

    Returns:
        `step`: guessing uniformly among the values; `sequence`: the same for all written states at once;
        `best_constant`: for each written state, the share of its most frequent value when inputs are uniform.
    """
    steps = range(1, length + 1) if task.chain_of_thought else (length,)
    uniform = 1 / task.rule.modulus
    return {
        "step": uniform,
        "sequence": uniform ** len(steps),
        "best_constant": [float(task.rule.probabilities(t).max()) for t in steps],
    }


def _listed(targets: dict[str, list[tuple[int, int]]]) -> dict[str, list[list[int]]]:
    return {role: [list(pair) for pair in pairs] for role, pairs in targets.items()}
