"""Hugging Face folders on disk: their decoders compute what transformers computes, or the folder is refused by name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.adapters.opened import Processing
from interp.adapters.opening import open_model
from interp.decoder import forward
from interp.errors import CheckpointError, NotExpressible, StoreError, UsageError
from tests.unit.random_bridges import (
    DOUBLE,
    GPT2,
    GROUPED,
    HUGGING_FACE,
    N_CTX,
    SIZES,
    assert_equal_to_rounding,
    hugging_face,
    rms,
    rope,
    shaken,
    some_tokens,
)
from tests.unit.small_tokenizers import whole_words, wrapped


@pytest.fixture
def folder(tmp_path):
    """A folder with a small Llama."""
    hugging_face(*HUGGING_FACE["llama"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_double(decoder):
    """The decoder in float64 but for its rotary angles, which transformers computes in float32."""

    def turned(layer):
        rotary = layer.attn.rotary and layer.attn.rotary.to(torch.float32)
        return dataclasses.replace(layer, attn=dataclasses.replace(layer.attn, rotary=rotary))

    double = decoder.to(torch.float64)
    return dataclasses.replace(double, layers=tuple(turned(layer) for layer in double.layers))


def configured(folder, **changes):
    body = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in body.items() if value is not ...}))


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_decoder_of_a_folder_computes_the_logits_of_the_model_that_was_saved(tmp_path, name):
    model, tokens = hugging_face(*HUGGING_FACE[name]), some_tokens()
    model.save_pretrained(tmp_path / "model")
    opened = open_model(tmp_path / "model")
    if name in DOUBLE:
        logits = model.double()(tokens).logits
        assert (forward(in_double(opened.decoder), tokens) - logits).abs().max() < 1e-10
    else:
        assert_equal_to_rounding(model(tokens).logits, opened.decoder, lambda some: forward(some, tokens))
    assert (opened.kind, opened.dtype, opened.steps, opened.step) == ("hugging face folder", "float32", (), None)
    assert (opened.name, opened.drift, opened.decoder.n_ctx) == ("model", None, N_CTX)
    assert opened.processing == Processing(), (
        "nothing is folded or centred, and without a tokenizer the rest is unknown"
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen2"])
def test_shards_and_files_of_torch_save_hold_the_same_model(tmp_path, name):
    model = hugging_face(*HUGGING_FACE[name])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    shutil.copytree(tmp_path / "one", tmp_path / "pickled", ignore=lambda *_: ["model.safetensors"])
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    logits = [forward(open_model(tmp_path / kind).decoder, some_tokens()) for kind in ("one", "shards", "pickled")]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_16_bit_weights_run_in_float32_and_the_drift_is_recorded(tmp_path, name, dtype):
    model, tokens = hugging_face(*HUGGING_FACE[name], dtype), some_tokens(2)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.decoder.W_E.dtype == torch.float32 and opened.dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(opened.decoder.W_E.to(dtype), model.get_input_embeddings().weight), "no value is lost"
    assert 0 < opened.drift.typical <= opened.drift.worst < 1 and 0 <= opened.drift.same_top <= 1
    measured = float((forward(opened.decoder, tokens) - model(tokens).logits.float()).abs().amax(-1).median())
    assert measured / 4 < opened.drift.typical < 4 * measured, "the model itself in its own format is as far away"


def test_keys_of_the_inner_model_alone_are_read_where_the_unembedding_is_tied(tmp_path):
    model = hugging_face(*HUGGING_FACE["gpt2"])
    model.transformer.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path).decoder.W_U, model.lm_head.weight.mT)


def test_mask_and_rotary_buffers_of_old_files_are_no_weights(tmp_path):
    model = hugging_face(*HUGGING_FACE["neox"])
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 3, 3, dtype=torch.bool)}
    old["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(weights | old, tmp_path / "model.safetensors")
    assert open_model(tmp_path).dtype == "float32"


@torch.no_grad()
@pytest.mark.parametrize("name", ["neox sequential, all rotary, large eps", "llama with linear angles"])
def test_rotary_settings_as_older_files_write_them_give_the_same_angles(tmp_path, name):
    hugging_face(*HUGGING_FACE[name]).save_pretrained(tmp_path)
    new = forward(open_model(tmp_path).decoder, some_tokens())
    old = {"rotary_pct": 1.0, "rotary_emb_base": 100, "torch_dtype": "float16"}
    old = old if name.startswith("neox") else {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    configured(tmp_path, rope_parameters=..., **old)
    assert torch.equal(forward(open_model(tmp_path).decoder, some_tokens()), new)
    configured(tmp_path, **{key: 50 for key in old if key in ("rotary_emb_base", "rope_theta")})
    assert not torch.equal(forward(open_model(tmp_path).decoder, some_tokens()), new)


def test_a_tokenizer_says_whether_a_bos_token_comes_first_and_where_it_pads(tmp_path):
    from tokenizers.processors import TemplateProcessing

    hugging_face(*HUGGING_FACE["llama"]).save_pretrained(tmp_path)
    plain = whole_words(*"abcdefgh")
    wrapped(plain).save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert (opened.processing.bos, opened.processing.padding_side) == (False, "right")
    assert opened.tokenizer_path == tmp_path
    plain.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped(plain).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated | {"padding_side": "left"}))
    assert open_model(tmp_path).processing == Processing(bos=True, padding_side="left")


@torch.no_grad()
@pytest.mark.parametrize("name", ["Mistral", "Qwen2"])
def test_a_sliding_window_shortens_the_context_to_where_attention_is_plain(tmp_path, name):
    settings = {**GROUPED, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0}
    settings = settings if name == "Qwen2" else {**GROUPED, "sliding_window": 5}
    model, tokens = hugging_face(name, "ForCausalLM", settings), some_tokens()
    model.save_pretrained(tmp_path)
    decoder = open_model(tmp_path).decoder
    assert decoder.n_ctx == 5
    assert_equal_to_rounding(model(tokens[:, :5]).logits, decoder, lambda some: forward(some, tokens[:, :5]))
    assert rms(model(tokens).logits[:, -1] - forward(decoder, tokens)[:, -1]) > 1e-3, "beyond it the two differ"


REFUSED = {
    "Qwen3": (GROUPED | {"head_dim": 4}, "model_type 'qwen3' has a norm on queries and keys"),
    "Gemma": (GROUPED | {"head_dim": 4}, "unknown model_type 'gemma'"),
    "Llama": (GROUPED | rope("dynamic", factor=2.0), "rotary scaling 'dynamic'"),
    "GPTNeoX": (
        SIZES | rope("default", partial_rotary_factor=0.5) | {"hidden_act": "quick_gelu"},
        "activation function 'quick_gelu'",
    ),
}


MBART = {"vocab_size": 31, "d_model": 16, "max_position_embeddings": 12, "decoder_layers": 2, "decoder_ffn_dim": 24}
MBART |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_attention_heads": 4}
ALONE = {"is_encoder_decoder": False, "add_cross_attention": False, "is_decoder": True}


def mbart(**changes):
    from transformers import MBartConfig, MBartForCausalLM

    given = {**MBART, **ALONE, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **changes}
    return shaken(MBartForCausalLM(MBartConfig(**given)))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"activation_function": "relu", "tie_word_embeddings": False}])
def test_the_decoder_of_mbart_alone_computes_what_was_saved(tmp_path, changes):
    model = mbart(**changes)
    model.save_pretrained(tmp_path / "model")
    tokens = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(0))
    opened = open_model(tmp_path / "model")
    assert (forward(opened.decoder.to(torch.float64), tokens) - model.double()(tokens).logits).abs().max() < 1e-10
    assert opened.decoder.n_heads == 4 and len(opened.decoder.layers) == 2 and opened.decoder.n_ctx == 12


def test_an_mbart_with_an_encoder_or_scaled_embeddings_is_refused(tmp_path):
    mbart().save_pretrained(tmp_path / "model")
    for changes, said in (
        ({"is_encoder_decoder": True}, "an encoder, to whose output the decoder attends"),
        ({"add_cross_attention": True}, "an encoder, to whose output the decoder attends"),
        ({"scale_embedding": True}, "embedding scaling"),
    ):
        body = json.loads((tmp_path / "model" / "config.json").read_text())
        configured(tmp_path / "model", **changes)
        with pytest.raises(NotExpressible, match=said):
            open_model(tmp_path / "model")
        (tmp_path / "model" / "config.json").write_text(json.dumps(body))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_decoder_cannot_express_is_refused_by_name(tmp_path, name):
    settings, message = REFUSED[name]
    hugging_face(name, "ForCausalLM", settings).save_pretrained(tmp_path)
    with pytest.raises(NotExpressible, match=message):
        open_model(tmp_path)


def test_cross_attention_is_refused_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **GPT2, "add_cross_attention": True}))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(NotExpressible, match="cross-attention"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "lama"}, NotExpressible, "unknown model_type 'lama'; did you mean 'llama'"),
        ({"model_type": ...}, StoreError, "has neither a model_type nor the fields of a HookedTransformer"),
        ({"quantization_config": {"bits": 4}}, NotExpressible, "quantised"),
        ({"num_hidden_layers": 3}, CheckpointError, r"missing model\.layers\.2\.input_layernorm\.weight.*and 5 more"),
        ({"num_hidden_layers": 1}, CheckpointError, r"unknown model\.layers\.1\."),
        ({"num_hidden_layers": 10**9}, StoreError, "num_hidden_layers is 1000000000"),
        ({"hidden_size": 1 << 40}, StoreError, "hidden_size"),
        ({"vocab_size": 24}, CheckpointError, r"(lm_head|embed_tokens)\.weight is \[23, 16\].*gives \[24, 16\]"),
        ({"num_attention_heads": 0}, StoreError, "not a valid configuration"),
        ({"num_attention_heads": 3, "head_dim": None}, StoreError, "not a valid configuration"),
        ({"num_attention_heads": -1}, StoreError, "not a valid configuration"),
        ({"max_position_embeddings": 0}, StoreError, "max_position_embeddings is 0"),
        ({"num_key_value_heads": 3}, StoreError, "not a valid configuration"),
        ({"rms_norm_eps": "small"}, StoreError, "not a valid configuration"),
        ({"rope_parameters": [1]}, StoreError, "not a valid configuration"),
        ({"hidden_act": "mish"}, NotExpressible, "activation function 'mish'"),
        ({"attention_bias": True}, CheckpointError, r"missing model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"auto_map": {"AutoConfig": "evil.Config"}}, None, ""),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused_by_key(folder, changes, error, message):
    configured(folder, **changes)
    if error is None:
        assert open_model(folder).decoder.d_model == 16
        return
    with pytest.raises(error, match=message) as raised:
        open_model(folder)
    assert "config.json" in str(raised.value) or "model.safetensors" in str(raised.value)


def test_an_unembedding_that_differs_though_it_is_tied_is_refused(folder):
    configured(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        open_model(folder)


def test_missing_shards_and_keys_are_named(tmp_path):
    hugging_face(*HUGGING_FACE["llama"]).save_pretrained(tmp_path, max_shard_size="4KB")
    index = tmp_path / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    shards = sorted(set(body["weight_map"].values()))
    index.write_text(json.dumps(body | {"weight_map": body["weight_map"] | {"model.ghost": shards[0]}}))
    with pytest.raises(CheckpointError, match=r"has no model\.ghost"):
        open_model(tmp_path)
    index.write_text(json.dumps(body))
    (tmp_path / shards[1]).unlink()
    with pytest.raises(StoreError, match=rf"{shards[1]}: missing, though model.safetensors.index.json names it"):
        open_model(tmp_path)


def test_a_folder_without_weights_or_configuration_says_what_is_expected(tmp_path, folder):
    with pytest.raises(StoreError, match="expected a run of ours, a Hugging Face folder"):
        open_model(tmp_path / "..")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"holds no weights; expected one of model\.safetensors"):
        open_model(folder)


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-1.4b", "meta-llama/Llama-3.1-8B"])
def test_a_name_of_a_hub_is_never_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="never looked up on a hub: download it"):
        open_model(name)


def test_a_weight_file_by_itself_leads_to_its_folder_and_a_single_model_has_no_steps(folder):
    with pytest.raises(UsageError, match="give its folder"):
        open_model(folder / "model.safetensors")
    with pytest.raises(UsageError, match="no step 3 to choose"):
        open_model(folder, step=3)


def test_the_fingerprint_changes_with_one_weight_or_setting_and_with_nothing_else(folder, tmp_path):
    before = open_model(folder).fingerprint
    (folder / "README.md").write_text("notes")
    shutil.copytree(folder, tmp_path / "copy")
    assert open_model(tmp_path / "copy").fingerprint == before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors")
    configured(folder, rms_norm_eps=1e-3)
    assert len({before, open_model(folder).fingerprint, open_model(tmp_path / "copy").fingerprint}) == 3
