"""Every patch of small models equals the same patch by one hooked forward, in float64."""

import dataclasses
import itertools

import pytest
import torch

from circuits.engine import starts
from circuits.engine.plan import row_bytes
from circuits.engine.starts import Starts
from circuits.metrics import KL, Accuracy, LogitDiff, LogProb, UserMetric
from circuits.patch_edges import patch_edges
from circuits.patch_result import REASONS, PatchResult
from circuits.patch_sets import patch_sets
from circuits.patch_verify import rerun
from circuits.patching import patch_heads, plan_heads
from interp.decoder import decoder_of
from interp.errors import UsageError
from tests.unit.small_decoders import FAMILIES, OUTSIDE, logit_diff, prompts, small_decoder
from tests.unit.test_decoder import VARIANTS, random_model

SITES = ("z", "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post")


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny products: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def largest_error(result: PatchResult) -> float:
    """Over every patch, skipped or not, against one forward pass each."""
    places = itertools.product(*(range(size) for size in result.effect.shape[1:]))
    errors = [(result.effect[(slice(None), *place)] - rerun(result, *place)).abs().max() for place in places]
    return float(torch.stack(errors).max())


def missing(name: str, site: str) -> bool:
    """Whether the family has no such site."""
    if name == "attention only":
        return site in ("resid_mid", "mlp_out", "mlp_post")
    return "parallel" in name and site == "resid_mid"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_every_head_patch_of_every_configuration_equals_its_hooked_forward(name, n_layers):
    model = random_model(**{**VARIANTS[name], "n_layers": n_layers})
    clean, corrupted = prompts(length=5)
    for positions in ("last", "all"):
        metric = logit_diff(positions=positions)
        result = patch_heads(model, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
        assert largest_error(result) < 1e-10
        assert result.effect.abs().max() > 1e-3


@pytest.mark.parametrize(("name", "site"), [(n, s) for n in FAMILIES for s in SITES if not missing(n, s)])
def test_every_site_of_every_family_equals_its_forward(name, site):
    decoder = small_decoder(name, n_layers=3, d_mlp=3)
    clean, corrupted = prompts(length=4, same=1)
    for positions in ("last", "all"):
        metric = logit_diff(positions=positions)
        result = patch_heads(decoder, clean=clean, corrupted=corrupted, metric=metric, site=site, precision="fp64")
        assert largest_error(result) < 1e-10
        assert result.effect.abs().max() > 1e-4


METRICS = {
    "logit difference at two places": logit_diff(positions=torch.tensor([[1, 4], [3, 5]])),
    "answers by position": LogitDiff(torch.arange(12).view(2, 6) % 7, torch.arange(12).view(2, 6) % 5, "all"),
    "log-probability": LogProb(torch.tensor([1, 2])),
    "divergence": KL("all"),
    "accuracy": Accuracy(torch.tensor([1, 2]), "all"),
    "a function of the logits": UserMetric(lambda logits: logits.square().mean((1, 2)) + logits[:, -1, 0]),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_metric_in_both_directions_equals_its_forward(name, direction):
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=3), prompts()
    result = patch_heads(
        decoder, clean=clean, corrupted=corrupted, metric=METRICS[name], direction=direction, precision="fp64"
    )
    assert largest_error(result) < 1e-10


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("site", ["z", "k", "mlp_out", "resid_pre"])
def test_every_ablation_equals_its_forward(ablation, site):
    decoder, (clean, _) = small_decoder("preset"), prompts(n=3)
    metric = logit_diff(n=3)
    result = patch_heads(decoder, clean=clean, metric=metric, ablation=ablation, site=site, precision="fp64")
    assert largest_error(result) < 1e-10
    assert result.source is None


def test_resampling_from_corrupted_prompts_is_patching_them_into_the_clean_run():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(), "precision": "fp64"}
    noise = patch_heads(decoder, **runs, direction="noise")
    assert torch.equal(patch_heads(decoder, **runs, ablation="resample").effect, noise.effect)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["preset", "rms swiglu rotary", "grouped", "parallel"])
