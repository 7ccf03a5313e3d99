"""The models, prompts and metrics on which exact patching is compared with its baselines."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.metrics import LogitDiff
from interp.config import ModelConfig
from interp.decoder import MLP, Attention, Decoder, Layer, Norm, Rotary, decoder_of
from interp.errors import UsageError
from interp.model import Transformer
from interp.rng import generator
from interp.run import Store
from interp.train import load_model

Read = Literal["last", "all"]
OUTLIER = 20.0  # by how much a few residual channels and norm gains are larger than the rest
CHANNELS = 3


@dataclass(frozen=True)
class Shape:
    """Size of a model; `family` is "toy" (our Transformer), "gpt2" or "qwen2" (plain decoders of that style)."""

    family: Literal["toy", "gpt2", "qwen2"]
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    d_vocab: int


TWO_LAYERS = Shape("toy", 2, 128, 4, 4, 512, 1000)
FOUR_LAYERS = replace(TWO_LAYERS, n_layers=4)
GPT2 = Shape("gpt2", 12, 768, 12, 12, 3072, 50257)
QWEN = Shape("qwen2", 24, 896, 14, 2, 4864, 151936)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        equal_before: clean and corrupted prompt agree at all positions before this one.
        over_lens, over_best: the ratios asked for, over TransformerLens' loop and over the best full-forward baseline.
        most_bytes: resident memory of the whole process while the engine runs.
        rounds: how often engine and baselines take turns.
        groups: positions that the resuming baseline runs in one batch; the best one is reported.
        peers: whether full-forward baselines are timed at all; else only the engine, and the loop that checks it.
        checked, places: how many patches are compared with float64, at how many positions.
        outlier_pairs: prompt pairs on which weights with outlier channels are checked; over several of them the
            comparison does not hang on one patch of large effect, whose error is that of the two recorded runs, which
            engine and loops have in common.
    """

    name: str
    shape: Shape
    n_pos: int
    read: Read
    pairs: int = 1
    equal_before: int = 0
    over_lens: float | None = None
    over_best: float | None = None
    most_bytes: int | None = None
    rounds: int = 5
    groups: tuple[int, ...] = (1, 4, 16)
    peers: bool = True
    checked: int = 96
    places: int = 24
    outlier_pairs: int = 8


LARGE = {"rounds": 3, "groups": (1, 4), "checked": 32, "places": 6, "outlier_pairs": 1}
CASES = (
    Case("toy-64-last", TWO_LAYERS, 64, "last", over_lens=200, over_best=80),
    Case("toy-256-last", TWO_LAYERS, 256, "last"),
    Case("toy-512-last", TWO_LAYERS, 512, "last", over_lens=600),
    Case("toy-64-all", TWO_LAYERS, 64, "all"),
    Case("toy-256-all", TWO_LAYERS, 256, "all", over_lens=16, over_best=10),
    Case("4-layers-64-last", FOUR_LAYERS, 64, "last"),
    Case("4-layers-128-last", FOUR_LAYERS, 128, "last"),
    Case("gpt2-20-last", GPT2, 20, "last", over_lens=18, over_best=5.5, **LARGE),
    Case("gpt2-20-equal-before-10", GPT2, 20, "last", equal_before=10, over_lens=60, **LARGE),
    Case("qwen-20-last", QWEN, 20, "last", pairs=8, peers=False, most_bytes=4 * 10**9, **LARGE | {"rounds": 1}),
)
QUICK = ("toy-64-last", "toy-64-all", "4-layers-64-last")


