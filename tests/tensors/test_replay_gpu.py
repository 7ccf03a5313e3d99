"""On a GPU, chunks replayed as a CUDA graph have the effects of chunks that are run one by one."""

import pytest
import torch

from circuits import patching
from circuits.patching import patch_heads
from tests.unit.small_decoders import logit_diff, prompts, small_decoder

pytestmark = pytest.mark.gpu
CASES = [("preset", "z", "last"), ("preset", "z", "all"), ("grouped", "k", "all"), ("rms swiglu rotary", "q", "last")]


def call(name: str, site: str, read: str, dtype: torch.dtype, device: torch.device):
    """A decoder and the arguments of a call that is cut into many small chunks."""
    clean, corrupted = prompts(61, length=6, same=1)
    metric = logit_diff(61, read)
    given = {"clean": clean.to(device), "corrupted": corrupted.to(device), "metric": metric, "site": site}
    return small_decoder(name, n_layers=3).to(device, dtype), given | {"max_bytes": 40_000, "positions": [1, 3]}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(("name", "site", "read"), CASES)
def test_replays_equal_chunks_that_run_one_by_one(device, name, site, read, backend, monkeypatch):
    decoder, given = call(name, site, read, torch.float32, device)
    replayed = patch_heads(decoder, **given, backend=backend)
    assert "replayed for" in replayed.graph, replayed.graph
    again = patch_heads(decoder, **given, backend=backend)
    exact, wide = call(name, site, read, torch.float64, device)
    truth = patch_heads(exact, **wide, precision="fp64", backend="torch").effect
    monkeypatch.setattr(patching, "graphs_for", lambda runs: (None, "left out"))
    plain = patch_heads(decoder, **given, backend=backend)
    assert plain.graph == "no graph: left out"
    allowed = 2 * (plain.effect - truth).abs().max() + 2e-6 * truth.abs().max()
    assert (replayed.effect - truth).abs().max() <= allowed
    assert (again.effect - truth).abs().max() <= allowed
    assert torch.equal(replayed.reason, plain.reason)
    assert replayed.flops >= plain.flops
