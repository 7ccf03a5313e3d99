"""State dicts of a HookedTransformer: the decoder computes what the model did, and weights show their processing."""

import json

import pytest
import torch
from safetensors.torch import save_file

from interp.adapters import lens_state_dict
from interp.adapters.opening import open_model
from interp.decoder import forward
from interp.errors import CheckpointError, NotExpressible, StoreError
from tests.unit.random_bridges import assert_equal_to_rounding, some_tokens
from tests.unit.small_lens import CONFIGS, legacy, lens_model


def saved(folder, weights, config, *, place="config.json"):
    torch.save(weights, folder / "model.pt")
    if config is not None:
        (folder / place).write_text(json.dumps(config))
    return folder / "model.pt"


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_decoder_computes_the_logits_of_the_model(tmp_path, name):
    bridge, weights, config = lens_model(name)
    opened = open_model(saved(tmp_path, weights, config))
    tokens = some_tokens()
    assert_equal_to_rounding(bridge(tokens), opened.decoder, lambda some: forward(some, tokens))
    assert (opened.kind, opened.dtype, opened.steps) == ("transformer-lens state dict", "float32", ())
    assert (opened.processing.bos, opened.processing.centred_unembed) == (True, False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_folded_and_centred_weights_are_seen_and_give_the_processed_model(tmp_path, name):
    bridge, _, config = lens_model(name)
    bridge.enable_compatibility_mode(disable_warnings=True)
    folded = {"LN": "LNPre", "RMS": "RMSPre"}[config.get("normalization_type", "LN")]
    config = {**config, "normalization_type": folded}
    opened = open_model(saved(tmp_path, legacy(bridge, config), config))
    tokens = some_tokens()
    assert_equal_to_rounding(bridge(tokens), opened.decoder, lambda some: forward(some, tokens))
    found = opened.processing
    assert found.norms_folded is True and found.centred_unembed is True
    assert found.centred_writing_weights is (name != "llama"), "RMSNorm does not allow to centre what is written"
    assert found.value_biases_folded in (True, "unknown")
    assert opened.decoder.layers[0].ln1.w is None


def test_weights_left_as_they_were_are_said_to_be_so(tmp_path):
    _, weights, config = lens_model("gpt2")
    found = open_model(saved(tmp_path, weights, config)).processing
    flags = (found.norms_folded, found.centred_writing_weights, found.centred_unembed, found.value_biases_folded)
    assert flags == (False, False, False, False)


def test_norm_weights_of_one_may_be_folded_or_untouched(tmp_path):
    bridge, _, config = lens_model("gpt2")
    bridge.enable_compatibility_mode(disable_warnings=True)
    weights = legacy(bridge, config)
    assert bool((weights["blocks.0.ln1.w"] == 1).all()), "3.5 and later keep neutral norm weights"
    assert open_model(saved(tmp_path, weights, config)).processing.norms_folded == "unknown"
    bare = {key: value for key, value in weights.items() if ".ln" not in key and "ln_final" not in key}
    assert open_model(saved(tmp_path, bare, config)).processing.norms_folded is True


@torch.no_grad()
def test_every_way_to_keep_the_configuration_gives_the_same_model(tmp_path):
    _, weights, config = lens_model("gpt2")
    expected = forward(open_model(saved(tmp_path, weights, config)).decoder, some_tokens())
    wrapped = {"model": weights, "config": {**config, "dtype": torch.float32}, "losses": [3.0, 2.0]}
    wrapped["config"]["device"] = torch.device("cpu")
    compiled = {f"_orig_mod.{key}": value for key, value in weights.items()}
    for kind, content, place in [
        ("in the file", wrapped, None),
        ("beside", weights, "model.json"),
        ("compiled", compiled, "cfg.json"),
    ]:
        folder = tmp_path / kind
        folder.mkdir()
        path = saved(folder, content, None if place is None else config, place=place)
        assert torch.equal(forward(open_model(path).decoder, some_tokens()), expected), kind
    save_file(weights, tmp_path / "in the file" / "other.safetensors")
    (tmp_path / "in the file" / "config.json").write_text(json.dumps(config))
    assert torch.equal(
        forward(open_model(tmp_path / "in the file" / "other.safetensors").decoder, some_tokens()), expected
    )
    (tmp_path / "in the file" / "model.pt").unlink()
    opened = open_model(tmp_path / "in the file")
    assert opened.name == "other" and torch.equal(forward(opened.decoder, some_tokens()), expected)


@torch.no_grad()
def test_16_bit_weights_are_read_with_their_drift(tmp_path):
    _, weights, config = lens_model("gpt2")
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()}
    opened = open_model(saved(tmp_path, halves, config))
    assert opened.dtype == "bfloat16" and opened.decoder.W_E.dtype == torch.float32
    assert 0 < opened.drift.typical < 0.5


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "native grouped"])
def test_a_decoder_that_is_wrong_in_one_setting_does_not_pass_the_check(tmp_path, name, monkeypatch):
    _, weights, config = lens_model(name)
    path = saved(tmp_path, weights, config)
    right = lens_state_dict.lens_decoder

    def wrong(cfg, weights, title):
        other = {"eps": 0.3} if name == "gpt2" else {"rotary_adjacent_pairs": not cfg.rotary_adjacent_pairs}
        other = {"parallel_attn_mlp": False} if name == "neox" else other
        return right(type(cfg)(**{**vars(cfg), **other}), weights, title)

    monkeypatch.setattr(lens_state_dict, "lens_decoder", wrong)
    with pytest.raises(NotExpressible, match="its logits differ from the model's"):
        open_model(path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attention_dir": "bidirectional"}, NotExpressible, "attention_dir='bidirectional'"),
        ({"use_local_attn": True}, NotExpressible, "use_local_attn=True"),
        ({"attn_scores_soft_cap": 50.0}, NotExpressible, "attn_scores_soft_cap=50"),
        ({"positional_embedding_type": "shortformer"}, NotExpressible, "positions of the kind 'shortformer'"),
        ({"act_fn": "solu_ln"}, NotExpressible, "the activation function 'solu_ln'"),
        ({"use_yarn_rope": True}, NotExpressible, "use_yarn_rope=True"),
        ({"a_new_formula": 2}, NotExpressible, "a_new_formula=2, which is not known here"),
        ({"normalization_type": "SoluLN"}, NotExpressible, "norms of the kind 'SoluLN'"),
        ({"n_layers": 3}, CheckpointError, r"missing blocks\.2\.attn\.W_K"),
        ({"n_layers": 10**8}, StoreError, "n_layers is 100000000"),
        ({"d_head": "4"}, StoreError, "d_head is '4'"),
        ({"d_mlp": 25}, CheckpointError, r"blocks\.0\.mlp\.(W_in|W_out|b_in) is"),
        ({"n_key_value_heads": 3}, StoreError, "no multiple of n_key_value_heads 3"),
        ({"parallel_attn_mlp": "yes"}, StoreError, "parallel_attn_mlp is 'yes', expected true or false"),
        ({"rotary_base": 0}, StoreError, "rotary_base is 0"),
        ({"act_fn": ["gelu"]}, NotExpressible, "the activation function"),
        ({"eps": float("1e300")}, StoreError, "eps is"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_key(tmp_path, changes, error, message):
    _, weights, config = lens_model("gpt2")
    with pytest.raises(error, match=message):
        open_model(saved(tmp_path, weights, {**config, **changes}))


def test_biases_after_a_gate_are_refused(tmp_path):
    _, weights, config = lens_model("llama")
    weights["blocks.1.mlp.b_in"][3] = 1.0
    with pytest.raises(NotExpressible, match=r"blocks\.1\.mlp\.b_in: TransformerLens adds it after"):
        open_model(saved(tmp_path, weights, config))


def test_missing_and_unknown_tensors_are_named(tmp_path):
    _, weights, config = lens_model("gpt2")
    with pytest.raises(StoreError, match=r"model\.pt: a HookedTransformer's weights without its configuration"):
        open_model(saved(tmp_path, weights, None))
    one = {key: value for key, value in weights.items() if key != "blocks.1.ln2.b"}
    with pytest.raises(CheckpointError, match=r"missing blocks\.1\.ln2\.b"):
        open_model(saved(tmp_path, one, config))
    with pytest.raises(CheckpointError, match=r"unknown blocks\.0\.attn\.W_R"):
        open_model(saved(tmp_path, {**weights, "blocks.0.attn.W_R": torch.ones(2)}, config))
    weights["blocks.1.attn.W_V"][0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.W_V has 1 of 256 values that are NaN"):
        open_model(saved(tmp_path, weights, config))
