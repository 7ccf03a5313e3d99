"""The tools that people patch with today, on the same weights: TransformerLens, nnsight, pyvene, our own hooks."""

import contextlib
import importlib.util
import io
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks._patching_cases import Problem
from benchmarks._patching_lean import Patches
from benchmarks._patching_timing import Entrant
from circuits.patching_reference import Patch, record, run_patched, z_name
from interp.decoder import Decoder
from interp.errors import NotExpressible
from interp.model import Transformer

ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
NO_AUTOCIRCUIT = "does not import beside TransformerLens 4; see benchmarks.patching_autocircuit"


def peers(problem: Problem) -> tuple[list[Entrant], dict[str, str]]:
    """The tools that can run this model here, and why the others cannot."""
    entrants, skipped = [], {"autocircuit": NO_AUTOCIRCUIT}
    if isinstance(problem.model, Transformer):
        entrants.append(own_hooks(problem, problem.model))
    for name, build in (("transformer_lens", lens), ("nnsight", nnsight), ("pyvene", pyvene)):
        if importlib.util.find_spec(name) is None:
            skipped[name] = "not installed"
            continue
        try:
            entrants.append(build(problem))
        except NotExpressible as error:
            skipped[name] = str(error)
    return entrants, skipped


def own_hooks(problem: Problem, model: Transformer) -> Entrant:
    """One `run_with_hooks` of our Transformer per patch."""

    def prepare() -> tuple[dict[str, Tensor], Tensor]:
        source = record(model, problem.clean, [z_name(layer) for layer in range(model.cfg.n_layers)])
        return source, problem.value(model(problem.corrupted))

    def run(state: tuple[dict[str, Tensor], Tensor], patches: Patches) -> Float[Tensor, "pair patch"]:
        source, base = state
        effects = []
        for layer, head, pos in patches.tolist():
            name = z_name(layer)
            patch = Patch(name, pos, source[name][:, pos, head], head)
            effects.append(problem.value(run_patched(model, problem.corrupted, [patch])) - base)
        return torch.stack(effects, 1)

    return Entrant("hooks", prepare, run)


def lens(problem: Problem) -> Entrant:
    """TransformerLens' own helper over a TransformerBridge: its native model for toys, else one over Hugging Face's.

    The native model is the faster of the two on toys. Only the head outputs are cached.
    """
    import pandas as pd
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.patching import get_act_patch_attn_head_out_by_pos

    if problem.case.shape.family == "toy":
        bridge = native(problem.decoder)
    else:
        model = gpt2(problem.decoder)
        bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config).eval()

    def prepare() -> tuple[Any, Tensor]:
        _, cache = bridge.run_with_cache(problem.clean, names_filter=lambda name: name.endswith("hook_z"))
        return cache, problem.value(bridge(problem.corrupted))

    def run(state: tuple[Any, Tensor], patches: Patches) -> Float[Tensor, "pair patch"]:
        cache, base = state
        table = pd.DataFrame(patches[:, [0, 2, 1]].tolist(), columns=["layer", "pos", "head"])
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            found = get_act_patch_attn_head_out_by_pos(
                bridge, problem.corrupted, cache, problem.value, index_axis_names=None, index_df=table, reduce="none"
            )
        return found.values.T - base[:, None]

    return Entrant("transformer_lens", prepare, run)


def nnsight(problem: Problem) -> Entrant:
    """One nnsight trace per patch, over Hugging Face's GPT-2."""
    from nnsight import NNsight, save

    model, d_head = NNsight(gpt2(problem.decoder)), problem.decoder.d_model // problem.decoder.n_heads
    layers = range(len(problem.decoder.layers))

    def prepare() -> tuple[list[Tensor], Tensor]:
        with model.trace(problem.clean):
            source = save([model.transformer.h[layer].attn.c_proj.input for layer in layers])
        with model.trace(problem.corrupted):
            logits = model.lm_head.output.save()
        return source, problem.value(logits)

    def run(state: tuple[list[Tensor], Tensor], patches: Patches) -> Float[Tensor, "pair patch"]:
        source, base = state
        effects = []
        for layer, head, pos in patches.tolist():
            own = slice(head * d_head, (head + 1) * d_head)
            with model.trace(problem.corrupted):
                model.transformer.h[layer].attn.c_proj.input[:, pos, own] = source[layer][:, pos, own]
                logits = model.lm_head.output.save()
            effects.append(problem.value(logits) - base)
        return torch.stack(effects, 1)

    return Entrant("nnsight", prepare, run)


