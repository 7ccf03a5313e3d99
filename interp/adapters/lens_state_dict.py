"""A state dict of a TransformerLens HookedTransformer (2.x, 3.x) as an `Opened`, key by key, checked by a forward."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.adapters.agreement import require_agreement
from interp.adapters.drift import drift_of
from interp.adapters.lens_config import is_lens_config, lens_config
from interp.adapters.lens_reference import lens_logits
from interp.adapters.lens_weights import BUFFERS, lens_decoder, lens_processing, lens_shapes
from interp.adapters.opened import Opened
from interp.adapters.prompts_of import tokenizer_folder
from interp.adapters.weight_files import Stored, fingerprint, main_dtype, read_json, require_shapes
from interp.errors import CheckpointError, StoreError

KEY = "embed.W_E"
WRAPPERS = ("_orig_mod.", "module.", "model.")


def lens_tensors(content: Any) -> dict[str, Stored] | None:
    """The state dict in what a file holds: the content itself, or one of its values; None where there is none."""
    places = [content, *content.values()] if isinstance(content, dict) else []
    for place in places:
        if not isinstance(place, dict):
            continue
        plain = {key: value for key, value in place.items() if isinstance(key, str) and isinstance(value, Stored)}
        for prefix in ("", *WRAPPERS):
            if prefix + KEY in plain:
                return {key.removeprefix(prefix): value for key, value in plain.items()}
    return None


def open_lens(path: Path, root: Path, content: dict[str, Any], place: Path | None = None) -> Opened:
    """The model of a weight file whose content has been read.

    Args:
        path: the weight file.
        root: folder that links may not lead out of.
        content: tensors by key, or a dictionary that holds them and perhaps the configuration.
        place: a JSON file with the configuration; None: in the file itself, or beside it.

    Raises:
        StoreError: without a configuration, or for one that makes no model.
        CheckpointError: for tensors that are missing, unknown, of another shape, or not finite.
        NotExpressible: for parts that `Decoder` has no formula for.
    """
    found = lens_tensors(content)
    if found is None:
        raise CheckpointError(f"{path}: has no {KEY}; expected the state dict of a HookedTransformer")
    used = {key: value for key, value in found.items() if not key.endswith(BUFFERS)}
    body, where = _configuration(path, root, content, place)
    cfg = lens_config(body, where, {key: value.shape for key, value in used.items()})
    shapes, optional = lens_shapes(cfg, used)
    require_shapes(used, shapes, f"{where} (HookedTransformer)", optional=optional)
    weights = {key: value.load().to(torch.float32) for key, value in used.items()}
    decoder = lens_decoder(cfg, weights, f"HookedTransformer ({path.stem})")

    def in_double(key: str) -> Tensor | None:
        return None if key not in weights else weights[key].double()

    require_agreement(decoder, lambda tokens: lens_logits(cfg, in_double, tokens))
    dtype = main_dtype(used)
    return Opened(
        decoder=decoder,
        kind="transformer-lens state dict",
        dtype=dtype,
        processing=lens_processing(cfg, weights),
        tokenizer_path=tokenizer_folder(path.parent),
        steps=(),
        step=None,
        fingerprint=fingerprint([path] if where == path else [path, where]),
        name=path.stem,
        path=path,
        drift=drift_of(decoder, dtype),
    )


def _configuration(path: Path, root: Path, content: dict[str, Any], place: Path | None) -> tuple[dict, Path]:
    for value in content.values() if place is None else ():
        if is_lens_config(value):
            return value, path
    beside = [path.with_suffix(".json"), path.parent / "config.json", path.parent / "cfg.json"]
    for file in beside if place is None else [place]:
        if file.is_file() and is_lens_config(body := read_json(file, root)):
            return body, file
    raise StoreError(
        f"{path}: a HookedTransformer's weights without its configuration; write the dictionary `model.cfg.to_dict()` "
        f"as JSON to {beside[0].name} or config.json beside it, with dtype and device as text"
    )
