"""A run's model as a Hugging Face folder: configuration, weights and tokenizer, opened and checked once written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from circuits.interchange.files import write_bytes, write_object
from circuits.interchange.hf_gpt2 import GPT2
from circuits.interchange.hf_llama import LLAMA
from circuits.interchange.hf_mbart import MBART
from circuits.interchange.hf_neox import GPT_NEOX
from circuits.interchange.hf_parts import Architecture, Tensors
from interp.decoder import decoder_of, forward
from interp.model import Transformer
from interp.rng import generator

ARCHITECTURES: tuple[Architecture, ...] = (GPT2, GPT_NEOX, LLAMA, MBART)
OWN = "interp_transformer"  # model_type of a folder that no Hugging Face class computes
CHECKED = 16  # random sequences that the folder is checked on


@dataclass(frozen=True)
class Expressed:
    """A model in the terms of an architecture.

    Attributes:
        architecture: None where no Hugging Face class computes the model; the weights then keep our names.
        reasons: what each architecture has no formula for, by class; empty where one was found.
        notes: what was added or moved without any effect.
    """

    architecture: str | None
    config: dict[str, Any]
    tensors: Tensors
    reasons: dict[str, list[str]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogitCheck:
    """The folder, opened by transformers, against this program's own float64 formulas.

    Attributes:
        largest: difference of logits of the folder in float32.
        own: the same of this program in float32: what rounding alone does.
    """

    largest: float
    own: float
    sequences: int
    positions: int


def expressed(model: Transformer) -> Expressed:
    """The model in the terms of the first architecture that computes it, else in our own."""
    decoder, reasons = decoder_of(model), {}
    for architecture in ARCHITECTURES:
        missing = architecture.limits(decoder)
        if not missing:
            config = {"architectures": [architecture.name], "model_type": architecture.model_type}
            config |= {"dtype": "float32", **architecture.config(decoder)}
            return Expressed(
                architecture.name, config, architecture.tensors(decoder), {}, tuple(architecture.notes(decoder))
            )
        reasons[architecture.name] = missing
    config = {"model_type": OWN, "format": 1, "dtype": "float32", "model": model.cfg.model_dump(mode="json")}
    return Expressed(None, config, model.state_dict(), reasons)


def write_weights(folder: Path, found: Expressed) -> None:
    """Write config.json and model.safetensors; equal models give equal bytes."""
    tensors = {key: value.detach().float().contiguous().cpu() for key, value in found.tensors.items()}
    unique = {key: value.clone() for key, value in tensors.items()}  # no two keys may share memory in the file
    write_bytes(folder / "model.safetensors", save(unique, metadata={"format": "pt"}))
    write_object(folder / "config.json", found.config, indent=2)


def write_tokenizer(folder: Path, tokens: tuple[str, ...]) -> None:
    """Write tokenizer.json: the task's words, divided by blanks."""
    vocabulary = {name: index for index, name in enumerate(tokens)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    write_object(folder / "tokenizer.json", body, indent=1)
    write_object(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=1)


def checked(folder: Path, model: Transformer) -> LogitCheck:
    """Open the folder with transformers, offline and without code of its own, and compare logits."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    decoder = decoder_of(model)
    shape = (CHECKED, decoder.n_ctx)
    tokens = torch.randint(decoder.W_E.shape[0], shape, generator=generator(0, "hugging face folder"))
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.no_grad():
        theirs = loaded.eval()(tokens).logits
        exact, ours = forward(decoder.to(torch.float64), tokens), forward(decoder, tokens)
    return LogitCheck(_largest(theirs, exact), _largest(ours, exact), *shape)


def _largest(one: Tensor, exact: Tensor) -> float:
    return float((one.double() - exact).abs().max())
