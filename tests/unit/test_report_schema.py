"""The report object: its schema file, its hash, its bytes, and what it refuses."""

import json
import subprocess
import sys

import jsonschema
import pytest

from circuits.report.schema import CircuitReport, content_hash, from_json, json_schema, sealed, shipped_schema, to_json
from interp.errors import ReportError
from tests.unit.report_factory import (
    drawing,
    empty_report,
    many_heads_report,
    other_circuit_report,
    solved_report,
)

KINDS = [solved_report, many_heads_report, other_circuit_report, empty_report]


def test_shipped_schema_is_the_models():
    wrote = json.loads(shipped_schema())
    assert wrote == json_schema(), "run: python -m circuits.report.schema > circuits/report/schema.json"
    assert wrote["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_report_fits_the_shipped_schema(make):
    validator = jsonschema.Draft202012Validator(json.loads(shipped_schema()))
    validator.check_schema(json.loads(shipped_schema()))
    validator.validate(json.loads(to_json(sealed(make()))))


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_json_out_and_in_is_the_same_report(make):
    report = sealed(make())
    again = from_json(to_json(report), "report.json")
    assert again == report
    assert to_json(again) == to_json(report)
    assert content_hash(again) == report.content_hash


def test_equal_reports_give_equal_bytes_whatever_the_order_of_their_dictionaries():
    report = solved_report()
    source = report.provenance
    turned = source.model_copy(update={"packages": dict(reversed(source.packages.items()))})
    other = report.model_copy(update={"provenance": turned})
    assert list(other.provenance.packages) != list(source.packages)
    assert to_json(sealed(other)) == to_json(sealed(report))


def test_there_is_no_time_in_a_report_unless_it_was_given():
    assert solved_report().generated is None
    stamped = solved_report(generated="2026-11-23T10:00:00Z")
    assert content_hash(stamped) != content_hash(solved_report())


def test_the_hash_covers_every_top_level_field():
    report, other = solved_report(), many_heads_report(generated="now", notes=["a"], carriers=[], limits=["b"])
    for name in CircuitReport.model_fields:
        if getattr(report, name) == getattr(other, name) or name in ("format", "content_hash"):
            continue
        assert content_hash(report.model_copy(update={name: getattr(other, name)})) != content_hash(report), name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "format is None"),
        ('{"format": "circuit-report/2"}', "format is 'circuit-report/2', expected 'circuit-report/1'"),
        ('{"format": "circuit-report/1"}', "claim: Field required"),
        ('{"format": "circuit-report/1", "p": NaN}', "NaN is not a number JSON has"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line_that_names_it(text, words):
    with pytest.raises(ReportError, match=r"somewhere/report\.json: ") as error:
        from_json(text, "somewhere/report.json")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_verdict_that_differs_from_the_detection_is_refused():
    with pytest.raises(ValueError, match="differs from the detection's"):
        solved_report(verdict="candidate")


def test_a_pattern_of_the_wrong_size_is_refused():
    values = json.loads(to_json(solved_report()))
    values["attention"]["examples"][0]["patterns"][3] = "AAAA"
    with pytest.raises(ReportError, match="step 126: pattern is not base64 of 1458 bytes"):
        from_json(json.dumps(values), "report.json")


def test_a_drawing_outside_its_tokens_is_refused():
    moves = [drawing().moves[0].model_copy(update={"key": 10})]
    with pytest.raises(ValueError, match="position 10 is outside its 10 tokens"):
        drawing().model_validate(drawing().model_dump() | {"moves": [move.model_dump() for move in moves]})


def test_reading_and_rendering_a_report_load_no_torch():
    program = "import sys, circuits.report.verify, circuits.report.schema; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