def test_a_padded_prompt_has_the_effects_that_it_has_alone(side, name):
    decoder, lengths = small_decoder(name, n_layers=3), (3, 6, 5)
    clean, corrupted = prompts(n=3)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    padded = [tokens * mask for tokens in (clean, corrupted)]
    if side == "left":
        mask, padded = (
            mask.flip(1),
            [torch.stack([row.roll(6 - n) for row, n in zip(t, lengths, strict=True)]) for t in padded],
        )
    metric = logit_diff(n=3, positions="all")
    runs = {"metric": metric, "precision": "fp64", "mask": mask}
    result = patch_heads(decoder, clean=padded[0], corrupted=padded[1], **runs)
    for row, length in enumerate(lengths):
        alone = patch_heads(
            decoder,
            clean=clean[[row], :length],
            corrupted=corrupted[[row], :length],
            metric=LogitDiff(metric.correct[[row]], metric.wrong[[row]], "all"),
            precision="fp64",
        )
        first = 6 - length if side == "left" else 0
        assert (result.effect[row, ..., first : first + length] - alone.effect[0]).abs().max() < 1e-10
        outside = [pos for pos in range(6) if not first <= pos < first + length]
        assert not bool(result.effect[row][..., outside].any())
        assert all(REASONS[r] == "padding" for r in result.reason[row][..., outside].flatten().tolist())
    assert largest_error_of_kept(result, mask) < 1e-10


def largest_error_of_kept(result: PatchResult, mask: torch.Tensor) -> float:
    """Like `largest_error`, for the places that are no padding."""
    worst = 0.0
    for place in itertools.product(*(range(size) for size in result.effect.shape[1:])):
        error = (result.effect[(slice(None), *place)] - rerun(result, *place)).abs()
        worst = max(worst, float((error * mask[:, place[-1]]).max()))
    return worst


def test_clean_into_clean_is_exactly_zero_everywhere():
    decoder, (clean, _) = small_decoder("preset", n_layers=3), prompts()
    result = patch_heads(decoder, clean=clean, corrupted=clean.clone(), metric=logit_diff(positions="all"))
    assert not bool(result.effect.any())
    assert result.skipped == {"before the first difference": result.effect.numel()}


def test_every_skipped_zero_has_its_reason():
    decoder, (clean, corrupted) = small_decoder("preset"), prompts(same=2)
    metric = logit_diff(positions=torch.tensor([4, 4]))
    result = patch_heads(decoder, clean=clean, corrupted=corrupted, metric=metric, precision="fp64")
    reason = [[REASONS[code] for code in layer] for layer in result.reason[0, :, 0].tolist()]
    before, after, unread = "before the first difference", "after the metric", "last layer, row not read"
    assert reason == [
        [before, before, "", "", "", after],
        [before, before, unread, unread, "", after],
    ]
    assert not bool(result.effect[result.reason != 0].any())
    assert bool((result.effect[result.reason == 0] != 0).all())
    frame = result.to_frame()
    assert list(frame.columns) == ["prompt", "layer", "head", "pos", "effect", "reason"]
    assert len(frame) == result.effect.numel()
    row = frame[(frame["layer"] == 0) & (frame["head"] == 1) & (frame["pos"] == 3) & (frame["prompt"] == 1)]
    assert float(row["effect"].iloc[0]) == float(result.effect[1, 0, 1, 3])


@pytest.mark.parametrize("site", ["z", "k", "mlp_post"])
def test_chunks_change_no_number(site):
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=4), prompts(n=3, length=8)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(n=3, positions="all"), "site": site}
    whole = patch_heads(decoder, **runs, precision="fp64")
    tight = patch_heads(decoder, **runs, precision="fp64", max_bytes=20_000)
    assert len(tight.plan.chunks) > 5 * len(whole.plan.chunks)
    assert (whole.effect - tight.effect).abs().max() < 1e-12
    assert torch.equal(whole.reason, tight.reason)


def test_chosen_layers_heads_and_positions_are_the_same_numbers():
    decoder, (clean, corrupted) = small_decoder("grouped", n_layers=3), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(positions="all"), "precision": "fp64"}
    whole = patch_heads(decoder, **runs)
    some = patch_heads(decoder, **runs, layers=[2, 0], components=[3, 1], positions=[4, 2])
    assert (some.layers, some.components, some.positions) == ((0, 2), (1, 3), (2, 4))
    expected = whole.effect[:, [0, 2]][:, :, [1, 3]][..., [2, 4]]
    assert (some.effect - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["preset", *OUTSIDE])
def test_float32_errs_at_most_twice_as_much_as_hooked_forwards_do(name):
    exact_decoder, (clean, corrupted) = small_decoder(name, n_layers=3), prompts(n=4, length=9)
    decoder = exact_decoder.to(torch.float32)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(n=4)}
    exact = patch_heads(exact_decoder, **runs, precision="fp64").effect
    engine = patch_heads(decoder, **runs)
    places = (engine.reason[0] == 0).nonzero().tolist()
    eager = torch.stack([rerun(engine, *place) for place in places], 1).double()
    truth = torch.stack([exact[(slice(None), *place)] for place in places], 1)
    ours = torch.stack([engine.effect[(slice(None), *place)] for place in places], 1).double()
    assert (ours - truth).norm() <= 2 * (eager - truth).norm()
    assert (ours - truth).abs().max() <= 2 * (eager - truth).abs().max()


