"""Reads run folders into the short forms that the command line and JSON outputs show; loads no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from interp.errors import InterpError
from interp.run import Store
from interp.schemas import CheckpointItem, CompareOutput, Difference, RunItem, RunOutput


def final_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Held-out sequence accuracy by length from the newest row that has it; empty before the first evaluation."""
    for row in reversed(rows):
        if row.get("final"):
            return dict(sorted((int(length), score["sequence"]) for length, score in row["final"].items()))
        if row.get("accuracy"):
            return dict(sorted((int(length), value) for length, value in row["accuracy"].items()))
    return {}


def lowest(accuracy: Mapping[int, float]) -> float | None:
    """Accuracy at the worst length; None where nothing was evaluated."""
    return min(accuracy.values(), default=None)


def item(store: Store, name: str) -> RunItem:
    """One run in short; a damaged one is shown with its error instead of hiding the others."""
    try:
        run = store.run(name)
        config, status, accuracy = run.config, run.status(), final_accuracy(run.metrics())
    except InterpError as error:
        return RunItem(
            name=name, state="damaged", task=None, seed=None, step=None, accuracy=None, updated=None, message=str(error)
        )
    return RunItem(
        name=name,
        state=status.state,
        task=config.task,
        seed=config.seed,
        step=status.step,
        accuracy=lowest(accuracy),
        updated=str(status.updated) if status.updated else None,
        message=status.message or "",
    )


def details(store: Store, name: str) -> RunOutput:
    """Everything `interp runs show` prints.

    Raises:
        UnknownName, StoreError: if there is no such run or it cannot be read.
    """
    run = store.run(name)
    rows = run.metrics()
    return RunOutput(
        run=item(store, name),
        path=str(run.path),
        config=run.config.model_dump(mode="json"),
        config_hash=run.config.hash(),
        environment=run.environment(),
        checkpoints=[CheckpointItem(step=one.step, rolling=one.rolling) for one in run.checkpoints(rolling=True)],
        last_metrics=dict(rows[-1]) if rows else None,
        accuracy_by_length=final_accuracy(rows),
        events=run.events(),
    )


def compare(store: Store, names: Sequence[str]) -> CompareOutput:
    """What differs between runs: configuration, environment, accuracy at each length.

    Raises:
        UnknownName, StoreError: if one of them does not exist or cannot be read.
    """
    runs = [store.run(name) for name in names]
    accuracies = [final_accuracy(run.metrics()) for run in runs]
    return CompareOutput(
        runs=[item(store, name) for name in names],
        config=differences([run.config.model_dump(mode="json") for run in runs]),
        environment=differences([run.environment() for run in runs]),
        accuracy_by_length={
            length: [accuracy.get(length) for accuracy in accuracies]
            for length in sorted({length for accuracy in accuracies for length in accuracy})
        },
    )


def differences(values: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Dotted keys at which nested mappings are not all equal."""
    flat = [flattened(value) for value in values]
    keys = sorted({key for one in flat for key in one})
    columns = {key: [one.get(key) for one in flat] for key in keys}
    return [
        Difference(key=key, values=column)
        for key, column in columns.items()
        if any(value != column[0] for value in column)
    ]


def flattened(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        here = f"{path}{key}"
        leaves |= flattened(inner, f"{here}.") if isinstance(inner, Mapping) else {here: inner}
    return leaves
