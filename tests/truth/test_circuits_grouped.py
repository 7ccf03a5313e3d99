"""Planted relays are named where query heads share keys and values, and other heads of their group are not."""

import dataclasses

import pytest
import torch

from circuits.interactions import interactions
from circuits.problem import Problem
from circuits.pruning import order_of
from circuits.search.base import Search
from interp.decoder import Decoder, forward
from interp.registry import load
from interp.rng import generator
from tests.truth.circuit_families import N_TOKENS, Planted, framed, relay, two_runs
from tests.truth.hand_circuits import FORMS, Bench


def sharing(decoder: Decoder) -> Decoder:
    """The same function with one key and value head per layer: each query head asks and reads in its own dimensions."""

    layers = []
    for layer in decoder.layers:
        attn, n = layer.attn, len(layer.attn.W_Q)
        new = {name: torch.cat(list(getattr(attn, name)), -1)[None] for name in ("W_K", "W_V")}
        new["W_Q"] = torch.stack(torch.block_diag(*attn.W_Q).chunk(n, 0))  # [head d_model head*d_head]
        new["W_O"] = torch.stack(torch.block_diag(*attn.W_O).chunk(n, 1))  # [head head*d_head d_model]
        layers.append(dataclasses.replace(layer, attn=dataclasses.replace(attn, **new)))
    return dataclasses.replace(decoder, layers=tuple(layers))


def relays(planted: Planted, form: str) -> set[tuple[str, str, str]]:
    """Relays that the search names in the model whose heads share keys and values."""
    decoder = planted.decoder(FORMS[form])
    problem = Problem(sharing(decoder), planted.pairs())
    error = (forward(problem.decoder, planted.clean) - forward(decoder, planted.clean)).abs().max()
    assert error < 1e-4 and "L1.KV0.v" in problem.parts["score"].runs.graph.receivers
    scores = load("search", "exact").rank(Search(problem)).scores
    order = [tuple(divmod(int(i), scores.shape[1])) for i in order_of(scores, problem.live)]
    roles = interactions(problem, order, problem.live, n_edges=2, most=100).roles
    assert all("its own copy" in role.rule for role in roles if role.role == "relay")
    return {(role.node, role.role, role.other) for role in roles if role.role == "relay"}


def passed_on(second: tuple[int, str], gains: tuple[float, float]) -> Planted:
    """L0.H1 takes a token to place 3, from where L1.H0 takes it on; L1.H1 reads a feature at a place of its own."""
    bench = Bench(N_TOKENS, 7, {"one_on": N_TOKENS, "out": N_TOKENS}, heads=2)
    bench.at(0, 1, 1, 3)
    bench.move(0, 1, (bench["tok"], bench["one_on"]))
    for head, (place, feature), gain in ((0, (3, "one_on"), gains[0]), (1, second, gains[1])):
        bench.at(1, head, place, 6)
        bench.move(1, head, (bench[feature], gain * bench["out"]))
    clean, corrupted, answers, wrong = two_runs(generator(0, "passed on"), 5, 0)
    return Planted(bench, framed(clean), framed(corrupted), answers, wrong, ())


@pytest.mark.parametrize("form", ["plain", "all"])
def test_relays_that_share_values_are_named(form):
    planted = relay(0)
    assert relays(planted, form) == set(planted.roles)


def test_a_head_that_reads_something_else_of_the_shared_values_is_no_relay():
    """What L0.H1 writes into the shared values costs twice what ablating L1.H1 does, and L1.H1 passes none of it on."""
    assert relays(passed_on((1, "tok"), (1.0, 0.5)), "plain") == {("L1.H0", "relay", "L0.H1")}


def test_two_heads_that_pass_on_the_same_shared_values_are_both_relays():
    found = relays(passed_on((3, "one_on"), (0.6, 0.4)), "plain")
    assert found == {("L1.H0", "relay", "L0.H1"), ("L1.H1", "relay", "L0.H1")}
