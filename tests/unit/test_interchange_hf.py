"""Models as Hugging Face folders: transformers opens them and computes the same logits, or the card says why not."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuits.interchange import hf_run
from circuits.interchange.hf_folder import ARCHITECTURES, Expressed, expressed, write_weights
from circuits.interchange.hf_parts import rotary_base
from circuits.interchange.hf_run import export_model
from interp import files
from interp.adapters.opening import open_model
from interp.config import DataConfig
from interp.decoder import Decoder, Rotary, decoder_of, forward
from interp.errors import CheckpointError, ConfigError, StoreError, StoreFull, UsageError
from interp.pairs.jsonl import read_jsonl
from interp.pairs.tokenizers import load_tokenizer
from interp.run import Store
from interp.train import load_model
from tests.unit.small_decoders import grouped, parallel
from tests.unit.test_decoder import random_model

CLASSES = {one.name: one for one in ARCHITECTURES}
LLAMA = {"norm": "rms", "positions": "rotary", "activation": "swiglu"}
EXPRESSED = {
    "GPT2LMHeadModel": [
        {},
        {"bias": True, "norm_bias": True, "tied": True, "activation": "relu"},
        {"attn_only": True},
        {"positions": "none", "norm_eps": 0.1},
        {"pos_dim": 3},
    ],
    "GPTNeoXForCausalLM": [{"positions": "rotary"}, {"positions": "rotary", "bias": True, "rotary_base": 100.0}],
    "LlamaForCausalLM": [LLAMA, {**LLAMA, "bias": True, "tied": True}, {**LLAMA, "d_head": 6}],
    "MBartForCausalLM": [{"embed_norm": True}, {"embed_norm": True, "bias": True, "norm_bias": True, "tied": True}],
}
LACKING = {
    "no norms": {"norm": "none"},
    "no final norm": {"final_norm": False},
    "attention adds to the normed stream": {"residual": "normed"},
    "RMSNorm with learned positions": {"norm": "rms"},
    "a norm on the embedding with another eps": {"embed_norm": True, "norm_eps": 0.1},
}


def without_output_bias(model):
    """No architecture here has a bias on the unembedding."""
    if model.unembed.b_U is not None:
        model.unembed.b_U.data.zero_()
    return model


def logits(folder, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    with torch.no_grad():
        return loaded.eval()(tokens).logits


def require_equal(folder, decoder: Decoder) -> None:
    """Float64 formulas against the folder: with each other, parts that transformers computes in float32 included."""
    decoder = decoder.to(torch.float64)
    tokens = torch.randint(decoder.W_E.shape[0], (3, decoder.n_ctx), generator=torch.Generator().manual_seed(0))
    exact = forward(decoder, tokens)
    size = float(exact.abs().max())
    rough = any(layer.attn.rotary is not None for layer in decoder.layers)  # angles and RMSNorm stay in float32 there
    error = float((logits(folder, tokens, torch.float64) - exact).abs().max())
    assert error <= size * (8 * torch.finfo(torch.float32).eps if rough else 1e-14)


@pytest.mark.parametrize(("name", "settings"), [(name, one) for name, many in EXPRESSED.items() for one in many])
def test_transformers_computes_the_same_logits(name, settings, tmp_path):
    model = without_output_bias(random_model(**{"n_heads": 2, "d_model": 8, "n_layers": 2, **settings})).float()
    found = expressed(model)
    assert found.architecture == name
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_weights(folder, found)
    require_equal(tmp_path / "a", decoder_of(model))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    tied = settings.get("tied", False)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["tie_word_embeddings"] is tied
    assert any(key.startswith(("lm_head", "embed_out")) for key in found.tensors) is not tied


@pytest.mark.parametrize(
    ("name", "change", "settings"),
    [
        ("LlamaForCausalLM", grouped, {**LLAMA, "n_heads": 4, "d_model": 16}),
        ("GPTNeoXForCausalLM", parallel, {"positions": "rotary"}),
    ],
)
def test_shared_keys_and_parallel_blocks_have_their_architecture(name, change, settings, tmp_path):
    model = random_model(**{"n_heads": 2, "d_model": 8, "n_layers": 2, **settings}).float()
    decoder, architecture = change(decoder_of(model)), CLASSES[name]
    assert architecture.limits(decoder) == []
    config = {"architectures": [name], "model_type": architecture.model_type, **architecture.config(decoder)}
    write_weights(tmp_path, Expressed(name, config, architecture.tensors(decoder), {}))
    require_equal(tmp_path, decoder)


EVERY = [(name, one) for name, many in EXPRESSED.items() for one in many]
EVERY += [("our own names", one) for one in (*LACKING.values(), {"bias": True}, {"norm": "none", "attn_only": True})]


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_our_own_door_opens_the_folder_as_the_same_model(name, settings, tmp_path):
    """In float64 from the same float32 weights; speeds of rotary positions are float32 powers of the base."""
    model = random_model(**{"n_heads": 2, "d_model": 8, "n_layers": 2, **settings}).float()
    model = without_output_bias(model) if name != "our own names" else model
    found = expressed(model)
    assert found.architecture == (None if name == "our own names" else name)
    write_weights(tmp_path, found)
    opened = open_model(tmp_path)
    tokens = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(0))
    exact = forward(decoder_of(model).to(torch.float64), tokens)
    error = float((forward(opened.decoder.to(torch.float64), tokens) - exact).abs().max())
    rotary = settings.get("positions") == "rotary" and name != "our own names"
    assert error <= (1e-6 if rotary else 1e-13) * float(exact.abs().max())
    assert (opened.kind, opened.dtype) == ("hugging face folder", "float32")


def test_a_folder_in_our_own_names_that_is_damaged_or_hostile_is_refused(tmp_path):
    model = random_model(n_heads=2, d_model=8, n_layers=2, norm="none").float()
    write_weights(tmp_path, expressed(model))
    body = json.loads((tmp_path / "config.json").read_text())
    for change, error, said in (
        ({"format": 2}, StoreError, "format 2, this program reads 1"),
        ({"model": None}, ConfigError, "config.json: model"),
        ({"model": {**body["model"], "d_model": 10**9, "d_head": 4}}, CheckpointError, "the weights hold"),
        ({"model": {**body["model"], "d_mlp": 10**12}}, CheckpointError, "blocks.0.mlp.W_in the shape"),
        ({"model": {**body["model"], "n_layers": 10**6}}, CheckpointError, "1000000 layers, the weights are 1"),
        ({"model": {**body["model"], "bias": True}}, CheckpointError, "missing"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**body, **change}))
        with pytest.raises(error, match=said):
            open_model(tmp_path)


@pytest.mark.parametrize("reason", LACKING)
def test_what_no_class_computes_keeps_our_names_and_says_what_each_lacks(reason, tmp_path):
    model = random_model(**{"n_heads": 2, "d_model": 8, "n_layers": 2, **LACKING[reason]}).float()
    found = expressed(model)
    assert found.architecture is None
    assert set(found.reasons) == set(CLASSES)
    assert all(found.reasons.values())
    write_weights(tmp_path, found)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["model"]["norm"]) == ("interp_transformer", model.cfg.norm)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in stored.items())


def test_a_bias_on_the_unembedding_is_a_reason_only_where_it_is_not_zero():
    model = random_model(n_heads=2, d_model=8, n_layers=1, bias=True).float()
    assert "the unembedding has a bias" in expressed(model).reasons["GPT2LMHeadModel"]
    assert expressed(without_output_bias(model)).architecture == "GPT2LMHeadModel"


def test_the_base_of_rotary_positions_is_found_or_refused():
    speeds = 500.0 ** -(torch.arange(0, 8, 2) / 8)
    assert rotary_base(Rotary(speeds, interleaved=True)) == 500.0
    assert rotary_base(Rotary(torch.tensor([1.0]), interleaved=True)) == 10000.0
    assert rotary_base(Rotary(torch.tensor([1.0, 0.3, 0.2]), interleaved=True)) is None
    assert rotary_base(Rotary(speeds, interleaved=True, scale=1.1)) is None


def test_the_folder_of_a_run_takes_its_words_as_prompts(tiny_run, tmp_path):
    run = Store(tiny_run).run("tiny")
    export_model(run, None, tmp_path / "out")
    model, task, _ = load_model(run)
    opened = open_model(tmp_path / "out")
    tokens = task.split(0, DataConfig(per_length=4)).train[3][:2]
    clean, corrupted = (" ".join(task.vocabulary.names(row)) for row in tokens)
    line = {"clean": clean, "corrupted": corrupted, "answers": f" {task.vocabulary.tokens[-1]}"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    pairs = read_jsonl(tmp_path / "pairs.jsonl", load_tokenizer(opened.tokenizer_path), d_vocab=len(opened.decoder.W_E))
    assert pairs.clean.tolist() == tokens[:1].tolist()
    assert (forward(opened.decoder, pairs.clean) - model(pairs.clean)).abs().max() < 1e-4
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**line, "clean": "BoS elephant"}))
    with pytest.raises(UsageError, match=r"pairs.jsonl:1: clean: the tokenizer cannot write 'elephant'"):
        read_jsonl(tmp_path / "pairs.jsonl", load_tokenizer(opened.tokenizer_path))


def test_a_model_that_is_there_already_is_never_written_over(tiny_run, tmp_path):
    run, mine, theirs = Store(tiny_run).run("tiny"), tmp_path / "mine", tmp_path / "theirs"
    export_model(run, 0, mine)
    export_model(run, None, mine)  # the same run again
    theirs.mkdir()
    for file, said in (("model.safetensors", "theirs"), ("README.md", "# another, step 4")):
        (theirs / file).write_text(said)
        with pytest.raises(UsageError, match=r"theirs: holds model\.safetensors that no finished export of tiny wrote"):
            export_model(run, None, theirs)
    assert (theirs / "model.safetensors").read_text() == "theirs"
    (mine / "README.md").write_text((mine / "README.md").read_text().replace("# tiny, step", "# other, step"))
    with pytest.raises(UsageError, match=r"mine: holds config\.json that no finished export of tiny wrote"):
        export_model(run, None, mine)


@pytest.mark.parametrize("at", ["write_weights", "write_tokenizer", "checked", "write_card"])
def test_an_interrupted_export_leaves_nothing_and_the_next_one_goes_through(at, tiny_run, tmp_path, monkeypatch):
    run, fresh, earlier = Store(tiny_run).run("tiny"), tmp_path / "a" / "fresh", tmp_path / "b" / "earlier"
    export_model(run, 0, earlier)
    before = {path: path.read_bytes() for path in earlier.iterdir()}
    real = getattr(hf_run, at)

    def interrupted(*given) -> None:
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_run, at, interrupted)
    for folder in (fresh, earlier):
        with pytest.raises(KeyboardInterrupt):
            export_model(run, None, folder)
    assert list(fresh.parent.iterdir()) == [] and list(earlier.parent.iterdir()) == [earlier]
    assert {path: path.read_bytes() for path in earlier.iterdir()} == before
    monkeypatch.undo()
    for folder in (fresh, earlier):
        done = export_model(run, None, folder)
        assert {path.name for path in folder.iterdir()} == set(done.files)
        assert f"# tiny, step {done.step}" in (folder / "README.md").read_text()


def test_other_files_of_a_folder_stay_and_a_full_disk_names_the_place_asked_for(tiny_run, tmp_path, monkeypatch):
    run, folder = Store(tiny_run).run("tiny"), tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    done = export_model(run, None, folder)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", *done.files}
    assert (folder / "notes.txt").read_text() == "mine"
    for file in done.files:
        (folder / file).unlink()
    real = os.replace

    def second_fails(source, target) -> None:
        if target.parent == folder and any((folder / file).exists() for file in done.files):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt):
        export_model(run, None, folder)
    monkeypatch.undo()
    export_model(run, None, folder)  # the card came first, so that what is there is known as this run's
    assert {path.name for path in folder.iterdir()} == {"notes.txt", *done.files}

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(StoreFull, match=rf"^{tmp_path}/other/model\.safetensors: cannot be written"):
        export_model(run, None, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_becomes_a_folder_with_tokenizer_card_and_provenance(tiny_run, tmp_path):
    run = Store(tiny_run).run("tiny")
    done = export_model(run, None, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(done.files)
    assert done.notes[0].startswith("opens as GPT2LMHeadModel; logits differ by at most ")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("BoS 1 0 EoI")["input_ids"] == [0, 4, 3, 1]
    card = (tmp_path / "out" / "README.md").read_text()
    checkpoint = run.checkpoint(done.step, optim=False)
    for part in (
        checkpoint.hash,
        run.config.hash(),
        "`tiny`",
        "library_name: transformers",
        "No circuit was looked for",
    ):
        assert part in card


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A store with one parity run of a few steps."""
    from interp.cli import main

    store = tmp_path_factory.mktemp("store")
    settings = ("train.steps=4", "data.per_length=8", "task_params.max_length=3", "model.d_model=8")
    line = ["train", "parity", "--name", "tiny", "--quiet", "--store", str(store)]
    assert main([*line, *(f"--set={one}" for one in settings)]) == 0
    return store
