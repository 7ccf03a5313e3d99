"""Node scores equal derivatives through plain hooks, and the corrections of AtP* do what they claim."""

import dataclasses
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from circuits.attribution import attribution_patching
from circuits.attribution_result import NodeScores
from circuits.gradients import nodes
from circuits.metrics import LogitDiff
from circuits.patching_reference import Patch, patch_heads_reference, record, run_patched
from interp.decoder import decoder_of
from interp.errors import UnknownName
from interp.model import Transformer
from tests.unit.small_decoders import logit_diff, prompts, small_decoder
from tests.unit.test_decoder import VARIANTS, random_model

LIMIT = 1e-10  # of the largest score, in float64
HEADED = ("z", "q", "k", "v")


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def values(metric: LogitDiff, logits: Tensor) -> Tensor:
    """The metric of each prompt, at the last position or as a mean over all."""
    row = torch.arange(len(logits))[:, None]
    at = logits[:, -1:] if metric.positions == "last" else logits
    place = torch.arange(at.shape[1])
    return (at[row, place, metric.correct[:, None]] - at[row, place, metric.wrong[:, None]]).mean(1)


def hook_names(model: Transformer, site: str) -> list[str]:
    part = "hook_mlp_out" if site == "mlp_out" else f"attn.hook_{site}"
    return [f"blocks.{layer}.{part}" for layer in range(model.cfg.n_layers)]


def derivatives(model: Transformer, clean: Tensor, corrupted: Tensor, metric: LogitDiff, site: str, dropped=None):
    """[prompt, layer, *head, pos]: derivative of adding a multiple of the difference at one node, by plain hooks.

    With `dropped`, that layer's attention and MLP outputs are constants.
    """
    names = hook_names(model, site)
    old, new = record(model, clean, names), record(model, corrupted, names)
    frozen = [f"blocks.{dropped}.hook_{part}_out" for part in ("attn", "mlp")] if dropped is not None else []
    scores = []
    for name in names:
        change = new[name].clone() - old[name].clone()
        coefficient = torch.zeros(change.shape[:-1], dtype=change.dtype, requires_grad=True)
        hooks = [(name, lambda x, hook, c=coefficient, d=change: x + c[..., None] * d)]
        hooks += [(out, lambda x, hook: x.detach()) for out in frozen if out in model.hook_dict]
        logits = model.run_with_hooks(clean, fwd_hooks=hooks)
        scores.append(torch.autograd.grad(values(metric, logits).sum(), coefficient, allow_unused=True)[0])
        scores[-1] = torch.zeros_like(coefficient) if scores[-1] is None else scores[-1]
    stacked = torch.stack(scores, 1)  # [prompt layer pos *head]
    return stacked.transpose(2, 3) if stacked.dim() == 4 else stacked


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_node_score_is_the_derivative_of_adding_the_difference_there(name, positions):
    model, (clean, corrupted) = random_model(**VARIANTS[name]), prompts()
    metric = logit_diff(positions=positions)
    found = attribution_patching(model, clean, corrupted, metric)
    for site in HEADED if model.cfg.attn_only else (*HEADED, "mlp_out"):
        expected = derivatives(model, clean, corrupted, metric, site)
        assert expected.abs().max() > 1e-3
        assert (getattr(found, site) - expected).abs().max() < LIMIT * expected.abs().max()
    inputs = [model.embedded(tokens).detach() for tokens in (clean, corrupted)]
    coefficient = torch.zeros(clean.shape, dtype=torch.float64, requires_grad=True)
    shifted = inputs[0] + coefficient[..., None] * (inputs[1] - inputs[0])
    logits = model.run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: shifted)])
    expected = torch.autograd.grad(values(metric, logits).sum(), coefficient)[0]
    assert (found.embed - expected).abs().max() < LIMIT * expected.abs().max()


def test_attribution_equals_exact_patching_in_a_linear_model():
    """No norm, uniform attention whatever the queries, an MLP far inside the linear part of relu."""
    model = random_model(norm="none", activation="relu", bias=True, positions="none", n_layers=3)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
            block.mlp.b_in.fill_(1e4)
    clean, corrupted = prompts()
    metric = logit_diff()
    exact = patch_heads_reference(model, clean, corrupted, lambda x: values(metric, x), list(range(6)))
    found = attribution_patching(model, clean, corrupted, metric)
    assert exact.abs().max() > 0.1
    assert (found.z - exact).abs().max() < 1e-9 * exact.abs().max()


def one_layer(sharpness: float) -> Transformer:
    """Attention only and without norms, so that the logits are linear in the attention pattern."""
    model = random_model(norm="none", attn_only=True, n_layers=1, n_heads=3, d_model=6, d_head=4, final_norm=False)
    with torch.no_grad():
        model.blocks[0].attn.W_Q.mul_(sharpness)
    return model


