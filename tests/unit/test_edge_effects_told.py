"""Effects of edges in the terminal, on the page and in the drawing: where measured they decide, and words say so."""

import xml.etree.ElementTree as ElementTree

import pytest

from circuits.circuit_effects import EdgeEffect, EdgeEffects
from circuits.circuit_text import show_discovery
from circuits.outputs import CircuitOutput
from circuits.report import circuit_tables
from circuits.report.circuit_drawn import drawn
from circuits.report.circuit_svg import THICK, THIN, circuit_svg, extent
from tests.unit.small_circuits import circuit, discovery, placed

SVG = "{http://www.w3.org/2000/svg}"
SCORES = {"embed->M0": 1.75, "M0->M1": 1.5, "M1->logits": 1.25}
COSTS = {"embed->M0": 2.0, "M0->M1": -4.0, "M1->logits": 6.0}
PLACED = {("embed->L0.H0.k", 1, 3): 1.0, ("embed->L0.H0.k", 0, 2): 1.5, ("L0.H0->logits", 3, 3): 2.0}


def effects(costs: dict, of: int) -> EdgeEffects:
    rows = []
    for key, value in costs.items():
        edge, *place = (key,) if isinstance(key, str) else key
        rows.append(EdgeEffect(edge=edge, place=tuple(place) or None, value=value, low=value - 1, high=value + 1))
    return EdgeEffects(unit="logit_diff", n=32, n_prompts=32, measured=len(rows), of=of, edges=rows)


def measured(costs: dict[str, float] = COSTS):
    return circuit(edges=SCORES, effects=effects(costs, len(SCORES)))


def wires(text: str) -> dict[str, tuple[str, float, str]]:
    """Class, width and tooltip of each edge."""
    edges = [one for one in ElementTree.fromstring(text).iter(f"{SVG}g") if one.get("data-edge")]
    return {
        one.get("data-edge"): (
            one.get("class"),
            float(one.find(f"{SVG}path[@class='wire']").get("stroke-width")),
            one.find(f"{SVG}title").text,
        )
        for one in edges
    }


def test_width_and_hue_are_those_of_the_effect_where_it_is_measured():
    text = circuit_svg(measured())
    found = wires(text)
    assert [found[name][1] for name in COSTS] == pytest.approx([THIN, (THIN + THICK) / 2, THICK])
    assert found["M0->M1"][0] == "edge down" and found["M1->logits"][0] == "edge up"
    assert found["M1->logits"][2].startswith(
        "M1->logits\nleaving it out costs 6 [5, 7] of the metric\nrank score 1.25\n"
    )
    assert "width: effects on the metric" in text and "|effect| 6.000" in text and "rank score|" not in text
    assert "Strongest by exact effect on the metric: M1-&gt;logits (6.000)" in text


def test_edges_that_are_not_measured_are_thinnest_and_the_legend_says_so():
    text = circuit_svg(measured({"embed->M0": 2.0, "M0->M1": -4.0}))
    found = wires(text)
    assert found["M1->logits"][:2] == ("edge up", THIN) and "costs" not in found["M1->logits"][2]
    assert "thinnest: not measured" in text and "M1-&gt;logits (" not in text
    assert "thinnest" not in circuit_svg(measured())


def test_a_circuit_without_effects_is_drawn_by_rank_scores_that_have_no_unit():
    text = circuit_svg(circuit(edges=SCORES))
    assert wires(text)["embed->M0"][1] == pytest.approx(THICK)
    assert "width: rank score, no unit" in text and "|rank score| 1.750" in text and "|effect|" not in text


def test_a_shared_scale_is_of_effects_only_where_every_circuit_has_them():
    with_them, without = drawn(measured()), drawn(circuit(edges=SCORES))
    assert extent([with_them]) == (2.0, 6.0, True)
    assert extent([with_them, without]) == (1.25, 1.75, False)
    text = circuit_svg(measured(), scale=extent([with_them, without]))
    assert wires(text)["embed->M0"][1] == pytest.approx(THICK) and "width: rank score" in text


def test_effects_of_single_places_add_up_where_positions_are_drawn_as_one():
    costs = {("embed->L0.H0.k", 1, 3): 3.0, ("embed->L0.H0.k", 0, 2): 1.0, ("L0.H0->logits", 3, 3): 2.0}
    one = placed(PLACED)
    one = type(one)(**{**vars(one), "effects": effects(costs, 3)})
    text = circuit_svg(one)
    found = wires(text)
    assert "costs 4 of the metric over 2 places, one at a time" in found["embed->L0.H0.k"][2]
    assert found["embed->L0.H0.k"][1] == pytest.approx(THICK) and "effects on the metric, added up" in text
    columns = wires(circuit_svg(one, positions="columns"))
    assert "leaving it out costs 3 [2, 4] of the metric" in columns["embed@x1->L0.H0.k@s1"][2]
    assert columns["embed@x1->L0.H0.k@s1"][1] > columns["L0.H0@s1->logits@s1"][1]
    rows = circuit_tables.edges(discovery(one)).rows
    assert [row[:3] for row in rows] == [
        ("embed->L0.H0.k", "4.000", "2.500"), ("L0.H0->logits", "2.000 [1.000, 3.000]", "2.000"),
    ]  # fmt: skip


def test_tables_of_edges_begin_with_the_largest_effect_and_name_the_rank_score(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = discovery(measured({"embed->M0": 2.0, "M0->M1": -4.0}))
    grid = circuit_tables.edges(found)
    assert grid.columns == ("edge", "effect", "rank score", "kept again")
    assert [row[:2] for row in grid.rows] == [
        ("M0->M1", "\u22124.000 [\u22125.000, \u22123.000]"),
        ("embed->M0", "2.000 [1.000, 3.000]"),
        ("M1->logits", "not measured"),
    ]
    assert "95 % intervals; measured for 2 of 3 kept edges" in grid.caption and "32 held-out" in grid.caption
    assert "Rank score, without a unit" in grid.caption
    show_discovery(CircuitOutput(model="poly1", step=1, discovery=found, trajectory=None))
    out = capsys.readouterr().out
    assert out.index("-4.000 [-5.000, -3.000]") < out.index("2.000 [1.000, 3.000]") < out.index("not measured")
    assert "effect: metric lost when this edge alone is left out" in out and "rank score, without a unit" in out
    assert "measured for 2 of 3 kept edges" in out and "chosen along the ranking by exact" in out


def test_tables_of_a_circuit_from_before_effects_have_no_such_column():
    grid = circuit_tables.edges(discovery(circuit(edges=SCORES)))
    assert grid.columns == ("edge", "rank score", "kept again") and grid.rows[0][0] == "embed->M0"
