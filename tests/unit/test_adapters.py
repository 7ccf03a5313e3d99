"""Bridges of small random models are written as decoders exactly, or refused with the reason."""

import dataclasses
import subprocess
import sys

import pytest
import tokenizers
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from interp.adapters.agreement import agreement, require_agreement
from interp.adapters.bridge import decoder_of_bridge
from interp.adapters.decoders import decoder_for
from interp.config import ModelConfig
from interp.decoder import Decoder, decoder_of, forward
from interp.errors import NotExpressible, UsageError
from interp.model import Transformer
from tests.unit.random_bridges import (
    DOUBLE,
    FAMILIES,
    GPT2,
    GROUPED,
    HUGGING_FACE,
    LAYERS,
    N_CTX,
    NATIVES,
    PATCHED,
    SIZES,
    VOCAB,
    assert_equal_to_rounding,
    bridge_of,
    hugging_face,
    native,
    rope,
    some_tokens,
    wrapped,
)


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_decoder_equals_the_hugging_face_model_before_it_was_wrapped(name):
    model = hugging_face(*HUGGING_FACE[name], torch.float64 if name in DOUBLE else torch.float32)
    tokens = some_tokens()
    logits = model(tokens).logits
    decoder = decoder_for(wrapped(model))
    assert_equal_to_rounding(logits, decoder, lambda some: forward(some, tokens))
    assert decoder.n_ctx == N_CTX and len(decoder.layers) == LAYERS


@torch.no_grad()
@pytest.mark.parametrize("name", NATIVES)
def test_decoder_equals_its_native_bridge(name):
    bridge, tokens = bridge_of(name), some_tokens()
    decoder = decoder_of_bridge(bridge)
    assert_equal_to_rounding(bridge(tokens), decoder, lambda some: forward(some, tokens))


@torch.no_grad()
@pytest.mark.parametrize("name", [*FAMILIES, "native"])
def test_processed_bridge_gives_its_processed_weights(name):
    bridge, tokens = bridge_of(name), some_tokens()
    before = decoder_of_bridge(bridge)
    bridge.enable_compatibility_mode(disable_warnings=True)
    after = decoder_of_bridge(bridge)
    assert_equal_to_rounding(bridge(tokens), after, lambda some: forward(some, tokens))
    assert bool((after.layers[0].ln1.w == 1).all()) and not bool((before.layers[0].ln1.w == 1).any())
    assert after.W_U.mean(1).abs().max() < 1e-6 < before.W_U.mean(1).abs().max(), "the unembedding is centred"


@torch.no_grad()
def test_bridge_that_ignores_a_setting_is_followed_rather_than_its_model():
    model = hugging_face("GPT2", "LMHeadModel", {**GPT2, "scale_attn_weights": False}, torch.float64)
    tokens = some_tokens()
    unwrapped = model(tokens).logits
    bridge = wrapped(model)
    logits = forward(decoder_of_bridge(bridge), tokens)
    assert (logits - bridge(tokens)).abs().max() < 1e-10
    assert (logits - unwrapped).abs().max() > 1e-3, "transformers leaves these scores unscaled, the bridge does not"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_16_bit_bridge_is_accepted_in_its_own_precision(name, dtype):
    bridge = bridge_of(name, dtype)
    decoder = decoder_of_bridge(bridge)
    assert decoder.W_E.dtype == dtype
    assert agreement(decoder, bridge).holds


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_folder_that_transformer_lens_boots_is_read(tmp_path, name):
    model, tokens = hugging_face(*HUGGING_FACE[name]), some_tokens()
    model.save_pretrained(tmp_path)
    words = tokenizers.models.WordLevel({str(token): token for token in range(VOCAB)}, unk_token="0")
    specials = {"bos_token": "1", "eos_token": "2", "pad_token": "2"}
    own = tokenizers.Tokenizer(words)
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **specials).save_pretrained(tmp_path)
    decoder = decoder_for(TransformerBridge.boot_transformers(str(tmp_path), device="cpu"))
    assert_equal_to_rounding(model(tokens).logits, decoder, lambda some: forward(some, tokens))


