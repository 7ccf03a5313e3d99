"""A drawing as a file of its own: plain colours for every program, both schemes for a browser, the same elements."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from circuits.report.circuit_file import circuit_file, plain_style
from circuits.report.circuit_svg import circuit_style, circuit_svg
from circuits.stored import discovery_payload
from interp.cli import main
from interp.run import Store
from tests.security.test_report_injection import PAYLOADS
from tests.unit.small_circuits import circuit, discovery, placed, provenance
from tests.unit.test_circuit_page import LATE, REQUEST, keep

SVG = "{http://www.w3.org/2000/svg}"
PLACED = placed({("embed->L0.H0.k", 1, 3): 1.0, ("L0.H0->logits", 3, 3): -2.0})


@pytest.mark.parametrize(("one", "positions"), [(LATE, "pooled"), (PLACED, "pooled"), (PLACED, "columns")])
def test_a_file_needs_no_variable_and_draws_what_the_page_draws_on_a_ground(one, positions):
    text = circuit_file(one, positions=positions)
    assert "var(" not in text and "light-dark(" not in text and "--" not in text.replace("-->", "")
    root = ET.fromstring(text)
    style, ground = root[2], root[3]
    assert (style.tag, ground.get("class")) == (f"{SVG}style", "ground")
    assert [ground.get(name) for name in ("x", "y", "width", "height")] == root.get("viewBox").split()
    assert root.get("height") == root.get("viewBox").split()[3]
    root.remove(style), root.remove(ground), root.attrib.pop("height")
    same = ET.fromstring(circuit_svg(one, positions=positions, styled=False))
    assert ET.tostring(root).strip() == ET.tostring(same).strip()


def test_every_colour_of_the_drawing_has_its_light_and_its_dark_value():
    colours = dict(
        (name, (light, dark))
        for name, light, dark in re.findall(r"(--[\w-]+): var\([\w-]+, light-dark\((#\w+), (#\w+)\)\)", circuit_style())
    )
    light, _, dark = plain_style().partition("@media screen and (prefers-color-scheme: dark)")
    assert len(colours) == 7
    for name, (day, night) in colours.items():
        uses = circuit_style().count(f"var({name})") - (name == "--ground")  # that of the root is left to the ground
        assert uses and light.count(day) >= uses and dark.count(night) >= uses, name


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_words_stay_words(payload):
    one = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model=payload))
    plain = circuit(edges={"embed->M0": 1.0}, provenance=provenance(model="w"))
    tags = [[part.tag for part in ET.fromstring(circuit_file(each, title=None)).iter()] for each in (one, plain)]
    assert tags[0] == tags[1]


def test_the_command_writes_the_first_drawing_of_the_page_and_moves_one_that_no_longer_holds(tmp_path, capsys):
    store = Store(tmp_path / "runs")
    by_place = {**REQUEST, "by_position": True}
    keep(store, (64, discovery(LATE), REQUEST), (128, discovery(PLACED), by_place))
    line = ["report", "circuit", "poly1", "--store", str(store.root), "--json"]
    folder = store.root / "poly1" / "report"
    drawn = {}
    for step in (64, 128):
        assert main([*line, "--checkpoint", str(step)]) == 0
        files = json.loads(capsys.readouterr().out)["files"]
        assert files["svg"] == str(folder / "circuit.svg")
        drawn[step] = (folder / "circuit.svg").read_text(encoding="utf-8")
        assert main([*line, "--checkpoint", str(step)]) == 0 and (folder / "circuit.svg").read_text() == drawn[step]
        capsys.readouterr()
    assert "Circuit: poly1, step 64" in drawn[64] and "backup of L1.H0" in drawn[64]
    assert "none pooled" in drawn[128] and 'data-edge="embed@x1-&gt;L0.H0.k@s1"' in drawn[128]
    nothing = discovery(None, "no behaviour to explain", "Nothing: chance.")
    store.run("poly1").write_analysis("circuit-late", discovery_payload(256, "ab" * 32, REQUEST, nothing))
    assert main(line) == 0
    assert not (folder / "circuit.svg").exists()
    assert (folder / "earlier-circuit.svg").read_text(encoding="utf-8") == drawn[128]
