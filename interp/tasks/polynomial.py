"""Polynomial iteration: s_1 = x_1 and s_t = P(s_{t-1}, x_t) mod m; by default s_t = s_{t-1} x_t + 1 mod 11."""

from typing import Annotated

import torch
from pydantic import Field, field_validator

from interp.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from interp.tasks._iteration import IterationTask
from interp.tasks._rule import IterationParams, Rule, table_of
from interp.tasks.base import TaskEntry

SUMMARY = "polynomial iteration: s_1 = x_1, s_t = P(s_{t-1}, x_t) mod m, by default s_{t-1} x_t + 1 mod 11"

Power = Annotated[int, Field(ge=0)]


class PolynomialParams(IterationParams):
    """Parameters of polynomial iteration; the modulus need not be prime.

    Inputs are 1..m-1. A polynomial whose value does not depend on the order of the inputs (s + x is one, s x + 1 is
    not) can be solved without following the states; `task.permutation_invariant()` tells.
    """

    modulus: int = Field(11, ge=3, le=512, description="values are 0..modulus-1, inputs 1..modulus-1")
    terms: tuple[tuple[int, Power, Power], ...] = Field(
        ((1, 1, 1), (1, 0, 0)), description="(coefficient, power of the state, power of the input) of each term"
    )

    @field_validator("terms")
    @classmethod
    def _some_terms(cls, terms: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        if not terms:
            raise ValueError("give at least one term [coefficient, power of the state, power of the input]")
        return terms


def formula(terms: tuple[tuple[int, int, int], ...]) -> str:
    """The polynomial as text, for example `s x + 1`."""
    return " + ".join(_monomial(*term) for term in terms)


def _monomial(coefficient: int, power_of_state: int, power_of_input: int) -> str:
    """One term as text: factors with power 0 and a coefficient of 1 are left out."""
    powers = [("s", power_of_state), ("x", power_of_input)]
    factors = [name if power == 1 else f"{name}^{power}" for name, power in powers if power]
    if coefficient != 1 or not factors:
        factors.insert(0, str(coefficient))
    return " ".join(factors)


def build(params: PolynomialParams) -> IterationTask:
    """The task."""
    rule = Rule(
        formula=f"s_1 = x_1, s_t = {formula(params.terms)} mod {params.modulus} with s = s_{{t-1}}, x = x_t",
        inputs=tuple(range(1, params.modulus)),
        table=table_of(params.modulus, params.terms),
        first=torch.arange(params.modulus),
    )
    return IterationTask("polynomial", SUMMARY, params, rule)


def preset() -> RunConfig:
    """Solved on 9 of 10 seeds in a trial, in 9,000 to 12,000 steps, with both textbook heads."""
    return RunConfig(
        task="polynomial",
        task_params=PolynomialParams().model_dump(mode="json"),
        data=DataConfig(per_length=2048, train_share=0.5),
        model=ModelConfig(n_layers=2, n_heads=1, d_model=32, embed_norm=True, dropout=0.2),
        train=TrainConfig(steps=20_000, batch_size=32, lr=2e-3, clip=1.0, warmup=100),
    )


TASK = TaskEntry(summary=SUMMARY, params=PolynomialParams, build=build, preset=preset)
