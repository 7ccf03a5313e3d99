"""Verification: what passes, what is refused and how it is named, and what a rerun finds."""

import base64
import random
import shutil

import pytest

from circuits.report.compare import differences
from circuits.report.render import write_report
from circuits.report.schema import CircuitReport, content_hash, sealed, to_json
from circuits.report.verify import load_report, verify
from interp.errors import ReportError
from tests.unit.report_factory import empty_report, many_heads_report, share, solved_report


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_report(solved_report(), folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "report")


@pytest.mark.parametrize("name", ["", "report.json", "report.html"])
def test_a_written_report_verifies(written, name):
    result = verify(written / name)
    assert result.ok
    assert result.run == "poly1"
    assert all(check.passed for check in result.checks)
    assert len(result.checks) == {"": 4, "report.json": 1, "report.html": 2}[name]


def test_json_and_page_hold_the_same_report(written):
    assert load_report(written / "report.json") == load_report(written / "report.html") == sealed(solved_report())


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("report.json", '"value": 0.996', '"value": 0.997', r"report\.json: content hash is"),
        ("report.json", '"passed": true', '"passed": false', r"report\.json: content hash is"),
        ("report.json", "circuit-report/1", "circuit-report/9", r"report\.json: format is 'circuit-report/9'"),
        ("report.html", '"value":0.996', '"value":0.997', r"report\.html: content hash is"),
        (
            "report.html",
            "L0.H0 keeps the clock, L1.H0 reads.</h1>",
            "All is proven.</h1>",
            r"report\.html: does not show",
        ),
        ("report.html", 'id="report-data"', 'id="data"', r"report\.html: has 0 blocks of report data"),
        ("report.md", "0.989", "0.999", r"report\.md: does not show"),
    ],
)
def test_an_edit_is_refused_and_the_file_named(folder, name, old, new, words):
    change(folder / name, old, new)
    with pytest.raises(ReportError, match=words):
        verify(folder)


def test_a_page_of_another_report_beside_the_json_is_refused(folder):
    other = write_report(empty_report(), folder.parent / "other")
    shutil.copy(other["html"], folder / "report.html")
    with pytest.raises(ReportError, match=r"report\.html: shows another report"):
        verify(folder)


def test_a_page_of_another_renderer_is_said_to_be_uncompared(folder, monkeypatch):
    monkeypatch.setattr("circuits.report.verify.renderer_version", lambda: "0" * 16)
    checks = {check.name: check.passed for check in verify(folder).checks}
    assert checks == {"content hash": True, "page text": None, "Markdown text": None}


@pytest.mark.parametrize("name", ["report.json", "report.html", "nothing.json"])
def test_a_missing_or_binary_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name != "nothing.json":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReportError, match=name.replace(".", r"\.")) as error:
        verify(path)
    assert "\n" not in str(error.value)


def test_every_flipped_byte_is_refused_or_harmless(folder):
    path = folder / "report.json"
    write_report(empty_report(), folder)
    sound, draw = path.read_bytes(), random.Random(0)
    report = load_report(path)
    for _ in range(300):
        at, bit = draw.randrange(len(sound)), 1 << draw.randrange(8)
        path.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
        try:
            assert load_report(path) == report
        except ReportError as error:
            assert "report.json" in str(error)


@pytest.mark.parametrize("inside", ["1e999", '"\\ud800"', "[" * 5000 + "]" * 5000])
def test_a_configuration_that_json_cannot_hold_is_a_report_error(folder, inside):
    change(folder / "report.json", '"seed": 1', f'"odd": {inside}, "seed": 1')
    with pytest.raises(ReportError, match=r"report\.json"):
        verify(folder / "report.json")


def rerun_with(**changes):
    """A rerun that gives the solved report's detection with these fields replaced."""
    return lambda report: report.detection.model_copy(update=changes)


def test_an_equal_rerun_passes_and_counts_what_it_compared(written):
    result = verify(written, rerun=lambda report: solved_report())
    assert result.ok
    assert result.rerun
    assert result.compared > 500
    assert result.mismatches == []


def test_a_rerun_lists_each_value_that_differs(written):
    lengths = list(solved_report().detection.lengths)
    first = lengths[0].sequence
    lengths[0] = lengths[0].model_copy(
        update={"sequence": first.model_copy(update={"value": first.value + 0.01, "n": 7})}
    )
    result = verify(written, rerun=rerun_with(lengths=lengths, verdict="candidate"))
    assert not result.ok
    assert [one.field for one in result.mismatches] == ["lengths[0].sequence.n", "lengths[0].sequence.value", "verdict"]
    assert result.mismatches[1].difference == pytest.approx(0.01)
    assert (result.mismatches[2].stored, result.mismatches[2].recomputed) == ("iteration head", "candidate")


@pytest.mark.parametrize(("factor", "ok"), [(1 + 5e-7, True), (1 + 5e-6, False)])
def test_floats_agree_to_one_in_a_million(written, factor, ok):
    null = solved_report().detection.null
    moved = [null[0].model_copy(update={"observed": null[0].observed * factor}), *null[1:]]
    assert verify(written, rerun=rerun_with(null=moved)).ok is ok


def test_times_are_left_out_and_versions_are_context(written):
    result = verify(written, rerun=rerun_with(timing={"null": 99.0}, code_version="other"))
    assert result.ok
    assert [one.field for one in result.context] == ["code_version"]


def test_a_shorter_list_is_a_mismatch(written):
    result = verify(written, rerun=rerun_with(limits=[]))
    assert [one.field for one in result.mismatches] == ["limits (length)"]


def nudged(report: CircuitReport, levels: int) -> CircuitReport:
    """The report with the first byte of its first pattern, which is 255, lowered by some levels."""
    values = report.model_dump(mode="json")
    example = values["attention"]["examples"][0]
    data = bytearray(base64.b64decode(example["patterns"][0]))
    assert data[0] == 255  # BoS attends to itself alone
    data[0] -= levels
    example["patterns"][0] = base64.b64encode(bytes(data)).decode()
    return CircuitReport.model_validate(values)


@pytest.mark.parametrize(("levels", "fields"), [(1, []), (2, ["attention.examples[0].patterns[0]"])])
def test_patterns_agree_to_one_level(tmp_path, levels, fields):
    path = tmp_path / "report.json"
    path.write_text(to_json(sealed(many_heads_report())), encoding="utf-8")
    result = verify(path, rerun=lambda report: nudged(report, levels))
    assert [one.field for one in result.mismatches] == fields


def test_a_report_from_before_intervals_were_kept_keeps_its_hash_and_its_rerun():
    stored = solved_report()
    point = stored.emergence.points[-1].model_copy(update={"clock_interval": share(0.9)})
    row = stored.detection.null[0].model_copy(update={"observed_interval": share(0.9), "over": "length 4"})
    detection = stored.detection.model_copy(update={"null": [row, *stored.detection.null[1:]]})
    course = stored.emergence.model_copy(update={"points": [*stored.emergence.points[:-1], point]})
    now = stored.model_copy(update={"detection": detection, "emergence": course})
    text = to_json(sealed(stored))
    assert "observed_interval" not in text and "observed_interval" in to_json(now), "left out where there is none"
    assert not differences(stored, now).mismatches, "a newer program knows more"
    assert [one.field for one in differences(now, stored).mismatches], "what is stored must come again"
    assert content_hash(stored) != content_hash(now), "what is there is under the hash"
