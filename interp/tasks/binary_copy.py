"""Binary copy: the states repeat the inputs, s_t = x_t over bits."""

import torch

from interp.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from interp.tasks._iteration import IterationTask
from interp.tasks._rule import IterationParams, Rule, table_of
from interp.tasks.base import TaskEntry

SUMMARY = "copy L bits: s_t = x_t"


class BinaryCopyParams(IterationParams):
    """Parameters of binary copy."""


def build(params: BinaryCopyParams) -> IterationTask:
    """The task; its update ignores the state, so *state* pairs never change an answer."""
    rule = Rule(formula="s_t = x_t", inputs=(0, 1), table=table_of(2, ((1, 0, 1),)), first=torch.arange(2))
    return IterationTask("binary_copy", SUMMARY, params, rule)


def preset() -> RunConfig:
    """Solved on 2 of 2 seeds in a trial, without the textbook head: a real case of another circuit."""
    return RunConfig(
        task="binary_copy",
        task_params=BinaryCopyParams().model_dump(mode="json"),
        data=DataConfig(per_length=2048, train_share=0.5),
        model=ModelConfig(n_layers=2, n_heads=1, d_model=64, dropout=0.1),
        train=TrainConfig(steps=14_000, batch_size=64, lr=1e-3, clip=1.0, warmup=100),
    )


TASK = TaskEntry(summary=SUMMARY, params=BinaryCopyParams, build=build, preset=preset)