def test_coarse_products_keep_the_relative_size_of_small_effects():
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=3, d_model=32), prompts(n=4)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(n=4)}
    exact = patch_heads(decoder, **runs, precision="fp64").effect
    for precision, bound in (("tf32", 2e-3), ("bf16", 2e-2)):
        coarse = patch_heads(decoder, **runs, precision=precision)
        error = (coarse.effect - exact).norm() / exact.norm()
        assert 1e-6 < error < bound
        assert coarse.precision == precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", [logit_diff(), KL(), UserMetric(lambda logits: logits[:, -1, 0])])
def test_a_16_bit_model_runs_in_float32_and_its_drift_is_recorded(dtype, metric):
    decoder, (clean, corrupted) = small_decoder("preset", d_model=32), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric}
    result = patch_heads(decoder.to(dtype), **runs)
    exact = patch_heads(decoder.to(dtype).to(torch.float64), **runs, precision="fp64")
    assert result.effect.dtype == torch.float32
    assert (result.effect - exact.effect).abs().max() < 1e-4 * exact.effect.abs().max()
    assert 0 < result.drift.abs().max() < 1
    assert exact.drift is None


def test_edges_and_sets_of_a_16_bit_model_record_what_ran_and_the_drift():
    decoder, (clean, corrupted) = small_decoder("preset").to(torch.bfloat16), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff()}
    drift = patch_heads(decoder, **runs).drift
    edges = patch_edges(decoder, **runs, senders=["L0.H0"], receivers=["L1.H0.v", "logits"])
    sets = patch_sets(decoder, [[("z", 0, 0, 3)]], **runs)
    for result in (edges, sets):
        assert (result.drift - drift).abs().max() < 1e-3 * drift.abs().max()  # rows recorded together round otherwise
        assert "delta_norm: torch" in result.backend
    assert patch_sets(decoder.to(torch.float32), [[("z", 0, 0, 3)]], **runs).drift is None


def test_verify_reports_the_error_and_sees_a_wrong_effect():
    model, (clean, corrupted) = random_model(n_layers=3, embed_norm=True), prompts()
    result = patch_heads(model, clean=clean, corrupted=corrupted, metric=logit_diff(), precision="fp64")
    checked = result.verify(10)
    assert (checked.n, checked.max_error < 1e-10, checked.largest_effect > 1e-3) == (10, True, True)
    result.effect.add_(0.5)
    assert result.verify(10).max_error == pytest.approx(0.5)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_coarse_result_prints_the_error_of_its_verification(precision):
    clean, corrupted = prompts()
    decoder = small_decoder("preset").to(torch.float32)
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff()}
    coarse = patch_heads(decoder, **runs, precision=precision)
    assert str(coarse.verify()) in str(coarse)
    assert f"in {precision}" in str(coarse)
    assert "no graph: tensors are on cpu" in str(coarse)
    assert "rerun" not in str(patch_heads(decoder, **runs))


def test_a_normalised_effect_of_one_is_the_whole_difference():
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=1), prompts(same=5)
    result = patch_heads(
        decoder, clean=clean, corrupted=corrupted, metric=logit_diff(), site="resid_pre", precision="fp64"
    )
    assert (result.normalised[:, 0, 0, 5] - 1).abs().max() < 1e-9  # the runs differ at the last token only


def test_progress_is_told_and_can_cancel():
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=3), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(), "max_bytes": 1}
    seen = []
    patch_heads(decoder, **runs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_heads(decoder, **runs, progress=cancel)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("max_bytes", [None, 60_000])
def test_the_plan_predicts_the_operations_that_are_counted(site, positions, max_bytes):
    for name in ("preset", "grouped"):
        decoder, (clean, _) = small_decoder(name, n_layers=3), prompts(length=7)
        corrupted = torch.cat((clean[:, :1], (clean[:, 1:] + 1) % 7), 1)  # a token that agrees would be predicted too
        runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(positions=positions), "site": site}
        result = patch_heads(decoder, **runs, max_bytes=max_bytes)
        assert result.plan.flops == pytest.approx(result.flops, rel=0.01)