def pyvene(problem: Problem) -> Entrant:
    """One pyvene intervention per patch, over Hugging Face's GPT-2; as documented, each call runs the source again."""
    import pyvene

    model = gpt2(problem.decoder)
    one_head = {"component": "head_attention_value_output", "unit": "h.pos", "max_number_of_units": 1}
    wrapped = [
        pyvene.IntervenableModel(
            pyvene.IntervenableConfig([{"layer": layer, **one_head}], intervention_types=pyvene.VanillaIntervention),
            model,
        )
        for layer in range(len(problem.decoder.layers))
    ]

    def prepare() -> Tensor:
        return problem.value(model(problem.corrupted).logits)

    def run(base: Tensor, patches: Patches) -> Float[Tensor, "pair patch"]:
        effects = []
        for layer, head, pos in patches.tolist():
            where = [[[[head]], [[pos]]]] * len(base)
            _, out = wrapped[layer](
                base={"input_ids": problem.corrupted},
                sources=[{"input_ids": problem.clean}],
                unit_locations={"sources->base": (where, where)},
            )
            effects.append(problem.value(out.logits) - base)
        return torch.stack(effects, 1)

    return Entrant("pyvene", prepare, run)


def require_gpt2_style(decoder: Decoder) -> None:
    """Raise NotExpressible for what GPT-2 has no place for."""
    layer = decoder.layers[0]
    reasons = {
        "no learned positions": decoder.W_pos is None,
        "a norm after the embedding": decoder.ln_embed is not None,
        "attention that adds to the normed stream": layer.adds_to_normed,
        "no MLP, or a gated one": layer.mlp is None or layer.mlp.W_gate is not None,
        "no LayerNorm": layer.ln1 is None or not layer.ln1.centred,
        "a bias of the unembedding": decoder.b_U is not None and bool(decoder.b_U.any()),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise NotExpressible(f"a model with {', '.join(found)} is not written as a GPT-2")


@torch.no_grad()
def gpt2(decoder: Decoder) -> nn.Module:
    """Hugging Face's GPT-2 with the decoder's weights.

    Raises:
        NotExpressible: for a decoder that is not in the style of GPT-2.
    """
    import transformers

    require_gpt2_style(decoder)
    mlp, tied = decoder.layers[0].mlp, decoder.W_U.data_ptr() == decoder.W_E.data_ptr()
    config = transformers.GPT2Config(
        vocab_size=decoder.W_E.shape[0],
        n_embd=decoder.d_model,
        n_layer=len(decoder.layers),
        n_head=decoder.n_heads,
        n_positions=decoder.n_ctx,
        n_inner=mlp.W_in.shape[1],
        activation_function=ACTIVATION[mlp.activation],
        layer_norm_epsilon=decoder.layers[0].ln1.eps,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    state = {"transformer.wte.weight": decoder.W_E, "transformer.wpe.weight": decoder.W_pos}
    state |= {"lm_head.weight": decoder.W_U.mT} | _norm("transformer.ln_f", decoder.ln_final)
    for number, layer in enumerate(decoder.layers):
        attn, mlp, stem = layer.attn, layer.mlp, f"transformer.h.{number}."
        state |= _norm(f"{stem}ln_1", layer.ln1) | _norm(f"{stem}ln_2", layer.ln2)
        state[f"{stem}attn.c_attn.weight"] = torch.cat(
            [w.transpose(0, 1).flatten(1) for w in (attn.W_Q, attn.W_K, attn.W_V)], 1
        )
        state[f"{stem}attn.c_attn.bias"] = torch.cat([_flat(b, attn.W_Q) for b in (attn.b_Q, attn.b_K, attn.b_V)])
        state[f"{stem}attn.c_proj.weight"] = attn.W_O.flatten(0, 1)
        state |= {f"{stem}mlp.c_fc.weight": mlp.W_in, f"{stem}mlp.c_proj.weight": mlp.W_out}
        for name, bias in (("attn.c_proj", attn.b_O), ("mlp.c_fc", mlp.b_in), ("mlp.c_proj", mlp.b_out)):
            state |= {} if bias is None else {f"{stem}{name}.bias": bias}
    _load(model, state)
    return model


@torch.no_grad()
def native(decoder: Decoder) -> Any:
    """TransformerLens' native model in a bridge, with the decoder's weights.

    Raises:
        NotExpressible: for a decoder that is not in the style of GPT-2.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    require_gpt2_style(decoder)
    layer = decoder.layers[0]
    config = TransformerBridgeConfig(
        d_model=decoder.d_model,
        d_head=layer.attn.W_Q.shape[2],
        n_layers=len(decoder.layers),
        n_ctx=decoder.n_ctx,
        n_heads=decoder.n_heads,
        d_vocab=decoder.W_E.shape[0],
        d_mlp=layer.mlp.W_in.shape[1],
        act_fn=ACTIVATION[layer.mlp.activation],
        normalization_type="LN",
        eps=layer.ln1.eps,
    )
    bridge = TransformerBridge.boot_native(config).eval().requires_grad_(False)
    state = {"tok_embed.weight": decoder.W_E, "pos.weight": decoder.W_pos, "head.weight": decoder.W_U.mT}
    state |= _norm("ln_out", decoder.ln_final)
    for number, layer in enumerate(decoder.layers):
        attn, mlp, stem = layer.attn, layer.mlp, f"layers.{number}."
        state |= _norm(f"{stem}ln1", layer.ln1) | _norm(f"{stem}ln2", layer.ln2)
        for letter, bias in (("Q", attn.b_Q), ("K", attn.b_K), ("V", attn.b_V)):
            weight = getattr(attn, f"W_{letter}")
            state[f"{stem}attn.{letter.lower()}.weight"] = weight.transpose(1, 2).flatten(0, 1)
            state[f"{stem}attn.{letter.lower()}.bias"] = _flat(bias, weight)
        state[f"{stem}attn.o.weight"] = attn.W_O.flatten(0, 1).mT
        state |= {f"{stem}mlp.fc_in.weight": mlp.W_in.mT, f"{stem}mlp.fc_out.weight": mlp.W_out.mT}
        for name, bias in (("attn.o", attn.b_O), ("mlp.fc_in", mlp.b_in), ("mlp.fc_out", mlp.b_out)):
            state |= {} if bias is None else {f"{stem}{name}.bias": bias}
    _load(bridge.original_model, state)
    return bridge


def _norm(stem: str, norm: Any) -> dict[str, Tensor]:
    return {f"{stem}.weight": norm.w, f"{stem}.bias": torch.zeros_like(norm.w) if norm.b is None else norm.b}


def _flat(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0] * weight.shape[2]) if bias is None else bias.flatten()


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy named weights; parameters that are not named are biases, and become 0."""
    own = {name.replace("_original_component.", ""): value for name, value in model.named_parameters()}
    for name in own.keys() - state.keys():
        if not name.endswith("bias"):
            raise NotExpressible(f"{name} has no counterpart in the decoder")
        own[name].zero_()
    for name, value in state.items():
        if name in own:  # a tied unembedding is not listed a second time
            own[name].copy_(value)
        elif name != "lm_head.weight":
            raise NotExpressible(f"the model has no {name}")