def patched_effects(model: Transformer, clean: Tensor, corrupted: Tensor, metric: LogitDiff, site: str) -> Tensor:
    """[prompt, head, pos]: exact effect of patching one query or key."""
    name = f"blocks.0.attn.hook_{site}"
    new, before = record(model, corrupted, [name])[name], values(metric, model(clean))
    effect = torch.zeros(len(clean), model.cfg.n_heads, clean.shape[1], dtype=torch.float64)
    for head in range(model.cfg.n_heads):
        for pos in range(clean.shape[1]):
            logits = run_patched(model, clean, [Patch(name, pos, new[:, pos, head], head)])
            effect[:, head, pos] = values(metric, logits) - before
    return effect


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("positions", ["last", "all"])
@torch.no_grad()
def test_qk_fix_is_exact_where_all_behind_the_pattern_is_linear(sharpness, positions):
    """Up to saturated attention, where single weights round to 0 or 1; plain attribution patching is off there."""
    model, (clean, corrupted) = one_layer(sharpness), prompts(4, same=0)
    metric = logit_diff(4, positions)
    found = attribution_patching(model, clean, corrupted, metric, qk_fix=True)
    plain = attribution_patching(model, clean, corrupted, metric)
    off = 0.0
    for site in "qk":
        exact = patched_effects(model, clean, corrupted, metric, site)
        assert (getattr(found, site)[:, 0] - exact).abs().max() < LIMIT * exact.abs().max()
        off = max(off, float((getattr(plain, site)[:, 0] - exact).norm() / exact.norm()))
    assert off > (0.02 if sharpness < 1 else 0.3)
    assert torch.equal(found.z, plain.z) and torch.equal(found.v, plain.v)


def test_a_saturated_head_scores_near_zero_without_the_fix():
    model, (clean, corrupted) = one_layer(300.0), prompts(4, same=0)
    with torch.no_grad():
        exact = patched_effects(model, clean, corrupted, logit_diff(4), "q")
    plain, fixed = (
        attribution_patching(model, clean, corrupted, logit_diff(4), qk_fix=on).q[:, 0] for on in (False, True)
    )
    saturated = (plain.abs() < 1e-3 * exact.abs()) & (exact.abs() > 0.1)
    assert saturated.any()
    assert (fixed - exact)[saturated].abs().max() < LIMIT * exact.abs().max()


def exact_column(scores: list[float], gradient: list[float], column: int, by: float) -> float:
    """Sum over keys of (patched - old weight) gradient, with 250 digits."""
    with localcontext(prec=250):
        old = [Decimal(score).exp() for score in scores]
        new = [(Decimal(score) + Decimal(by) * (key == column)).exp() for key, score in enumerate(scores)]
        parts = zip(old, new, gradient, strict=True)
        return float(sum((b / sum(new) - a / sum(old)) * Decimal(g) for a, b, g in parts))


def test_one_column_keeps_its_digits_at_an_attention_sink():
    """One weight is all but 1, one key is moved up or down by little or by far: float32, each column on its own."""
    stream = torch.Generator().manual_seed(0)
    scores, gradient = torch.randn(2, 5, generator=stream)
    for sink in (1.0, 5.0, 15.0, 25.0, 200.0):
        scores[3] = sink
        for by in (-300.0, -30.0, -1.0, -1e-4, 1e-4, 1.0, 30.0, 300.0):
            columns = [exact_column(scores.tolist(), gradient.tolist(), column, by) for column in range(5)]
            rows = (scores.double().log_softmax(-1).float(), gradient, torch.full((5,), by))
            found = nodes.one_column(*rows).double()
            exact = torch.tensor(columns, dtype=torch.float64)
            assert exact.abs().max() > 0
            # a logarithm of up to 500 carries an error of 3e-5 in float32, and so does its exponential
            near = (found - exact).abs() <= 3e-5 * exact.abs() + torch.finfo(torch.float32).tiny
            assert near.all(), (sink, by, found, exact)


def test_a_shared_key_scores_what_its_copies_score_together():
    decoder, (clean, corrupted) = small_decoder("grouped"), prompts()

    def copied(layer):
        kept = {n: getattr(layer.attn, n).repeat_interleave(2, 0) for n in ("W_K", "W_V", "b_K", "b_V")}
        return dataclasses.replace(layer, attn=dataclasses.replace(layer.attn, **kept))

    apart = dataclasses.replace(decoder, layers=tuple(copied(layer) for layer in decoder.layers))
    for fix in (False, True):
        shared, copies = (
            attribution_patching(one, clean, corrupted, logit_diff(), qk_fix=fix) for one in (decoder, apart)
        )
        assert shared.names["k"][:2] == ("L0.KV0.k", "L0.KV1.k")
        for site in "kv":
            together = getattr(copies, site).unflatten(2, (2, 2)).sum(3)
            assert (getattr(shared, site) - together).abs().max() < LIMIT
        assert (shared.q - copies.q).abs().max() < LIMIT and (shared.z - copies.z).abs().max() < LIMIT


