"""The drawing of a circuit: fixed places, hue and width from effect or rank score, exact tooltips, text stays text."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from circuits.report.circuit_drawn import drawn, kinds
from circuits.report.circuit_layout import layout_of
from circuits.report.circuit_positions import MOST_POSITIONS, fits
from circuits.report.circuit_routes import route
from circuits.report.circuit_svg import THICK, THIN, circuit_svg, extent
from tests.unit.small_circuits import circuit, placed, provenance, shape

SVG = "{http://www.w3.org/2000/svg}"
EDGES = {"embed->L0.H1.k": 1.0, "L0.H1->M1": -2.0, "M1->logits": 3.0}
PLACED = {
    ("embed->L0.H0.k", 1, 3): 1.0,
    ("embed->L0.H0.k", 0, 2): 0.5,
    ("embed->L0.H0.v", 1, 3): -0.25,
    ("L0.H0->logits", 2, 2): 2.0,
    ("L0.H0->logits", 3, 3): 2.0,
}
SHAPES = {
    "two layers": shape(),
    "one head": shape(heads=1),
    "shared keys": shape(n_layers=3, heads=6, kv=2),
    "parallel": shape(n_layers=3, heads=4, parallel=True),
    "attention only": shape(n_layers=4, heads=3, mlp=False),
    "deep": shape(n_layers=8, heads=5),
    "first layer without MLP": shape().model_copy(update={"mlp": [False, True]}),
}


def groups(text: str, kind: str) -> dict[str, ElementTree.Element]:
    """Groups of the drawing by the name of their edge or node."""
    root = ElementTree.fromstring(text)
    return {one.get(f"data-{kind}"): one for one in root.iter(f"{SVG}g") if one.get(f"data-{kind}")}


def frames(text: str) -> dict[str, tuple[str, ...]]:
    """Place and size of every node."""
    found = {name: one.find(f"{SVG}rect") for name, one in groups(text, "node").items()}
    return {name: tuple(rect.get(key) for key in ("x", "y", "width", "height")) for name, rect in found.items()}


def tip(group: ElementTree.Element) -> str:
    return group.find(f"{SVG}title").text


def test_nodes_stand_where_the_shape_puts_them_whatever_the_circuit_is():
    one, two = circuit_svg(circuit()), circuit_svg(circuit(edges={"embed->logits": 1.0}))
    assert frames(one) == frames(two)
    assert set(frames(one)) == {"embed", "L0.H0", "L0.H1", "M0", "L1.H0", "L1.H1", "M1", "logits"}


@pytest.mark.parametrize("name", SHAPES)
def test_boxes_stay_apart_and_inside_the_drawing(name):
    layout = layout_of(drawn(circuit(SHAPES[name])).shape)
    boxes = list(layout.boxes.values())
    for index, one in enumerate(boxes):
        assert one.x >= 0
        assert one.x + one.width <= layout.width + 0.5
        assert one.y >= 0
        assert one.bottom <= layout.height
        for two in boxes[:index]:
            apart = one.x >= two.x + two.width or two.x >= one.x + one.width
            assert apart or one.y >= two.bottom or two.y >= one.bottom, (one.name, two.name)
    rows = {box.name: box.y for box in boxes}
    assert rows["logits"] < min(y for node, y in rows.items() if node != "logits")
    assert rows["embed"] > max(y for node, y in rows.items() if node != "embed")


def points(path: str) -> list[tuple[float, float]]:
    """Many points along a path of moves, vertical lines and curves."""
    here, found = (0.0, 0.0), []
    for letter, body in re.findall(r"([MVC])([^MVC]*)", path):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", body)]
        if letter == "M":
            here = (numbers[0], numbers[1])
        elif letter == "V":
            found += [(here[0], here[1] + (numbers[0] - here[1]) * i / 40) for i in range(41)]
            here = (here[0], numbers[0])
        else:
            ends = [here, *zip(numbers[::2], numbers[1::2], strict=True)]
            for i in range(41):
                t = i / 40
                weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
                found.append(tuple(sum(w * p[axis] for w, p in zip(weights, ends, strict=True)) for axis in (0, 1)))
            here = ends[-1]
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_no_edge_runs_through_a_box_that_is_not_its_end(name):
    one = circuit(SHAPES[name])
    layout = layout_of(drawn(one).shape)
    for sender, receiver in one.graph.edges:
        names = one.graph.senders[sender], one.graph.receivers[receiver]
        way = route(layout, *names)
        ends = {names[0], names[1], names[1].rpartition(".")[0]}
        for x, y in points(way.path):
            inside = [b.name for b in layout.boxes.values() if b.x < x < b.x + b.width and b.y < y < b.bottom]
            assert set(inside) <= ends, (names, inside)
        last = points(way.path)[-1]
        assert last == pytest.approx(way.end, abs=0.06)


def test_each_kept_edge_is_drawn_once_with_the_hue_of_its_sign_and_the_width_of_its_size():
    found = groups(circuit_svg(circuit(edges=EDGES)), "edge")
    assert set(found) == set(EDGES)
    wires = {name: one.find(f"{SVG}path[@class='wire']") for name, one in found.items()}
    assert {name: one.get("class") for name, one in found.items()} == {
        "embed->L0.H1.k": "edge up",
        "L0.H1->M1": "edge down",
        "M1->logits": "edge up",
    }
    widths = [float(wires[name].get("stroke-width")) for name in EDGES]
    assert widths == pytest.approx([THIN, (THIN + THICK) / 2, THICK])


def test_a_common_scale_makes_widths_comparable_and_the_union_is_dotted():
    one, two = circuit(edges={"embed->M0": 1.0}), circuit(edges={"embed->M0": 1.0, "M0->logits": 5.0})
    scale = extent([drawn(one), drawn(two)])
    assert scale == (1.0, 5.0, False)
    text = circuit_svg(one, scale=scale, union=two.edges())
    found = groups(text, "edge")
    assert found["embed->M0"].find(f"{SVG}path[@class='wire']").get("stroke-width") == f"{THIN:g}"
    assert found["M0->logits"].get("class") == "edge other"
    assert "not in this circuit" in tip(found["M0->logits"])


def test_nodes_outside_the_circuit_are_faint_and_slots_that_are_read_are_bold():
    nodes = groups(circuit_svg(circuit(edges=EDGES)), "node")
    assert {name for name, one in nodes.items() if one.get("class") == "node out"} == {"L0.H0", "M0", "L1.H0", "L1.H1"}
    slots = {one.text: one.get("class") for one in nodes["L0.H1"].iter(f"{SVG}text") if one.text in "qkv"}
    assert slots == {"q": "slot", "k": "slot used", "v": "slot"}
    shared = groups(circuit_svg(circuit(shape(heads=4, kv=2), {"embed->L0.KV1.v": 1.0})), "node")
    assert shared["L0.KV1"].get("class") == "node"
    assert [one.text for one in shared["L0.H3"].iter(f"{SVG}text")] == ["L0.H3", "q"]


def test_tooltips_have_exact_values_frequency_and_what_is_known_besides():
    one = circuit(edges={"embed->L0.H1.k": 1.23456789})
    found = groups(circuit_svg(one, tips={"embed->L0.H1.k": "with M0: [0.1, 0.2]", "L0.H1": "backup"}), "edge")
    assert tip(found["embed->L0.H1.k"]) == (
        "embed->L0.H1.k\nrank score 1.23457\nkept by 80% of the searches on resampled prompts\nwith M0: [0.1, 0.2]"
    )
    nodes = groups(circuit_svg(one, tips={"L0.H1": "backup"}), "node")
    assert tip(nodes["L0.H1"]) == "L0.H1: 0 kept edges out, 1 in\nbackup"
    assert tip(nodes["M0"]) == "M0: not in the circuit"


def test_positions_that_are_pooled_are_said_with_their_offsets():
    one = drawn(placed(PLACED))
    assert kinds(one, "embed->L0.H0.k") == "at 2 places; positions back (times): 2 (2)"
    assert kinds(one, "embed->L0.H0.v") == "at 1 place; positions back (times): 2, always reading x1"
    assert kinds(one, "L0.H0->logits") == "at 2 places, each at its own position: EoI, s1"
    text = circuit_svg(placed(PLACED))
    found = groups(text, "edge")
    assert "\nrank score 1.5, sum over 2 places" in tip(found["embed->L0.H0.k"])
    assert "all positions of an edge drawn as one" in text
    assert "5 of 5 live edges, drawn as 3 edges without positions" in text


def test_position_columns_draw_every_place_where_there_is_room():
    one = placed(PLACED)
    text = circuit_svg(one, positions="columns")
    found = groups(text, "edge")
    assert set(found) == set(one.edges())
    assert "2 positions back" in tip(found["embed@x1->L0.H0.k@s1"])
    assert found["embed@x1->L0.H0.v@s1"].get("class") == "edge down"
    assert [label for label in ("BoS", "x1", "EoI", "s1") if f">{label}</text>" not in text] == []
    many = {**one.to_file().model_dump(mode="json"), "n_pos": MOST_POSITIONS + 1}
    many["columns"] = [str(index) for index in range(MOST_POSITIONS + 1)]
    assert not fits(drawn(many))
    assert set(groups(circuit_svg(many, positions="columns"), "edge")) == {"embed->L0.H0.k", "embed->L0.H0.v"} | {
        "L0.H0->logits"
    }


def test_the_drawing_is_an_image_with_a_title_and_words_and_without_script():
    root = ElementTree.fromstring(circuit_svg(circuit(edges=EDGES)))
    assert (root.get("role"), root[0].tag, root[1].tag) == ("img", f"{SVG}title", f"{SVG}desc")
    assert root[0].text == "Circuit of poly1, step 1,375"
    assert root[1].text == (
        "3 of 45 live edges. They keep 0.970 [0.960, 0.980] of the metric under resample ablation. Strongest by "
        "rank score: M1->logits (3.000), L0.H1->M1 (\u22122.000), embed->L0.H1.k (1.000)."
    )
    assert root.get("aria-label") == f"{root[0].text}. {root[1].text}"
    assert not [
        one for one in root.iter() if one.tag.endswith("script") or any(key.startswith("on") for key in one.attrib)
    ]
    bare = circuit_svg(circuit(edges=EDGES), styled=False)
    assert "<style" not in bare
    assert " style=" not in bare


def test_equal_circuits_give_equal_text_from_every_form():
    one = circuit()
    file = one.to_file()
    texts = {
        circuit_svg(form) for form in (one, file, file.model_dump(mode="json"), json.loads(file.model_dump_json()))
    }
    assert len(texts) == 1


def test_hostile_names_stay_text():
    bad = "<script>alert(1)</script>\"'&"
    one = placed(PLACED)
    file = one.to_file().model_dump(mode="json")
    file["columns"][1] = bad
    file["provenance"] = provenance(model=bad).model_dump(mode="json")
    for positions in ("pooled", "columns"):
        text = circuit_svg(file, positions=positions, tips={"L0.H0": bad})
        assert "<script" not in text
        assert bad in ElementTree.fromstring(text)[0].text


def test_an_empty_circuit_is_a_drawing_of_faint_nodes():
    text = circuit_svg(circuit(edges={}))
    assert groups(text, "edge") == {}
    assert "0 of 45 live edges" in text
    assert "|rank score|" not in text


def test_drawing_a_stored_circuit_loads_no_torch(tmp_path):
    (tmp_path / "circuit.json").write_text(circuit().to_file().model_dump_json())
    code = (
        "import json, sys; from circuits.report.circuit_svg import circuit_svg; "
        "text = circuit_svg(json.load(open(sys.argv[1]))); print(len(text) > 1000, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "circuit.json")], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