def test_a_plan_alone_is_that_of_the_call_and_has_a_time():
    decoder, (clean, corrupted) = small_decoder("preset", n_layers=3), prompts()
    runs = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(), "max_bytes": 1_000_000}
    plan = plan_heads(decoder, **runs)
    assert plan.seconds > 0
    assert dataclasses.replace(plan, seconds=None) == patch_heads(decoder, **runs).plan
    for seconds, words in ((0.002, "less than 0.01 s"), (0.123, "about 0.12 s"), (3456.7, "about 3,457 s")):
        assert str(dataclasses.replace(plan, seconds=seconds)).endswith(f", {words}")


def test_operations_are_far_below_one_forward_per_patch():
    decoder, (clean, corrupted) = small_decoder("preset", d_model=64), prompts(n=1, length=9, same=0)
    result = patch_heads(decoder, clean=clean, corrupted=corrupted, metric=logit_diff(n=1))
    assert result.plan.patches == 9 * 2 + 2
    assert result.flops < result.plan.naive_flops / 5
    assert "GFLOP" in str(result.plan)


BAD = {
    "one token more": ({"corrupted": torch.zeros(2, 7, dtype=torch.long)}, r"clean: shape \(2, 6\), but corrupted"),
    "no prompts": ({"clean": torch.zeros(0, 6, dtype=torch.long), "corrupted": None, "ablation": "zero"}, "no prompt"),
    "floats for tokens": ({"clean": torch.zeros(2, 6)}, "clean: .*float32: expected token ids"),
    "an unknown token": ({"clean": torch.full((2, 6), 9)}, "clean: tokens run from 9 to 9"),
    "an unknown site": ({"site": "head"}, "site: 'head': expected one of z, q"),
    "no corrupted prompts": ({"corrupted": None}, "corrupted: patching between two runs"),
    "an unknown precision": ({"precision": "int8"}, "precision: 'int8'"),
    "an unknown direction": ({"direction": "up"}, "direction: 'up'"),
    "an unknown ablation": ({"ablation": "half"}, "ablation: 'half'"),
    "a layer too many": ({"layers": [2]}, "layers: .*expected numbers from 0 to 1"),
    "a metric of another batch": ({"metric": logit_diff(n=3)}, r"metric: correct of shape \(3,\)"),
    "a metric beyond the prompt": ({"metric": logit_diff(positions=6)}, "metric: position 6 is outside prompt 0"),
    "a metric of a wrong shape": ({"metric": lambda logits: logits.mean()}, "metric: the function gave"),
    "a mask of another shape": ({"mask": torch.ones(2, 5)}, "mask: shape"),
    "a mask with a hole": ({"mask": torch.tensor([[1, 0, 1, 1, 1, 1]] * 2)}, "padding between its tokens"),
    "an empty prompt": ({"mask": torch.tensor([[1] * 6, [0] * 6])}, "prompt 1 has no token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    clean, corrupted = prompts()
    change, message = BAD[name]
    arguments = {"clean": clean, "corrupted": corrupted, "metric": logit_diff()} | change
    with pytest.raises(UsageError, match=message):
        patch_heads(small_decoder("preset"), **arguments)


def test_weights_that_are_not_finite_are_named():
    model, (clean, corrupted) = random_model(), prompts()
    with torch.no_grad():
        model.blocks[1].attn.W_V[0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"model: blocks\.1 attn W_V has values that are not finite"):
        patch_heads(decoder_of(model), clean=clean, corrupted=corrupted, metric=logit_diff())


@pytest.mark.parametrize(
    ("name", "site"),
    [("attention only", "z"), *itertools.product(("preset", "grouped", "rms swiglu rotary"), sorted(starts.CHEAP))],
)
def test_patches_that_begin_together_have_the_effects_of_those_that_begin_chunk_by_chunk(name, site, monkeypatch):
    decoder, (clean, corrupted) = small_decoder(name, n_layers=3), prompts(3, length=6, same=1)
    given = {"clean": clean, "corrupted": corrupted, "metric": logit_diff(3), "precision": "fp64"}
    made, of = [], Starts.of
    monkeypatch.setattr(Starts, "of", lambda *arguments: made.append(of(*arguments)) or made[-1])
    small = 40 * row_bytes(decoder, 8)
    monkeypatch.setattr(starts, "SHARE", 1)
    together = patch_heads(decoder, **given, site=site, max_bytes=small)
    assert made[0] is not None and len(together.plan.chunks) > 1
    assert made[0].kept
    monkeypatch.setattr(Starts, "of", lambda *arguments: None)
    apart = patch_heads(decoder, **given, site=site, max_bytes=small)
    assert (together.effect - apart.effect).abs().max() < 1e-12 * apart.effect.abs().max()
    assert torch.equal(together.reason, apart.reason)