@pytest.mark.parametrize("name", ["preset", "attention only", "normed residual"])
def test_grad_drop_is_the_mean_of_absolute_scores_with_one_layer_constant(name):
    model, (clean, corrupted) = random_model(**{**VARIANTS[name], "n_layers": 3}), prompts()
    metric = logit_diff(positions="all")
    found = attribution_patching(model, clean, corrupted, metric, grad_drop=True)
    for site in ("z", "v"):
        parts = [derivatives(model, clean, corrupted, metric, site, dropped=layer).abs() for layer in range(3)]
        assert all(not part[:, layer].any() for layer, part in enumerate(parts))  # its own layer gives 0
        assert (getattr(found, site) - sum(parts) / 2).abs().max() < LIMIT * sum(parts).max()
    assert (found.work.forwards, found.work.backwards) == (2, 3)


def test_grad_drop_brings_back_a_node_whose_paths_cancel():
    """A second layer undoes what the head writes: the plain score is 0, with that layer dropped it is not."""
    settings = {"norm": "none", "attn_only": True, "n_layers": 2, "n_heads": 1, "positions": "none", "d_head": 8}
    model = random_model(**settings, final_norm=False)
    with torch.no_grad():
        last = model.blocks[1].attn
        last.W_Q.zero_()
        last.W_V.copy_(torch.eye(8, dtype=torch.float64))
        last.W_O.copy_(-torch.eye(8, dtype=torch.float64))
    clean, corrupted = torch.tensor([[1]]), torch.tensor([[4]])  # one position: the last layer writes minus its input
    metric = LogitDiff(torch.tensor([0]), torch.tensor([3]))
    plain = attribution_patching(model, clean, corrupted, metric)
    assert plain.z[0, 0, 0, 0].abs() < 1e-12
    assert attribution_patching(model, clean, corrupted, metric, grad_drop=True).z[0, 0, 0, 0] > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_score_as_they_do_alone(side):
    decoder, (clean, corrupted), lengths = small_decoder("grouped"), prompts(3), (6, 3, 4)
    places = torch.arange(6)
    mask = torch.stack([places < n if side == "right" else places >= 6 - n for n in lengths])
    metric = LogitDiff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    found = attribution_patching(decoder, clean, corrupted, metric, mask=mask, qk_fix=True, max_bytes=1)
    for row, real in enumerate(mask):
        own = LogitDiff(metric.correct[row : row + 1], metric.wrong[row : row + 1])
        alone = attribution_patching(
            decoder, clean[row : row + 1, real], corrupted[row : row + 1, real], own, qk_fix=True
        )
        for site in ("embed", *HEADED, "mlp_out"):
            ours, theirs = getattr(found, site)[row], getattr(alone, site)[0]
            assert (ours[..., real] - theirs).abs().max() < LIMIT
            assert not ours[..., ~real].any()


def test_table_and_list_of_silent_nodes_name_every_node():
    model, (clean, corrupted) = random_model(attn_only=True), prompts()
    found: NodeScores = attribution_patching(model, clean, corrupted, logit_diff())
    table, each = found.to_frame(), found.to_frame(by_prompt=True)
    nodes = {"embed", *(f"L{layer}.H{head}{slot}" for layer in (0, 1) for head in (0, 1) for slot in ("", *SLOTS))}
    assert set(table["node"]) == nodes and len(table) == 6 * len(nodes) and len(each) == 2 * len(table)
    line = each[(each["node"] == "L1.H0.k") & (each["prompt"] == 1) & (each["pos"] == 3)]
    assert line["score"].item() == found.k[1, 1, 0, 3].item() != 0
    assert not found.mlp_out.any() and not found.no_effect
    silent = attribution_patching(model, clean, clean, logit_diff())
    assert {item.name for item in silent.no_effect} == nodes | {"prompt 0", "prompt 1"}
    with pytest.raises(UnknownName, match="unknown site 'resid_pre'"):
        found.of("resid_pre")


SLOTS = (".q", ".k", ".v")


def test_values_of_a_node_that_matters_nowhere_are_listed_as_unseen():
    model, (clean, corrupted) = random_model(), prompts()
    with torch.no_grad():
        model.blocks[1].attn.W_O[0].zero_()
    reasons = {item.name: item.reason for item in attribution_patching(model, clean, corrupted, logit_diff()).no_effect}
    assert set(reasons) == {"L1.H0", "L1.H0.q", "L1.H0.k", "L1.H0.v"}
    assert all(reason.startswith("its difference meets no gradient") for reason in reasons.values())
    assert decoder_of(model).name == "Transformer"
