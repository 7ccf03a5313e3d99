"""A run of ours as an `Opened`."""

from pathlib import Path

from interp.adapters.folder_weights import has_weights
from interp.adapters.opened import Opened, Processing
from interp.decoder import decoder_of
from interp.run import Run, Store
from interp.train import load_model


def is_run(folder: Path) -> bool:
    """Whether a folder is laid out as a run: a model with its weights beside config.json is none."""
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir() and not has_weights(folder)


def run_of(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        StoreError: if it is damaged.
    """
    return Store(folder.parent).run(folder.name)


def run_steps(folder: Path) -> tuple[int, ...]:
    """Steps of its checkpoints."""
    return tuple(ref.step for ref in run_of(folder).checkpoints())


def open_run(folder: Path, step: int | None) -> Opened:
    """The model of one checkpoint, the newest that verifies if no step is given.

    Its task puts its own first token; prompts are of one length, or padded on the right.

    Raises:
        UnknownName: if there is no checkpoint of that step.
        CheckpointError: if it is damaged.
    """
    run = run_of(folder)
    model, _, checkpoint = load_model(run, step)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.model.values()}
    return Opened(
        decoder=decoder_of(model),
        kind="interp run",
        dtype=", ".join(sorted(dtypes)),
        processing=Processing(bos=False, padding_side="right"),
        tokenizer_path=None,
        steps=run_steps(folder),
        step=checkpoint.step,
        fingerprint=checkpoint.hash,
        name=run.name,
        path=folder,
    )
