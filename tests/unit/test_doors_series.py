"""Runs, series of Hugging Face checkpoints and nanoGPT checkpoints are opened by step, each as the model it holds."""

import json
import shutil

import pytest
import torch
from torch import nn

from interp.adapters.opening import open_model, steps_of
from interp.cli import main
from interp.decoder import forward
from interp.errors import CheckpointError, NotExpressible, StoreError, UnknownName, UsageError
from interp.run import Store
from interp.train import load_model
from tests.unit.random_bridges import HUGGING_FACE, assert_equal_to_rounding, hugging_face, shaken, some_tokens
from tests.unit.small_tokenizers import whole_words, wrapped


@pytest.fixture(scope="module")
def models():
    """Three Llamas, as at three steps of one training."""
    return [shaken(hugging_face(*HUGGING_FACE["llama"]), seed) for seed in (1, 2, 3)]


def saved_series(folder, models, names):
    for model, name in zip(models, names, strict=True):
        model.save_pretrained(folder / name)
    return folder


@torch.no_grad()
@pytest.mark.parametrize(
    "names",
    [
        ("step0", "step9", "step1000"),
        ("checkpoint-0", "checkpoint-9", "checkpoint-1000"),
        ("global_step0", "global_step09", "global_step1000"),
        ("pythia-70m-step0", "pythia-70m-step9", "pythia-70m-step1000"),
    ],
    ids=lambda names: names[2],
)
def test_a_folder_of_checkpoints_is_read_by_step_in_the_order_of_training(tmp_path, models, names):
    folder = saved_series(tmp_path / "training", models, names)
    (folder / "logs").mkdir()
    (folder / "step5").mkdir()
    assert steps_of(folder) == (0, 9, 1000), "numbers, not names, decide the order; folders without a model are none"
    newest = open_model(folder)
    assert (newest.kind, newest.steps, newest.step, newest.name) == (
        "hugging face series",
        (0, 9, 1000),
        1000,
        "training",
    )
    for model, step in zip(models, newest.steps, strict=True):
        opened = open_model(folder, step=step)
        assert opened.step == step
        logits = model(some_tokens()).logits
        assert_equal_to_rounding(logits, opened.decoder, lambda some: forward(some, some_tokens()))
    with pytest.raises(UnknownName, match="unknown step of 'training': '10'"):
        open_model(folder, step=10)


def test_the_finished_model_beside_its_checkpoints_comes_without_a_step(tmp_path, models):
    saved_series(tmp_path, models[:2], ["checkpoint-10", "checkpoint-20"])
    models[2].save_pretrained(tmp_path)
    whole_words("a", "b", *"cdefghijklmnopqrs").save(str(tmp_path / "tokenizer.json"))
    finished, first = open_model(tmp_path), open_model(tmp_path, step=10)
    assert (finished.step, first.step, finished.steps) == (None, 10, (10, 20))
    assert torch.equal(finished.decoder.W_E, models[2].model.embed_tokens.weight)
    assert first.tokenizer_path == tmp_path, "the tokenizer of the series serves every step"


def test_two_folders_of_one_step_are_refused_and_links_are_not_followed(tmp_path, models):
    saved_series(tmp_path / "a", models[:1], ["step9"])
    (tmp_path / "a" / "step7").symlink_to(tmp_path / "a" / "step9")
    assert steps_of(tmp_path / "a") == (9,)
    shutil.copytree(tmp_path / "a" / "step9", tmp_path / "a" / "checkpoint-9")
    with pytest.raises(StoreError, match="are both of step 9"):
        steps_of(tmp_path / "a")


def test_a_cache_folder_of_the_hub_is_read_by_its_revisions(tmp_path, models):
    cache = tmp_path / "models--org--tiny"
    for step, model in zip((0, 512), models, strict=False):
        commit = f"{step:040x}"
        place = cache / "snapshots" / commit
        model.save_pretrained(place)
        (cache / "blobs").mkdir(exist_ok=True)
        for file in list(place.iterdir()):
            blob = cache / "blobs" / f"{commit}-{file.name}"
            file.rename(blob)
            file.symlink_to(blob)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / f"step{step}").write_text(commit)
    assert steps_of(cache) == (0, 512)
    assert torch.equal(open_model(cache, step=512).decoder.W_E, models[1].model.embed_tokens.weight)
    alone = open_model(cache / "snapshots" / f"{0:040x}")
    assert torch.equal(alone.decoder.W_E, models[0].model.embed_tokens.weight)
    (cache / "refs" / "step512").write_text("../../elsewhere")
    with pytest.raises(StoreError, match="expected the hash of a snapshot"):
        steps_of(cache)


def test_a_run_of_ours_is_opened_as_its_model_with_the_hash_of_the_checkpoint(tmp_path, capsys):
    tiny = ["--set", "train.steps=2", "--set", "data.per_length=8", "--set", "task_params.max_length=3", "--quiet"]
    assert main(["train", "parity", *tiny, "--name", "a", "--store", str(tmp_path)]) == 0
    run, tokens = Store(tmp_path).run("a"), torch.tensor([[0, 1, 1]])
    opened = open_model(tmp_path / "a")
    model, _, checkpoint = load_model(run)
    assert (opened.kind, opened.name, opened.step, opened.fingerprint) == ("interp run", "a", 2, checkpoint.hash)
    assert opened.steps == steps_of(tmp_path / "a") == tuple(ref.step for ref in run.checkpoints())
    assert torch.equal(forward(opened.decoder, tokens), forward(open_model(tmp_path / "a", step=2).decoder, tokens))
    assert (forward(opened.decoder, tokens) - model(tokens).detach()).abs().max() < 1e-5
    first = open_model(run.checkpoints()[0].path)
    assert (first.step, first.name) == (0, "a")
    with pytest.raises(UsageError, match="is the checkpoint of step 0"):
        open_model(run.checkpoints()[0].path, step=2)
    with pytest.raises(UnknownName, match="checkpoint of run 'a'"):
        open_model(tmp_path / "a", step=77)


