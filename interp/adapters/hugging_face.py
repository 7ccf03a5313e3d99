"""A Hugging Face folder on disk as an `Opened`: GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, mBART's decoder, our own."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.adapters.drift import drift_of
from interp.adapters.families.gpt2 import GPT2
from interp.adapters.families.gpt_neox import GPT_NEOX
from interp.adapters.families.llama import LLAMA
from interp.adapters.families.mbart import MBART
from interp.adapters.families.parts import SLIDING, Family
from interp.adapters.folder_weights import folder_weights
from interp.adapters.opened import Kind, Opened, Processing
from interp.adapters.own_folder import MODEL_TYPE, own_decoder
from interp.adapters.prompts_of import prompt_layout, tokenizer_folder
from interp.adapters.weight_files import Stored, fingerprint, main_dtype, read_json, require_shapes, shown
from interp.decoder import Decoder
from interp.errors import CheckpointError, NotExpressible, StoreError

FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "mbart": MBART,
}
KNOWN_AGAINST = {"qwen3": "a norm on queries and keys (qk-norm)", "gemma2": "norms after attention and soft caps"}
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # change nothing here, but transformers checks them aloud
MOST = 1 << 31  # of any number in a configuration
MOST_LAYERS = 4096


def open_hugging_face(
    folder: Path,
    root: Path,
    *,
    kind: Kind = "hugging face folder",
    step: int | None = None,
    steps: tuple[int, ...] = (),
    name: str | None = None,
) -> Opened:
    """The model of a folder with config.json and weights. Nothing is downloaded, and no code of the folder is run.

    Args:
        root: folder that links may not lead out of; also where a tokenizer is looked for after `folder`.

    Raises:
        StoreError: for a missing or unreadable file.
        CheckpointError: for damaged weights, or weights that are not those of the configuration.
        NotExpressible: for an architecture, or a part of it, that `Decoder` has no formula for.
    """
    place = folder / "config.json"
    body = read_json(place, root)
    own = body.get("model_type") == MODEL_TYPE
    family, config = (None, None) if own else (family_of(body, place), configuration(body, place))
    found, files = folder_weights(folder, root)
    decoder, used = (own_decoder(body, found, place), found) if own else decoder_from(family, config, found, folder)
    dtype = main_dtype(used)
    tokenizer = tokenizer_folder(folder, root)
    bos, padding = prompt_layout(tokenizer, root)
    return Opened(
        decoder=decoder,
        kind=kind,
        dtype=dtype,
        processing=Processing(bos=bos, padding_side=padding),
        tokenizer_path=tokenizer,
        steps=steps,
        step=step,
        fingerprint=fingerprint([place, *files]),
        name=name or folder.name,
        path=folder,
        drift=drift_of(decoder, dtype),
    )


def family_of(body: dict, place: Path) -> Family:
    """The family of a configuration.

    Raises:
        NotExpressible: for one that `Decoder` has no formula for, or that nobody has checked.
        StoreError: for a configuration without a type.
    """
    kind = body.get("model_type")
    if not isinstance(kind, str):
        raise StoreError(f"{place}: has no model_type, so it is no configuration of a Hugging Face model")
    if body.get("quantization_config"):
        raise NotExpressible(f"{place}: the weights are quantised; use the folder of the unquantised model")
    if kind in KNOWN_AGAINST:
        raise NotExpressible(f"{place}: model_type {kind!r} has {KNOWN_AGAINST[kind]}, which a Decoder cannot express")
    if kind not in FAMILIES:
        near = get_close_matches(kind, FAMILIES, n=1, cutoff=0.8)
        nearest = f"; did you mean {near[0]!r}?" if near else ""
        raise NotExpressible(
            f"{place}: unknown model_type {shown(kind)!r}{nearest}; architectures read from disk are "
            f"{', '.join(FAMILIES)}; others are patched through interp.adapters.nnsight"
        )
    return FAMILIES[kind]


def configuration(body: dict, place: Path) -> Any:
    """The configuration with every default filled in by transformers, which runs nothing of the folder.

    Raises:
        StoreError: for values that make no model.
        NotExpressible: for parts that `Decoder` has no formula for, each named.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    _require_small(body, place)
    try:
        config = CONFIG_MAPPING[body["model_type"]].from_dict(body | dict.fromkeys(TOKENS))
        _require_sizes(config)
        limits = FAMILIES[body["model_type"]].limits(config)
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{place}: is not a valid configuration ({reason})") from None
    if limits:
        raise NotExpressible(f"{place}: cannot be written exactly as a Decoder: {'; '.join(limits)}")
    return config


def _require_sizes(config: Any) -> None:
    """Refuse sizes that transformers accepts, but that make no model, with a ValueError."""
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", 1)
    sizes = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": config.hidden_size}
    sizes |= {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_position_embeddings}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}")
    if config.hidden_size % heads and not getattr(config, "head_dim", None):
        raise ValueError(f"{heads} heads do not divide the width {config.hidden_size}")
    if heads % groups:
        raise ValueError(f"{groups} key heads do not divide {heads} heads")
    if (window := getattr(config, "sliding_window", None)) is not None and config.model_type in SLIDING and window < 1:
        raise ValueError(f"sliding_window is {window}")


def _require_small(body: dict, place: Path) -> None:
    for key, value in body.items():
        if type(value) is int and abs(value) > MOST:
            raise StoreError(f"{place}: {shown(key)} is {value:.3g}, at most {MOST} is accepted")
    for key in ("n_layer", "num_hidden_layers", "decoder_layers"):
        value = body.get(key)
        if type(value) is int and not 1 <= value <= MOST_LAYERS:
            raise StoreError(f"{place}: {key} is {value}, expected 1 to {MOST_LAYERS}")


def decoder_from(
    family: Family, config: Any, found: dict[str, Stored], folder: Path
) -> tuple[Decoder, dict[str, Stored]]:
    """The decoder, and the tensors that it was made of.

    Raises:
        CheckpointError: for tensors that are missing, unknown, of another shape, or not finite.
    """
    used = {key: stored for key, stored in found.items() if not key.endswith(BUFFERS)}
    prefix = family.prefix if any(key.startswith(family.prefix) for key in used) else ""
    shapes = {prefix + key: shape for key, shape in family.shapes(config).items()}
    embedding = prefix + family.embedding
    unembedding = next((key for key in family.unembedding if key in used), family.unembedding[0])
    shapes[unembedding] = shapes[embedding]
    tied = bool(config.tie_word_embeddings)
    what = f"{folder / 'config.json'} ({config.model_type})"
    require_shapes(used, shapes, what, optional=[unembedding] if tied else ())

    def take(key: str) -> Tensor:
        return used[key].load().to(torch.float32)

    w_e = take(embedding)
    w_u = take(unembedding) if unembedding in used else w_e
    if tied and not torch.equal(w_u, w_e):
        raise CheckpointError(
            f"{used[unembedding].file}: {unembedding} differs from {embedding}, though {what} ties them; set "
            "tie_word_embeddings to what was trained"
        )
    held = {family.embedding: w_e}  # in memory once, also where it is the unembedding

    def values(key: str) -> Tensor:
        return held[key] if key in held else take(prefix + key)

    name = f"{config.model_type} ({folder.name})"
    decoder = family.build(config, values, w_e if tied else w_u, name)
    return decoder, used


def looks_like_hugging_face(keys: Iterable[str]) -> bool:
    """Whether a weight file by itself is one of a Hugging Face model."""
    firsts = tuple(family.prefix for family in FAMILIES.values())
    return any(key.startswith(firsts) for key in keys)
