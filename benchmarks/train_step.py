"""Ratio of one training step of our Transformer to a plain fused PyTorch module of the same shape and weights.

Run: python -m benchmarks.train_step [--blocks 15] [--steps 40] [--out benchmarks/results/train_step.json]
A step is forward, cross-entropy, backward, gradient clipping and fused Adam, on one thread. The two models take turns
in short blocks, in an order that flips every block, so drift of a busy machine falls on both; the reported ratio is the
median over blocks of (ours / plain). Nothing is reported unless logits and gradients agree first.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.model import Transformer
from interp.rng import generator

TARGET = 1.05
TOLERANCE = 1e-5
SHAPES = {
    "preset": ModelConfig(d_vocab=14, n_ctx=35, embed_norm=True, dropout=0.2),
    "4 heads, d 64": ModelConfig(d_vocab=14, n_ctx=35, d_model=64, n_heads=4, embed_norm=True, dropout=0.2),
}
BATCH = 32


class PlainBlock(nn.Module):
    """Pre-norm block as one writes it without hooks: one Linear for q, k and v, fused attention."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.heads = cfg.n_heads
        self.ln1 = nn.LayerNorm(cfg.d_model, bias=False)
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=False)
        self.out = nn.Linear(cfg.d_model, cfg.d_model, bias=False)
        self.ln2 = nn.LayerNorm(cfg.d_model, bias=False)
        self.mlp_in = nn.Linear(cfg.d_model, cfg.mlp_width, bias=False)
        self.mlp_out = nn.Linear(cfg.mlp_width, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, pos, d_model = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(d_model, dim=-1)  # [batch pos d_model] each
        q, k, v = (y.view(batch, pos, self.heads, -1).transpose(1, 2) for y in (q, k, v))  # [batch head pos d_head]
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(batch, pos, d_model))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.ln2(x))))


class Plain(nn.Module):
    """The whole plain model."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.tokens = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.positions = nn.Embedding(cfg.n_ctx, cfg.d_model)
        self.ln_embed = nn.LayerNorm(cfg.d_model, bias=False)
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.Sequential(*(PlainBlock(cfg) for _ in range(cfg.n_layers)))
        self.ln_final = nn.LayerNorm(cfg.d_model, bias=False)
        self.head = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.ln_final(self.blocks(self.dropout(self.ln_embed(x)))))


@torch.no_grad()
def plain_twin(model: Transformer) -> Plain:
    """A plain model with the same weights."""
    twin = Plain(model.cfg)
    pairs = [
        (twin.tokens.weight, model.embed.W_E),
        (twin.positions.weight, model.pos_embed.W_pos),
        (twin.ln_embed.weight, model.ln_embed.w),
        (twin.ln_final.weight, model.ln_final.w),
        (twin.head.weight, model.unembed.W_U.T),
    ]
    for plain, ours in zip(twin.blocks, model.blocks, strict=True):
        merged = [w.transpose(0, 1).flatten(1).T for w in (ours.attn.W_Q, ours.attn.W_K, ours.attn.W_V)]
        pairs += [
            (plain.ln1.weight, ours.ln1.w),
            (plain.qkv.weight, torch.cat(merged)),
            (plain.out.weight, ours.attn.W_O.flatten(0, 1).T),
            (plain.ln2.weight, ours.ln2.w),
            (plain.mlp_in.weight, ours.mlp.W_in.T),
            (plain.mlp_out.weight, ours.mlp.W_out.T),
        ]
    for target, source in pairs:
        target.copy_(source)
    return twin


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy on all positions."""
    logits = model(tokens)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def difference(ours: Transformer, plain: Plain, tokens: Tensor) -> dict[str, float]:
    """Largest absolute differences of logits and of gradients, with dropout off."""
    ours.eval()
    plain.eval()
    logits = (ours(tokens) - plain(tokens)).abs().max().item()
    for model in (ours, plain):
        model.zero_grad()
        loss_of(model, tokens).backward()
    gradients = [
        (ours.embed.W_E.grad - plain.tokens.weight.grad).abs().max().item(),
        (ours.pos_embed.W_pos.grad - plain.positions.weight.grad).abs().max().item(),
        (ours.blocks[0].mlp.W_in.grad - plain.blocks[0].mlp_in.weight.grad.T).abs().max().item(),
        (ours.blocks[0].attn.W_O.grad.flatten(0, 1) - plain.blocks[0].out.weight.grad.T).abs().max().item(),
    ]
    return {"logits": logits, "gradients": max(gradients)}


def stepper(model: nn.Module, tokens: Tensor) -> Callable[[int], float]:
    """A function that trains for n steps and returns seconds per step."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    parameters = list(model.parameters())

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss_of(model, tokens).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return (time.perf_counter() - start) / steps

    return run


def measure(cfg: ModelConfig, blocks: int, steps: int) -> dict:
    """Check equality, then time both models in alternating blocks.

    Raises:
        SystemExit: when logits or gradients differ by more than TOLERANCE.
    """
    ours = Transformer(cfg, seed=0)
    plain = plain_twin(ours)
    tokens = torch.randint(cfg.d_vocab, (BATCH, cfg.n_ctx), generator=generator(0, "benchmark"))
    gap = difference(ours, plain, tokens)
    if max(gap.values()) > TOLERANCE:
        raise SystemExit(f"not the same function, no time is reported: {gap}")
    run_ours, run_plain = stepper(ours, tokens), stepper(plain, tokens)
    run_ours(steps), run_plain(steps)  # warm-up
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for block in range(blocks):
        order = [("ours", run_ours), ("plain", run_plain)]
        for name, run in order if block % 2 == 0 else reversed(order):
            times[name].append(run(steps))
    ratios = sorted(a / b for a, b in zip(times["ours"], times["plain"], strict=True))
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
        "ours_ms": round(1e3 * statistics.median(times["ours"]), 4),
        "plain_ms": round(1e3 * statistics.median(times["plain"]), 4),
        "max_abs_difference": gap,
        "shape": {"batch": BATCH, "pos": cfg.n_ctx, **cfg.model_dump(exclude_defaults=True, mode="json")},
    }


def main() -> None:
    """Measure every shape and write the JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    options = parser.parse_args()
    if options.blocks < 9:
        parser.error("--blocks must be at least 9: the median of fewer pairs is not stable enough to report")
    torch.set_num_threads(1)
    record = {
        "format": 1,
        "benchmark": "train_step",
        "target": TARGET,
        "blocks": options.blocks,
        "steps_per_block": options.steps,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": 1},
        "cases": {},
    }
    for name, cfg in SHAPES.items():
        case = measure(cfg, options.blocks, options.steps)
        record["cases"][name] = {**case, "target_met": case["ratio"] <= TARGET}
        print(f"{name}: {case['ratio']:.3f}x (ours {case['ours_ms']:.2f} ms, plain {case['plain_ms']:.2f} ms per step)")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