class Attend(nn.Module):
    """Attention as nanoGPT writes it, with queries, keys and values in one matrix."""

    def __init__(self, d: int, heads: int, bias: bool):
        super().__init__()
        self.c_attn, self.c_proj, self.heads = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias), heads

    def forward(self, x):
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.c_attn(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(z.transpose(1, 2).flatten(2))


class Nano(nn.Module):
    """The model of nanoGPT, with its key names, in float64."""

    def __init__(self, vocab=11, block=6, d=8, heads=2, layers=2, bias=True):
        super().__init__()
        norm = dict(eps=1e-5, bias=bias)
        block_of = lambda: nn.ModuleDict(  # noqa: E731, three lines of a model
            {
                "ln_1": nn.LayerNorm(d, **norm),
                "attn": Attend(d, heads, bias),
                "ln_2": nn.LayerNorm(d, **norm),
                "mlp": nn.ModuleDict(
                    {"c_fc": nn.Linear(d, 4 * d, bias=bias), "c_proj": nn.Linear(4 * d, d, bias=bias)}
                ),
            }
        )
        blocks = nn.ModuleList(block_of() for _ in range(layers))
        parts = {"wte": nn.Embedding(vocab, d), "wpe": nn.Embedding(block, d), "h": blocks}
        self.transformer = nn.ModuleDict({**parts, "ln_f": nn.LayerNorm(d, **norm)})
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.args = {"n_layer": layers, "n_head": heads, "n_embd": d, "block_size": block, "vocab_size": vocab}
        self.args |= {"bias": bias, "dropout": 0.0}
        shaken(self)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens):
        x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
        for block in self.transformer["h"]:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"]["c_proj"](nn.functional.gelu(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(self.transformer["ln_f"](x))


def saved_nano(path, nano, **changes):
    """A file as nanoGPT's training script writes it, optimizer and settings included."""
    weights = {f"_orig_mod.{key}": value for key, value in nano.state_dict().items()}
    weights["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 6, 6)
    optimizer = torch.optim.AdamW(nano.parameters())
    nano(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    optimizer.step()
    content = {"model": weights, "optimizer": optimizer.state_dict(), "model_args": nano.args, "iter_num": 250}
    content |= {
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "lr": 6e-4, "compile": True, "x": None},
    }
    path.parent.mkdir(exist_ok=True)
    torch.save({**content, **changes}, path)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_computes_what_its_model_computed(tmp_path, bias):
    model, tokens = Nano(bias=bias), torch.arange(6)[None]
    with torch.enable_grad():
        saved_nano(tmp_path / "out" / "ckpt.pt", model)
    opened = open_model(tmp_path / "out")
    assert (opened.kind, opened.step, opened.name, opened.dtype) == ("nanogpt checkpoint", 250, "out", "float32")
    read = {key.removeprefix("_orig_mod."): value for key, value in saved_weights(tmp_path / "out" / "ckpt.pt").items()}
    model.load_state_dict({key: value for key, value in read.items() if key in model.state_dict()})
    logits = model.double()(tokens)
    assert (forward(opened.decoder.to(torch.float64), tokens) - logits).abs().max() < 1e-10


def saved_weights(path):
    """The tensors of a file that this test wrote itself, through our own reader."""
    from interp.adapters.torch_files import read_torch_file

    return {key: stored.load() for key, stored in read_torch_file(path, path.parent)["model"].items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"n_layer": 2}}, r"model_args\.n_head is None"),
        ({"model_args": {**Nano().args, "n_embd": 9}}, "2 heads do not divide n_embd 9"),
        ({"model_args": {**Nano().args, "vocab_size": 12}}, r"(wte|lm_head)\.weight is \[11, 8\].*\[12, 8\]"),
        ({"model": [1, 2]}, "expected the key 'model' with tensors by name"),
    ],
)
def test_a_damaged_nanogpt_checkpoint_is_refused_by_key(tmp_path, changes, message):
    saved_nano(tmp_path / "ckpt.pt", Nano(), **changes)
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path / "ckpt.pt")


def test_a_file_of_no_known_architecture_says_what_it_holds(tmp_path):
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "net.pt")
    with pytest.raises(NotExpressible, match=r"no known architecture \(it holds encoder\.weight\)"):
        open_model(tmp_path / "net.pt")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(StoreError, match="is no file of weights"):
        open_model(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"missing\.pt: no such file or folder$"):
        open_model(tmp_path / "missing.pt")


def test_a_tokenizer_of_another_model_is_refused_where_prompts_are_read(tmp_path, models):
    from circuits.subject import of_path

    models[0].save_pretrained(tmp_path)
    wrapped(whole_words(*(f"w{index}" for index in range(40)))).save_pretrained(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"clean": "w1 w2", "corrupted": "w2 w2", "answers": "w3"}) + "\n")
    with pytest.raises(UsageError, match="this is the tokenizer of another model"):
        of_path(tmp_path, tmp_path / "pairs.jsonl")