def test_weights_are_shared_with_the_bridge_not_copied():
    model = hugging_face(*HUGGING_FACE["llama"])
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    decoder = decoder_of_bridge(wrapped(model))
    layer = decoder.layers[1]
    matrices = (decoder.W_E, decoder.W_U, layer.attn.W_Q, layer.attn.W_K, layer.attn.W_O, layer.mlp.W_gate, layer.ln1.w)
    assert {matrix.untyped_storage().data_ptr() for matrix in matrices} <= own
    assert not any(matrix.requires_grad for matrix in matrices)


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("name", PATCHED)
def test_right_padding_leaves_position_0_at_the_first_column(name, masked):
    bridge = bridge_of(name)
    decoder, tokens, lengths = decoder_of_bridge(bridge), some_tokens(), (4, 12, 7)
    mask = torch.arange(N_CTX) < torch.tensor(lengths)[:, None]
    padded = bridge(tokens.where(mask, 0), **({"attention_mask": mask.long()} if masked else {}))
    for row, length in enumerate(lengths):
        alone = tokens[row : row + 1, :length]
        assert_equal_to_rounding(padded[row : row + 1, :length], decoder, lambda some, x=alone: forward(some, x))


GROUPED_4 = {**GROUPED, "head_dim": 4}
REFUSED = {
    "Gemma2ForCausalLM": (GROUPED_4, ["soft cap of 50 on the attention scores", "30 on the logits", "post-norm"]),
    "Qwen3ForCausalLM": (GROUPED_4, ["qk-norm"]),
    "MistralForCausalLM": ({**GROUPED, "sliding_window": 5}, ["window of 5 positions, shorter than n_ctx=12"]),
    "Qwen2ForCausalLM": (
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ["window of 4 positions"],
    ),
    "LlamaForCausalLM": ({**GROUPED, **rope("dynamic", factor=2.0)}, ["rotary scaling 'dynamic'"]),
    "GPT2LMHeadModel": ({**GPT2, "add_cross_attention": True}, ["cross-attention"]),
    "GPTNeoXForCausalLM": ({**SIZES, "hidden_act": "quick_gelu"}, ["activation function QuickGELU"]),
    "BloomForCausalLM": ({"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 1, "n_head": 4}, ["ALiBi"]),
    "MixtralForCausalLM": ({**GROUPED, "num_local_experts": 2}, ["mixture of experts"]),
    "GraniteForCausalLM": ({**GROUPED, "residual_multiplier": 0.5}, ["residual scaling by 0.5"]),
    "BertForMaskedLM": (SIZES, ["encoder"]),
    "GemmaForCausalLM": (GROUPED_4, ["has not been checked", "LlamaForCausalLM"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_decoder_has_no_formula_for_is_refused_by_name(name):
    settings, messages = REFUSED[name]
    ending = next(ending for ending in ("ForCausalLM", "ForMaskedLM", "LMHeadModel") if name.endswith(ending))
    bridge = wrapped(hugging_face(name.removesuffix(ending), ending, settings))
    with pytest.raises(NotExpressible) as raised:
        decoder_for(bridge)
    assert not [message for message in messages if message not in str(raised.value)], str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act_fn": "gelu", "attn_scores_soft_cap": 5.0}, "soft cap of 5 on the attention scores"),
        ({"act_fn": "gelu", "attention_dir": "bidirectional"}, "not causal"),
        ({"act_fn": "solu_ln"}, "norm inside the MLP"),
        ({"act_fn": "solu"}, "activation function"),
    ],
)
def test_native_bridge_with_such_a_part_is_refused_too(settings, message):
    with pytest.raises(NotExpressible, match=message):
        decoder_for(native(settings))


def test_weights_that_cannot_be_read_are_refused():
    bridge = bridge_of("llama")
    bridge.blocks[1].attn.o.add_module("_original_component", torch.nn.Identity())
    with pytest.raises(NotExpressible, match="a projection is a Identity, expected a Linear or a Conv1D"):
        decoder_for(bridge)
    packed = torch.nn.Linear(16, 16, bias=False)
    packed.weight = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    bridge.blocks[1].attn.o.add_module("_original_component", packed)
    with pytest.raises(NotExpressible, match=r"a weight of torch\.int8 cannot be read"):
        decoder_for(bridge)


def broken(decoder: Decoder, what: str) -> Decoder:
    """The decoder with one thing wrong in its last layer."""
    layer = decoder.layers[-1]
    attn, mlp, ln2 = layer.attn, layer.mlp, layer.ln2
    turned = {} if attn.rotary is None else {"rotary": dataclasses.replace(attn.rotary, interleaved=True)}
    changes = {
        "pairing of rotary coordinates": {"attn": dataclasses.replace(attn, **turned)},
        "no rotary": {"attn": dataclasses.replace(attn, rotary=None)},
        "scale of scores": {"attn": dataclasses.replace(attn, scale=attn.scale * 1.001)},
        "order of heads": {"attn": dataclasses.replace(attn, W_V=attn.W_V.flip(0))},
        "activation": {"mlp": dataclasses.replace(mlp, activation="gelu" if mlp.W_gate is None else "gelu_tanh")},
        "gate and input exchanged": {"mlp": dataclasses.replace(mlp, W_gate=mlp.W_in, W_in=mlp.W_gate)},
        "norm not centred": {"ln2": dataclasses.replace(ln2, centred=not ln2.centred)},
        "eps of the norm": {"ln2": dataclasses.replace(ln2, eps=10 * ln2.eps)},
        "order of attention and MLP": {"parallel": not layer.parallel},
    }
    return dataclasses.replace(decoder, layers=(*decoder.layers[:-1], dataclasses.replace(layer, **changes[what])))


ANY = ["scale of scores", "order of heads", "norm not centred", "eps of the norm", "order of attention and MLP"]
BROKEN = [("gpt2", what) for what in [*ANY, "activation"]]
BROKEN += [("neox", what) for what in [*ANY, "no rotary"]]
BROKEN += [
    ("llama", what) for what in [*ANY, "pairing of rotary coordinates", "activation", "gate and input exchanged"]
]


@pytest.mark.parametrize(("name", "what"), BROKEN)
def test_one_wrong_formula_is_found_in_float32(name, what):
    bridge = bridge_of(name, torch.float32)
    decoder = decoder_of_bridge(bridge)
    with pytest.raises(NotExpressible, match="its logits differ from the model's by"):
        require_agreement(broken(decoder, what), bridge)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_of_use(bad):
    bridge = bridge_of("gpt2")
    decoder = decoder_of_bridge(bridge)
    assert not agreement(decoder, lambda tokens: bridge(tokens) * bad).holds
    with torch.no_grad():
        bridge.blocks[1].mlp.out.weight[0, 0] = bad
    with pytest.raises(UsageError, match="logits for random tokens are not finite"):
        decoder_of_bridge(bridge)


def test_dropout_in_training_mode_is_an_error_of_use():
    bridge = bridge_of("gpt2").train()
    with pytest.raises(UsageError, match=r"training mode with dropout.*call \.eval\(\)"):
        decoder_for(bridge)


def test_our_own_model_is_read_without_a_forward():
    model = Transformer(ModelConfig(d_vocab=7, n_ctx=5, positions="rotary"), seed=0)
    tokens = torch.arange(5)[None]
    assert torch.equal(forward(decoder_for(model), tokens), forward(decoder_of(model), tokens))


def test_model_of_another_library_is_refused_without_importing_ours():
    code = (
        "import sys\nfrom interp.adapters.decoders import decoder_for\nfrom interp.errors import NotExpressible\n"
        "try:\n    decoder_for(3)\nexcept NotExpressible as error:\n    print(error)\n"
        "print(sorted({'torch', 'transformer_lens', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a model of type int cannot be written as a Decoder" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("[]")