@dataclass(frozen=True)
class Problem:
    """A model with prompt pairs and a metric; `model` is what a user would hand to `patch_heads`."""

    case: Case
    model: Transformer | Decoder
    decoder: Decoder
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    correct: Int[Tensor, "pair"]
    wrong: Int[Tensor, "pair"]

    @property
    def metric(self) -> LogitDiff:
        """Logit of the correct token minus that of the wrong one, where the case reads it."""
        return LogitDiff(self.correct, self.wrong, self.case.read)

    def value(self, logits: Float[Tensor, "pair pos d_vocab"]) -> Float[Tensor, "pair"]:
        """The same metric from full logits, as the baselines compute it."""
        if self.case.read == "last":
            logits = logits[:, -1:]
        pair = torch.arange(len(logits))
        return (logits[pair, :, self.correct] - logits[pair, :, self.wrong]).mean(-1)

    @property
    def n_patches(self) -> int:
        """Layers times heads times positions; a patch acts on all pairs at once."""
        return len(self.decoder.layers) * self.decoder.n_heads * self.clean.shape[1]

    def with_prompts(self, pairs: int, seed: int) -> "Problem":
        """The same question on other random prompts, which differ from `equal_before` on."""
        case = replace(self.case, pairs=pairs)
        return replace(self, case=case, **random_prompts(case, seed))

    def with_weights(self, decoder: Decoder) -> "Problem":
        """The same question put to another model of this shape."""
        return replace(self, model=decoder, decoder=decoder)


def random_problem(case: Case, seed: int = 0) -> Problem:
    """Random weights, random prompts."""
    model = random_transformer(case) if case.shape.family == "toy" else random_decoder(case.shape, case.n_pos)
    decoder = decoder_of(model) if isinstance(model, Transformer) else model
    return Problem(case, model, decoder, **random_prompts(case, seed))


def random_prompts(case: Case, seed: int) -> dict[str, Tensor]:
    """Clean and corrupted prompts that differ from `equal_before` on, with a correct and a wrong answer."""
    draw = generator(seed, "patching benchmark", case.name)
    size, d_vocab, first = (case.pairs, case.n_pos), case.shape.d_vocab, case.equal_before
    clean, corrupted = (torch.randint(d_vocab, size, generator=draw) for _ in range(2))
    corrupted[:, :first] = clean[:, :first]
    corrupted[:, first] = (clean[:, first] + 1) % d_vocab
    correct = torch.randint(d_vocab, (case.pairs,), generator=draw)
    return {"clean": clean, "corrupted": corrupted, "correct": correct, "wrong": (correct + 7) % d_vocab}


