"""The one door to models on disk: what a path holds is told by its files, and nothing of it is run."""

import re
from pathlib import Path
from typing import Any

from interp.adapters.folder_weights import has_weights, stored_in
from interp.adapters.hugging_face import looks_like_hugging_face, open_hugging_face
from interp.adapters.lens_config import is_lens_config
from interp.adapters.lens_state_dict import lens_tensors, open_lens
from interp.adapters.nanogpt import is_nanogpt, open_nanogpt
from interp.adapters.opened import Opened
from interp.adapters.series import is_checkpoint, link_root, only_snapshot, step_folders
from interp.adapters.torch_files import read_torch_file
from interp.adapters.weight_files import read_json
from interp.errors import NotExpressible, StoreError, UnknownName, UsageError
from interp.files import disk_errors

TORCH = (".pt", ".pth", ".ckpt", ".bin")
WEIGHTS = (*TORCH, ".safetensors")
HUB = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
EXPECTED = (
    "expected a run of ours, a Hugging Face folder (config.json with model.safetensors), a folder of them named by "
    "step (step1000, checkpoint-500), a HookedTransformer's weights with its config.json, or nanoGPT's ckpt.pt"
)


def open_model(path: Path | str, *, step: int | None = None) -> Opened:
    """The model at a path: a run, a Hugging Face folder or a series of them, a HookedTransformer, or nanoGPT.

    Args:
        step: the training step, for a run or a series; None: the newest.

    Raises:
        UsageError: for a path that does not exist, or a step where there are none.
        UnknownName: for a step that the run or series does not have.
        StoreError: for a missing or unreadable file, and for a folder that is none of these.
        CheckpointError: for damaged weights, and for files that hold anything but data.
        NotExpressible: for an architecture that cannot be written exactly as a `Decoder`.
    """
    place = _existing(Path(path))
    if not place.is_dir():
        return _single(_open_file(place), place, step)
    from interp.adapters.run_folder import is_run, open_run

    if is_run(place):
        return open_run(place, step)
    if is_run(place.parent.parent) and (place / "MANIFEST.json").is_file():
        return _open_run_checkpoint(place, step)
    if folders := step_folders(place):
        return _open_series(place, folders, step)
    return _single(_open_folder(place), place, step)


def steps_of(path: Path | str) -> tuple[int, ...]:
    """Every step that `open_model` can open at a path, in the order of training; empty for a single model.

    Raises:
        UsageError: for a path that does not exist.
        StoreError: if the folder cannot be read.
    """
    place = _existing(Path(path))
    if not place.is_dir():
        return ()
    from interp.adapters.run_folder import is_run, run_steps

    return run_steps(place) if is_run(place) else tuple(step_folders(place))


def _existing(path: Path) -> Path:
    """The place itself, behind any link; a name of a hub is never looked up."""
    with disk_errors(path):
        if path.exists():
            return path.resolve()
    if HUB.fullmatch(str(path)) and path.suffix not in WEIGHTS:
        raise UsageError(
            f"{path}: no such file or folder; models are read from disk and never looked up on a hub: download it, "
            "then give the path of the folder"
        )
    raise UsageError(f"{path}: no such file or folder")


def _single(opened: Opened, place: Path, step: int | None) -> Opened:
    if step is not None and step != opened.step:
        raise UsageError(f"{place}: holds a single model, so there is no step {step} to choose")
    return opened


def _open_run_checkpoint(place: Path, step: int | None) -> Opened:
    from interp.adapters.run_folder import open_run
    from interp.checkpoint import read_checkpoint

    own = read_checkpoint(place, optim=False).step
    if step not in (None, own):
        raise UsageError(f"{place}: is the checkpoint of step {own}; for step {step} give the folder of the run")
    return open_run(place.parent.parent, own)


def _open_series(place: Path, folders: dict[int, Path], step: int | None) -> Opened:
    """One step of a series; without a step the finished model beside the steps, or the newest step."""
    steps = tuple(folders)
    if step is None and is_checkpoint(place):
        return open_hugging_face(place, link_root(place), kind="hugging face series", steps=steps)
    step = steps[-1] if step is None else step
    if step not in folders:
        raise UnknownName(f"step of {place.name!r}:", str(step), map(str, steps))
    return open_hugging_face(
        folders[step], place, kind="hugging face series", step=step, steps=steps, name=f"{place.name}"
    )


def _open_folder(place: Path) -> Opened:
    if (snapshot := only_snapshot(place)) is not None:
        return open_hugging_face(snapshot, place, name=place.name)
    root, config = link_root(place), place / "config.json"
    body = read_json(config, root) if config.exists() else {}
    if is_lens_config(body) and "model_type" not in body:
        return _open_lens_folder(place, root, config)
    if "model_type" in body:
        return open_hugging_face(place, root)
    if (place / "ckpt.pt").exists():
        return _open_file(place / "ckpt.pt")
    if body and has_weights(place):
        raise StoreError(f"{config}: has neither a model_type nor the fields of a HookedTransformer; {EXPECTED}")
    raise StoreError(f"{place}: is no model that can be read; {EXPECTED}")


def _open_lens_folder(place: Path, root: Path, config: Path) -> Opened:
    with disk_errors(place):
        files = sorted(file for file in place.iterdir() if file.suffix in WEIGHTS)
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:4]) or "none"
        raise StoreError(f"{place}: expected one file of weights beside config.json, found {names}; name the file")
    return open_lens(files[0], root, _content(files[0], root), config)


def _open_file(path: Path) -> Opened:
    root = link_root(path.parent)
    if path.suffix not in WEIGHTS:
        raise StoreError(f"{path}: is no file of weights ({', '.join(TORCH)} or .safetensors); {EXPECTED}")
    content = _content(path, root)
    if is_nanogpt(content):
        return open_nanogpt(path, root, content)
    if lens_tensors(content) is not None:
        return open_lens(path, root, content)
    if isinstance(content, dict) and looks_like_hugging_face(key for key in content if isinstance(key, str)):
        raise UsageError(f"{path}: is a weight file of a Hugging Face model; give its folder, which has config.json")
    keys = ", ".join(str(key) for key in list(content)[:4]) if isinstance(content, dict) else type(content).__name__
    raise NotExpressible(f"{path}: is of no known architecture (it holds {keys:.120}); {EXPECTED}")


def _content(path: Path, root: Path) -> Any:
    return stored_in(path, root) if path.suffix == ".safetensors" else read_torch_file(path, root)
