"""A nanoGPT checkpoint as an `Opened`: what its training script saves, read as data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interp.adapters.drift import drift_of
from interp.adapters.families.parts import Take, heads_of
from interp.adapters.opened import Opened, Processing
from interp.adapters.prompts_of import prompt_layout, tokenizer_folder
from interp.adapters.weight_files import Stored, fingerprint, main_dtype, require_shapes
from interp.decoder import MLP, Attention, Decoder, Layer, Norm
from interp.errors import CheckpointError

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MOST, MOST_LAYERS = 1 << 31, 4096
EPS = 1e-5


def is_nanogpt(content: Any) -> bool:
    """Whether a file of torch.save holds what nanoGPT's train.py writes."""
    return isinstance(content, dict) and isinstance(content.get("model_args"), dict) and "model" in content


def open_nanogpt(path: Path, root: Path, content: dict[str, Any]) -> Opened:
    """The model of a checkpoint file whose content has been read.

    The activation is the exact gelu, as in nanoGPT since June 2023; checkpoints do not say which they had.

    Raises:
        CheckpointError: for sizes that make no model, and for tensors that are missing, unknown, of another shape, or
            not finite.
    """
    args = _args(content["model_args"], path)
    used = _weights(content["model"], path)
    require_shapes(used, _shapes(args), f"{path} (model_args)", optional=["lm_head.weight"])

    w_e = used["wte.weight"].load().to(torch.float32)

    def take(key: str) -> Tensor:
        return w_e if key == "wte.weight" else used[key].load().to(torch.float32)

    if "lm_head.weight" in used and not torch.equal(take("lm_head.weight"), w_e):
        raise CheckpointError(f"{path}: lm_head.weight differs from transformer.wte.weight, which nanoGPT ties")
    decoder = _decoder(args, take, f"nanoGPT ({path.stem})")
    step, dtype = content.get("iter_num"), main_dtype(used)
    tokenizer = tokenizer_folder(path.parent)
    bos, padding = prompt_layout(tokenizer, root)
    return Opened(
        decoder=decoder,
        kind="nanogpt checkpoint",
        dtype=dtype,
        processing=Processing(bos=bos, padding_side=padding),
        tokenizer_path=tokenizer,
        steps=(),
        step=step if type(step) is int and step >= 0 else None,
        fingerprint=fingerprint([path]),
        name=path.parent.name if path.stem == "ckpt" else path.stem,
        path=path,
        drift=drift_of(decoder, dtype),
    )


def _args(body: dict, path: Path) -> SimpleNamespace:
    for name in SIZES:
        value = body.get(name)
        if type(value) is not int or not 1 <= value <= (MOST_LAYERS if name == "n_layer" else MOST):
            raise CheckpointError(f"{path}: model_args.{name} is {value!r:.40}, expected a whole number from 1")
    if body["n_embd"] % body["n_head"]:
        raise CheckpointError(f"{path}: model_args: {body['n_head']} heads do not divide n_embd {body['n_embd']}")
    return SimpleNamespace(**{name: body[name] for name in SIZES}, bias=bool(body.get("bias", True)))


def _weights(model: Any, path: Path) -> dict[str, Stored]:
    """Tensors without the prefixes of compilation and of the inner module, and without the mask buffers."""
    if not isinstance(model, dict) or not all(isinstance(one, Stored) for one in model.values()):
        raise CheckpointError(f"{path}: expected the key 'model' with tensors by name")
    short = {str(key).removeprefix("_orig_mod.").removeprefix("transformer."): one for key, one in model.items()}
    return {key: one for key, one in short.items() if not key.endswith(".attn.bias")}


def _shapes(args: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    d = args.n_embd
    found = {"wte.weight": (args.vocab_size, d), "wpe.weight": (args.block_size, d)}
    found |= {"lm_head.weight": (args.vocab_size, d)}
    matrices = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    inner = {f"h.{layer}.{name}": shape for layer in range(args.n_layer) for name, shape in matrices.items()}
    norms = [f"h.{layer}.{name}" for layer in range(args.n_layer) for name in ("ln_1", "ln_2")] + ["ln_f"]
    for name, shape in {**inner, **{norm: (d,) for norm in norms}}.items():
        found[f"{name}.weight"] = shape
        if args.bias:
            found[f"{name}.bias"] = shape[:1]
    return found


def _decoder(args: SimpleNamespace, take: Take, name: str) -> Decoder:
    def bias(key: str) -> Tensor | None:
        return take(f"{key}.bias") if args.bias else None

    def norm(key: str) -> Norm:
        return Norm(take(f"{key}.weight"), bias(key), EPS, centred=True)

    def layer(index: int) -> Layer:
        at, heads, d = f"h.{index}", args.n_head, args.n_embd
        w_q, w_k, w_v = (heads_of(one, heads) for one in take(f"{at}.attn.c_attn.weight").split(d))
        fused = bias(f"{at}.attn.c_attn")
        biases = [None] * 3 if fused is None else [one.unflatten(0, (heads, -1)) for one in fused.split(d)]
        w_o = take(f"{at}.attn.c_proj.weight").mT.unflatten(0, (heads, -1))  # [head d_head d_model]
        attn = Attention(w_q, w_k, w_v, w_o, *biases, bias(f"{at}.attn.c_proj"), scale=(d // heads) ** -0.5)
        mlp = MLP(
            W_in=take(f"{at}.mlp.c_fc.weight").mT,
            W_out=take(f"{at}.mlp.c_proj.weight").mT,
            b_in=bias(f"{at}.mlp.c_fc"),
            b_out=bias(f"{at}.mlp.c_proj"),
            W_gate=None,
            b_gate=None,
            activation="gelu",
        )
        return Layer(norm(f"{at}.ln_1"), attn, norm(f"{at}.ln_2"), mlp)

    return Decoder(
        W_E=take("wte.weight"),
        W_pos=take("wpe.weight"),
        ln_embed=None,
        layers=tuple(layer(index) for index in range(args.n_layer)),
        ln_final=norm("ln_f"),
        W_U=take("wte.weight").mT,
        b_U=None,
        n_ctx=args.block_size,
        name=name,
    )