@torch.no_grad()
def random_transformer(case: Case) -> Transformer:
    """Our Transformer with biases everywhere, and no weight at its neutral value."""
    shape = case.shape
    sizes = {name: getattr(shape, name) for name in ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab")}
    model = Transformer(ModelConfig(**sizes, n_ctx=case.n_pos, norm_bias=True, bias=True), seed=0).eval()
    draw = generator(0, "shaken")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or ".b_" in name:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    model.unembed.b_U.zero_()  # TransformerLens' native model has none
    return model.requires_grad_(False)


def random_decoder(shape: Shape, n_ctx: int) -> Decoder:
    """A decoder in the style of GPT-2 or Qwen2 with tied embeddings; matrices are normal with variance 1 / inputs."""
    draw, qwen = generator(0, "decoder", shape.family), shape.family == "qwen2"

    def normal(*size: int, inputs: int) -> Tensor:
        return torch.randn(size, generator=draw) * inputs**-0.5

    def norm() -> Norm:
        w, b = 1 + normal(shape.d_model, inputs=100), normal(shape.d_model, inputs=100)
        return Norm(w, None if qwen else b, 1e-6 if qwen else 1e-5, centred=not qwen)

    embedding = normal(shape.d_vocab, shape.d_model, inputs=shape.d_model)
    layers = []
    for _ in range(shape.n_layers):
        ln1, attn = norm(), _random_attention(shape, normal)
        layers.append(Layer(ln1, attn, norm(), _random_mlp(shape, normal)))
    return Decoder(
        W_E=embedding,
        W_pos=None if qwen else normal(n_ctx, shape.d_model, inputs=shape.d_model),
        ln_embed=None,
        layers=tuple(layers),
        ln_final=norm(),
        W_U=embedding.mT,
        b_U=None,
        n_ctx=n_ctx,
        name=shape.family,
    )


def _random_attention(shape: Shape, normal) -> Attention:
    d_model, d_head, qwen = shape.d_model, shape.d_model // shape.n_heads, shape.family == "qwen2"
    counts = {"Q": shape.n_heads, "K": shape.n_kv_heads, "V": shape.n_kv_heads}
    matrices = {f"W_{letter}": normal(count, d_model, d_head, inputs=d_model) for letter, count in counts.items()}
    biases = {f"b_{letter}": normal(count, d_head, inputs=100) for letter, count in counts.items()}
    speed = 1e6 ** -(torch.arange(0, d_head, 2) / d_head)
    return Attention(
        **matrices,
        W_O=normal(shape.n_heads, d_head, d_model, inputs=d_model),
        **biases,
        b_O=None if qwen else normal(d_model, inputs=100),
        scale=d_head**-0.5,
        rotary=Rotary(speed, interleaved=False) if qwen else None,
    )


def _random_mlp(shape: Shape, normal) -> MLP:
    d_model, d_mlp, qwen = shape.d_model, shape.d_mlp, shape.family == "qwen2"
    return MLP(
        W_in=normal(d_model, d_mlp, inputs=d_model),
        W_out=normal(d_mlp, d_model, inputs=d_mlp),
        b_in=None if qwen else normal(d_mlp, inputs=100),
        b_out=None if qwen else normal(d_model, inputs=100),
        W_gate=normal(d_model, d_mlp, inputs=d_model) if qwen else None,
        b_gate=None,
        activation="silu" if qwen else "gelu_tanh",
    )


def with_outliers(decoder: Decoder) -> Decoder:
    """The decoder with the outlier channels that training brings: embeddings, MLP outputs and norm gains times 20.

    A few residual channels dwarf the others, norm gains are large at some of these and at some other channels.
    """
    picked = torch.randperm(decoder.d_model, generator=generator(0, "outliers"))[: 2 * CHANNELS - 1]
    loud, gained = picked[:CHANNELS], picked[CHANNELS - 1 :]  # one channel is both

    def scaled(weight: Tensor | None, channels: Tensor) -> Tensor | None:
        if weight is None:
            return None
        changed = weight.clone()
        changed[..., channels] *= OUTLIER
        return changed

    def norm(old: Norm | None) -> Norm | None:
        return None if old is None else replace(old, w=scaled(old.w, gained))

    layers = list(decoder.layers)
    for index, layer in enumerate(layers):
        mlp = layer.mlp
        if mlp is not None and index == 0:
            mlp = replace(mlp, W_out=scaled(mlp.W_out, loud))
        layers[index] = replace(layer, ln1=norm(layer.ln1), ln2=norm(layer.ln2), mlp=mlp)
    tied = decoder.W_U.data_ptr() == decoder.W_E.data_ptr()
    embedding = scaled(decoder.W_E, loud)
    return replace(
        decoder,
        W_E=embedding,
        W_pos=scaled(decoder.W_pos, loud),
        layers=tuple(layers),
        ln_final=norm(decoder.ln_final),
        W_U=embedding.mT if tied else decoder.W_U,
    )


def run_name(place: Path) -> str:
    """What the case of a trained run is called."""
    return f"run-{place.name}"


def trained_problem(place: Path, pairs: int = 8) -> Problem:
    """Held-out sequences of a trained run, as STORE/NAME, cut where the last answer is predicted.

    Raises:
        UsageError: if the run's held-out sequences give fewer pairs with different answers.
    """
    run = Store(place.parent).run(place.name)
    model, task, _ = load_model(run)
    model = model.requires_grad_(False)
    length = max(task.lengths)
    sequences = task.split(run.config.seed, run.config.data).test[length]
    answer = task.layout(length).queries[-1] + 1
    clean, corrupted = sequences[: len(sequences) // 2], sequences[len(sequences) // 2 :][: len(sequences) // 2]
    differ = (clean[:, answer] != corrupted[:, answer]).nonzero()[:pairs, 0]
    if len(differ) < pairs:
        raise UsageError(
            f"{place}: {len(differ)} held-out pairs of length {length} have different answers, not {pairs}"
        )
    clean, corrupted = clean[differ], corrupted[differ]
    cfg = model.cfg
    sizes = (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_heads, cfg.mlp_width, cfg.d_vocab)
    case = Case(run_name(place), Shape("toy", *sizes), answer, "last", pairs=pairs)
    targets = clean[:, answer], corrupted[:, answer]
    return Problem(case, model, decoder_of(model), clean[:, :answer], corrupted[:, :answer], *targets)
