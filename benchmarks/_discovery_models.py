"""What discovery is measured on besides trained runs: untrained, shuffled-label and large random models."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.subject import Subject
from interp.config import ModelConfig
from interp.decoder import Decoder, decoder_of, forward
from interp.model import Transformer
from interp.pairs.base import Pairs
from interp.pairs.from_task import pairs_of_task
from interp.registry import load
from interp.rng import generator
from interp.tasks.base import Split, Task, preset_of
from interp.train import resolve

N_PAIRS = 128
LENGTH = 8
GPT2 = {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_vocab": 50257, "n_ctx": 20, "bias": True, "norm_bias": True}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def polynomial(seed: int) -> tuple[Transformer, Task, Split]:
    """An untrained model of the polynomial preset with its data."""
    config, task = resolve(preset_of(load("task", "polynomial")).model_copy(update={"seed": seed}))
    return Transformer(config.model, seed=seed), task, task.split(seed, config.data)


def subject_of(model: Transformer, task: Task, split: Split, name: str) -> Subject:
    """The model with held-out pairs of the task."""
    pairs = pairs_of_task(task, LENGTH, N_PAIRS, generator(0, "circuit pairs"), split.test).split(0)
    return Subject(decoder_of(model.eval()), pairs, name, None, "", f"polynomial, length {LENGTH}, mixed pairs")


def shuffled(task: Task, split: Split, seed: int) -> dict[int, Tensor]:
    """Training sequences of each length whose every state is that of another sequence at the same step.

    Steps are shuffled on their own: rows moved as a whole would keep how one state follows another.
    """
    stream, found = generator(seed, "shuffled labels"), {}
    for length, tokens in split.train.items():
        layout, mixed = task.layout(length), tokens.clone()
        states = list(layout.states)
        for column in states:
            mixed[:, column] = tokens[torch.randperm(len(tokens), generator=stream), column]
        found[length] = mixed
    return found


def trained_on(model: Transformer, task: Task, data: dict[int, Tensor], steps: int, seed: int) -> float:
    """Train for some steps with Adam on sequences of one length per batch; the last loss."""
    stream, loss = generator(seed, "batches"), torch.tensor(0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    lengths = [length for length, tokens in data.items() if len(tokens)]
    model.train()
    for _ in range(steps):
        length = lengths[int(torch.randint(len(lengths), (), generator=stream))]
        tokens = data[length][torch.randint(len(data[length]), (32,), generator=stream)]
        scored = task.target_mask(length).nonzero()[:, 0]
        loss = F.cross_entropy(model(tokens)[:, scored].flatten(0, 1), tokens[:, scored + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def gpt2_decoder() -> Decoder:
    """GPT-2-small shape with random weights."""
    model = Transformer(ModelConfig(**GPT2), seed=0).eval()
    stream = generator(0, "benchmark", "gpt2")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.rsplit(".", 1)[1].startswith("W_"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return decoder_of(model)


def own_pairs(decoder: Decoder, n: dict[str, int], length: int, changed: int) -> Pairs:
    """Random prompts that differ at one position, with answers for which the random model does behave.

    The right answer is the token whose logit the corrupted prompt lowers most, the wrong one that which it raises most.
    """
    stream, total, d_vocab = generator(0, "own pairs"), sum(n.values()), len(decoder.W_E)
    clean = torch.randint(d_vocab, (total, length), generator=stream)
    corrupted = clean.clone()
    corrupted[:, changed] = torch.randint(d_vocab, (total,), generator=stream)
    with torch.no_grad():
        moved = forward(decoder, clean)[:, -1] - forward(decoder, corrupted)[:, -1]
    return Pairs(
        clean=clean,
        corrupted=corrupted,
        mask=torch.ones_like(clean, dtype=torch.bool),
        position=torch.full((total, 1), length - 1),
        answers=moved.argmax(-1)[:, None, None],
        wrong=moved.argmin(-1)[:, None, None],
        unit=torch.arange(total),
        d_vocab=d_vocab,
        spans=({},) * total,
        group=("",) * total,
        part=tuple(part for part, count in n.items() for _ in range(count)),
    )


def large_subject(decoder: Decoder, pairs: Pairs, name: str) -> Subject:
    """A random model with its own pairs."""
    return replace(Subject(decoder, pairs, name, None, "", "pairs that the random model behaves on"))


def write_qwen(folder: Path) -> int:
    """A Hugging Face folder of Qwen2.5-0.5B's shape with random bfloat16 weights; its number of parameters."""
    from safetensors.torch import save_file

    stream = generator(0, "qwen")
    d, inner, kv = QWEN["hidden_size"], QWEN["intermediate_size"], 2 * 64

    def random(*shape: int) -> Tensor:
        return (0.02 * torch.randn(shape, generator=stream)).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(QWEN["vocab_size"], d), "model.norm.weight": 1 + random(d)}
    for layer in range(QWEN["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows, columns in (("q", d, d), ("k", kv, d), ("v", kv, d), ("o", d, d)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = random(rows, columns)
            if name != "o":
                tensors[f"{at}.self_attn.{name}_proj.bias"] = random(rows)
        for name, rows, columns in (("gate", inner, d), ("up", inner, d), ("down", d, inner)):
            tensors[f"{at}.mlp.{name}_proj.weight"] = random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = 1 + random(d)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())
