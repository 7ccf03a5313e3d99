"""Times AutoCircuit in an environment of its own: plain forwards per head-at-position patch, as JSON.

Run by `benchmarks.patching_autocircuit`, by an interpreter that has auto-circuit and TransformerLens 2; imports nothing
of this project. Patches are masks of the unfactorised graph (head output into the stream, at one position), set
directly, which is faster than naming edges; they are compared with a plain hook first.
"""

import json
import statistics
import sys
import time

import torch
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from transformer_lens import HookedTransformer, HookedTransformerConfig

CLOSE = 1e-9  # error of the largest effect, in float64


def model_of(shape: dict, dtype: torch.dtype) -> HookedTransformer:
    """A model with random weights."""
    sizes = {name: shape[name] for name in ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab", "n_ctx")}
    d_head = shape["d_model"] // shape["n_heads"]
    cfg = HookedTransformerConfig(**sizes, d_head=d_head, act_fn="gelu", seed=0, dtype=dtype)
    return HookedTransformer(cfg).eval().requires_grad_(False)


class Both:
    """The same model twice, plain and wrapped by AutoCircuit, with clean values recorded for both."""

    def __init__(self, shape: dict, n_patches: int, dtype: torch.dtype):
        self.plain, wrapped = model_of(shape, dtype), model_of(shape, dtype)
        wrapped.load_state_dict(self.plain.state_dict())
        wrapped.cfg.use_attn_result = True
        self.draw, self.d_vocab = torch.Generator().manual_seed(1), shape["d_vocab"]
        size = (1, shape["n_ctx"])
        clean, self.corrupted = (torch.randint(self.d_vocab, size, generator=self.draw) for _ in range(2))
        options = {"factorized": False, "slice_output": "last_seq", "separate_qkv": False}
        self.masked = patchable_model(wrapped, seq_len=shape["n_ctx"], **options)
        self.source = src_ablations(self.masked, clean, AblationType.RESAMPLE)
        into_stream = (edge for edge in self.masked.edges if edge.dest.name.startswith("Resid Mid"))
        self.edges = {(edge.src.name, edge.seq_idx): edge for edge in into_stream}
        _, self.cache = self.plain.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
        sizes = shape["n_layers"], shape["n_heads"], shape["n_ctx"]
        picks = [torch.randint(count, (n_patches,), generator=self.draw).tolist() for count in sizes]
        self.patches = list(zip(*picks, strict=True))

    def value(self, logits: torch.Tensor) -> torch.Tensor:
        """Difference of two logits at the last position."""
        return logits.reshape(1, -1, self.d_vocab)[0, -1, :2].diff()

    def forward(self, *patch: int) -> torch.Tensor:
        """The corrupted run."""
        return self.value(self.plain(self.corrupted))

    def by_masks(self, layer: int, head: int, pos: int) -> torch.Tensor:
        """A patch by AutoCircuit."""
        edge = self.edges[f"A{layer}.{head}", pos]
        set_all_masks(self.masked, 0.0)
        edge.patch_mask(self.masked).data[edge.patch_idx] = 1.0
        with patch_mode(self.masked, self.source):
            return self.value(self.masked(self.corrupted))

    def by_hooks(self, layer: int, head: int, pos: int) -> torch.Tensor:
        """The same patch by a hook."""
        name = f"blocks.{layer}.attn.hook_z"

        def edit(z, hook):
            z[:, pos, head] = self.cache[name][:, pos, head]
            return z

        return self.value(self.plain.run_with_hooks(self.corrupted, fwd_hooks=[(name, edit)]))


def error_of(shape: dict, n_patches: int) -> float:
    """Largest difference between AutoCircuit's effects and those of hooks, in float64, relative to the largest."""
    both = Both(shape, n_patches, torch.float64)
    before = both.forward()
    effects = torch.stack([both.by_hooks(*patch) - before for patch in both.patches])
    error = torch.stack([both.by_masks(*patch) - before for patch in both.patches]) - effects
    return float(error.abs().max() / effects.abs().max())


def measure(shape: dict, n_patches: int, rounds: int) -> dict:
    """Seconds of a plain forward and of a patch, in turns; nothing where the effects do not agree."""
    error = error_of(shape, n_patches)
    if not error < CLOSE:
        return {"error": error}
    both, times = Both(shape, n_patches, torch.float32), {"forward": [], "patch": []}
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in (("forward", both.forward), ("patch", both.by_masks)):
            started = time.process_time()
            for patch in both.patches:
                run(*patch)
            times[name].append((time.process_time() - started) / n_patches)
    ratios = [patch / forward for forward, patch in zip(times["forward"][1:], times["patch"][1:], strict=True)]
    return {
        "error": error,
        "forward_seconds": statistics.median(times["forward"][1:]),
        "forwards_per_patch": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    """Cases from standard input, results to standard output."""
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    with torch.no_grad():
        found = {name: measure(**case) for name, case in asked.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
