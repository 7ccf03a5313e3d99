"""The committed figures of circuit discovery belong to the present families, and say what holds."""

import json

import pytest

from benchmarks.circuit_truth import PARTS, RESULTS, bars, cases, families, hand_table, identity, same, table

FALLS_SHORT: dict[str, float] = {}  # claim: figure; bars that are measured and do not hold, written on the page


@pytest.fixture(scope="module")
def result() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_figures_belong_to_the_present_families(result):
    found = {(part, name): build for part, name, build in cases()}
    assert {(part, name) for part in PARTS for name in result[part]} == set(found)
    stale = [key for key, build in found.items() if not same(result[key[0]][key[1]]["identity"], identity(build()))]
    assert not stale, f"run python -m benchmarks.circuit_truth: {stale}"


def test_summaries_follow_from_the_cases(result):
    assert result["families"] == families(result["trained"])
    assert result["bars"] == bars(result)


def test_bars_hold_but_for_those_written_down(result):
    short = {one["claim"]: one["measured"] for one in result["bars"] if not one["holds"]}
    assert short == FALLS_SHORT


def test_the_page_shows_the_measured_tables(result, request):
    page = (request.config.rootpath / "docs" / "explanation" / "circuit-truth.md").read_text(encoding="utf-8")
    assert table(result) in page
    assert hand_table(result) in page
    for claim, measured in FALLS_SHORT.items():
        assert claim in page and f"{measured:.3f}" in page
