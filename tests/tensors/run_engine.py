"""Patches small decoders with every kernel in Triton's interpreter; prints the largest errors as JSON."""

import json
import sys

import torch

from circuits.metrics import KL
from circuits.patching import patch_heads
from tests.unit.small_decoders import logit_diff, prompts, small_decoder


def error(name: str, site: str, positions: str, metric: str = "logit difference") -> dict:
    """Largest error against float64, that of the torch path, the largest effect, and what ran."""
    decoder, (clean, corrupted) = small_decoder(name, n_layers=3), prompts(length=5, same=1)
    read = {"logit difference": logit_diff(positions=positions), "KL": KL(positions)}[metric]
    runs = {"clean": clean, "corrupted": corrupted, "metric": read, "site": site}
    exact = patch_heads(decoder, **runs, precision="fp64").effect
    single = decoder.to(torch.float32)
    kernels, plain = patch_heads(single, **runs), patch_heads(single, **runs, backend="torch")
    return {
        "kernels": float((kernels.effect - exact).abs().max()),
        "torch": float((plain.effect - exact).abs().max()),
        "effect": float(exact.abs().max()),
        "backend": kernels.backend,
        "plain": plain.backend,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([error(*case) for case in json.loads(sys.argv[1])]))
