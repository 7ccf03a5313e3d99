"""One checkpoint of a run written as a Hugging Face folder, with where it comes from."""

from pathlib import Path

from circuits.interchange.export import Exported
from circuits.interchange.files import finished_folder
from circuits.interchange.hf_card import Origin, belongs_to, write_card
from circuits.interchange.hf_folder import checked, expressed, write_tokenizer, write_weights
from circuits.stored import newest_circuit
from interp.config import DataConfig
from interp.errors import UsageError
from interp.files import read_bytes
from interp.provenance import code_version
from interp.run import Run
from interp.run_summary import final_accuracy
from interp.tasks.base import Task
from interp.train import load_model

MAX_CARD = 1 << 20
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")


def export_model(run: Run, step: int | None, folder: Path) -> Exported:
    """Write the folder, open it with transformers where one of its classes computes the model, and compare logits.

    All that happens in a hidden folder beside it, so that an export that is interrupted changes nothing.

    Raises:
        UnknownName, CheckpointError: for a checkpoint that is not there or damaged.
        UsageError: for a folder that holds another model, which would be written over.
        StoreError: if a file cannot be written.
    """
    _require_free(folder, run.name)
    model, task, checkpoint = load_model(run, step)
    found = expressed(model)
    with finished_folder(folder, FILES[::-1]) as hidden:
        write_weights(hidden, found)
        write_tokenizer(hidden, task.vocabulary.tokens)
        check = None if found.architecture is None else checked(hidden, model)
        write_card(hidden, found, _origin(run, task, checkpoint.step, checkpoint.hash), check)
    if check is None:
        lacking = min(found.reasons.items(), key=lambda item: len(item[1]))
        notes = [f"no Hugging Face class computes this model; {lacking[0]} lacks: {'; '.join(lacking[1])}"]
    else:
        notes = [f"opens as {found.architecture}; logits differ by at most {check.largest:.1e}", *found.notes]
    return Exported(run.name, checkpoint.step, None, {name: folder / name for name in FILES}, notes)


def _require_free(folder: Path, name: str) -> None:
    """Refuse a folder with files of these names that are not those of an earlier export of the same run."""
    there = [file for file in FILES if (folder / file).exists()]
    own = folder / "README.md"
    if there and not (own.is_file() and belongs_to(read_bytes(own, MAX_CARD).decode("utf-8", "replace"), name)):
        raise UsageError(
            f"{folder}: holds {there[0]} that no finished export of {name} wrote; remove it, or give another folder "
            "with -o"
        )


def _origin(run: Run, task: Task, step: int, checkpoint: str) -> Origin:
    last = max((ref.step for ref in run.checkpoints(rolling=True)), default=step)
    stored = newest_circuit(run, step)
    length = next((one for one in task.lengths if one >= 3), task.lengths[-1])
    example = task.split(run.config.seed, DataConfig(per_length=2)).train[length]
    return Origin(
        run=run.name,
        step=step,
        task=run.config.task,
        summary=task.summary,
        params=task.params.model_dump(mode="json"),
        seed=run.config.seed,
        checkpoint=checkpoint,
        config_hash=run.config.hash(),
        code_version=code_version(),
        accuracy=final_accuracy(run.metrics()) if step == last else {},
        example=tuple(task.vocabulary.names(example[0])) if len(example) else (),
        circuit="" if stored is None else str(stored.data.get("headline", "")),
    )
