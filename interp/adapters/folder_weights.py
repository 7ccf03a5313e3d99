"""Every tensor of a Hugging Face folder: one safetensors file, shards with their index, or files of torch.save."""

from pathlib import Path

from interp.adapters.torch_files import read_torch_file
from interp.adapters.weight_files import Stored, merged, read_json, safetensors_stored, shown
from interp.errors import CheckpointError, StoreError

SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ORDER = (SINGLE[0], SHARDED[0], SINGLE[1], SHARDED[1])
MAX_SHARDS = 1000


def has_weights(folder: Path) -> bool:
    """Whether one of the known weight files is there."""
    return any((folder / name).exists() for name in ORDER)


def folder_weights(folder: Path, root: Path) -> tuple[dict[str, Stored], list[Path]]:
    """Tensors by key, and the files that they and their index are in; safetensors where both kinds are there.

    Args:
        root: folder that links may not lead out of.

    Raises:
        StoreError: if there are no weights, or a file is missing or a link out of `root`.
        CheckpointError: for a damaged file, or one that does not hold what the index says.
    """
    for name in ORDER:
        if not (folder / name).exists():
            continue
        if name in SINGLE:
            return stored_in(folder / name, root), [folder / name]
        return _sharded(folder / name, root)
    raise StoreError(f"{folder}: holds no weights; expected one of {', '.join(ORDER)}")


def stored_in(path: Path, root: Path) -> dict[str, Stored]:
    """Tensors of one file by key.

    Raises:
        CheckpointError: for a damaged file, or one of torch.save with anything but tensors by name.
    """
    if path.suffix == ".safetensors":
        return safetensors_stored(path, root)
    found = read_torch_file(path, root)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected tensors by name, found {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Stored):
            raise CheckpointError(f"{path}: {shown(str(key))} is {type(value).__name__}, expected a tensor with a name")
    return found


def _sharded(index: Path, root: Path) -> tuple[dict[str, Stored], list[Path]]:
    places = read_json(index, root).get("weight_map")
    texts = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not texts or not places:
        raise CheckpointError(f"{index}: expected the key 'weight_map' with a file for each tensor")
    names = sorted(set(places.values()))
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(names)} files, at most {MAX_SHARDS} are accepted")
    for name in names:
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index}: {shown(name)} is no name of a weight file in the same folder")
        if not (index.parent / name).exists():
            raise StoreError(f"{index.parent / name}: missing, though {index.name} names it; complete the download")
    found = merged(stored_in(index.parent / name, root) for name in names)
    for key, name in places.items():
        if key not in found or found[key].file.name != name:
            raise CheckpointError(f"{index.parent / name}: has no {shown(key)}, though {index.name} says so")
    return found, [index, *(index.parent / name for name in names)]
