"""The rendered page and Markdown: order, numbers, policy, and whole files."""

import base64
import hashlib
import re
from xml.etree import ElementTree

import pytest

from circuits.report import summary
from circuits.report.drawing import circuit_figure
from circuits.report.figures import length_figure, training_figure
from circuits.report.html import render_html
from circuits.report.markdown import code, escaped, render_markdown
from circuits.report.numbers import bounds, decimal, estimate, probability
from circuits.report.render import write_report
from circuits.report.schema import from_json, sealed, to_json
from circuits.report.svg import StepScale, nice_ceiling
from interp.errors import StoreError
from tests.unit.report_factory import (
    causal,
    curve,
    drawing,
    emergence,
    empty_report,
    many_heads_report,
    other_circuit_report,
    share,
    solved_report,
)

OVER = "8 held-out sequences of each of the lengths 4, 6"
KINDS = [solved_report, many_heads_report, other_circuit_report, empty_report]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98912, "0.989"), (1.0, "1.000"), (0.9999, ">0.999"), (0.0, "0.000"), (0.0001, "<0.001"), (-0.25, "\u22120.250"),
     (-0.0001, "<0.001"), (12.345, "12.35"), (123.45, "123.5")],
)  # fmt: skip
def test_decimals_are_written_alike_everywhere(value, text):
    assert decimal(value) == text


def test_an_estimate_carries_its_interval_and_n():
    assert estimate(share(0.989, 4992)) == "0.989 [0.986, 0.992], n\u00a0=\u00a04,992"
    assert estimate(None) == "\u2013"


def test_authors_of_an_interval_keep_their_capital_also_where_more_is_said():
    report = solved_report()
    checks = [
        one.model_copy(update={"effect": share(1.0, 9).model_copy(update={"method": "wilson over cells"})})
        for one in report.detection.causal
    ]
    detection = report.detection.model_copy(update={"causal": checks})
    sentence = summary.intervals_sentence(report.model_copy(update={"detection": detection}))
    assert "Wilson over cells" in sentence
    assert "wilson" not in sentence


@pytest.mark.parametrize(("p", "text"), [(1 / 501, "0.002"), (0.61, "0.61"), (0.04, "0.04"), (2e-6, "2.0e\u221206")])
def test_p_values_are_readable(p, text):
    assert probability(p) == text


def test_attention_says_over_which_lengths_and_sequences_it_is_a_mean():
    report = solved_report()
    known = share(0.82, 48)
    rows = [row.model_copy(update={"observed_interval": known, "over": OVER})
            for row in report.detection.null]  # fmt: skip
    points = [point.model_copy(update={"clock_interval": known}) for point in report.emergence.points]
    detection = report.detection.model_copy(update={"null": rows})
    course = report.emergence.model_copy(update={"points": points})
    report = sealed(report.model_copy(update={"detection": detection, "emergence": course}))
    page, text = render_html(report), render_markdown(report)
    counts = {row.length: row.mass.n for row in report.detection.statistics if row.role == "clock"}
    over = summary.attention_over(report, "L0.H0", "clock")
    assert over == f"{len(counts)} lengths from {min(counts)} to {max(counts)}, {counts[min(counts)]} sequences each"
    for shown in (page, text):
        assert over in shown and "8 held-out sequences of each of the lengths 4, 6" in shown
        assert shown.count(bounds(known)) + shown.count(escaped(bounds(known))) >= len(points)
        assert "sequences of the scores n=48" in shown and "every state right" in shown
    assert "in the one sequence that is shown" in page


def test_sections_stand_in_the_order_a_reviewer_reads():
    page = render_html(sealed(solved_report()))
    places = [page.index(f'<section id="{name}"') for name in
              ("claim", "circuit", "emergence", "attention", "controls", "limits", "provenance")]  # fmt: skip
    assert places == sorted(places)
    assert page.count("<h1>") == 1


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_equal_reports_give_equal_pages_and_nothing_points_outside(make):
    report = sealed(make())
    page = render_html(report)
    assert page == render_html(from_json(to_json(report), "report.json"))
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page)) - {"http://www.w3.org"}
    assert not outside
    assert not re.findall(r"<(?:img|link|iframe|object|embed|base|form)\b", page)
    assert not re.findall(r'\s(?:style|on\w+)="', page)


def test_policy_allows_the_two_inline_blocks_by_hash_and_nothing_else():
    page = render_html(sealed(solved_report()))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_claim_verdict_and_key_numbers_are_on_the_page(render):
    text = render(sealed(solved_report())).replace("\\", "")
    for words in ("L0.H0 keeps the clock", "iteration head", "0.989", "[0.986, 0.992]", "4,992", "0.993", "0 of 500",
                  "interp report verify", "no uncommitted changes"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_a_negative_verdict_says_what_is_missing_and_what_carries_the_input(render):
    text = render(sealed(other_circuit_report()))
    for words in ("What is missing", "below the 95 % quantile", "What carries the input instead", "no single key",
                  "not tested", "failed"):  # fmt: skip
        assert words in text, words
    assert "No circuit is claimed" in text


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_a_head_that_failed_the_ablation_is_listed(render):
    text = render(sealed(many_heads_report()))
    assert "Heads that passed the" in text
    assert "its output does not decide the answer" in text


def test_key_numbers_of_an_empty_report_say_not_tested():
    assert [key.value for key in summary.key_numbers(empty_report())] == ["not tested"] * 4


def test_among_equal_accuracies_the_longest_length_is_named():
    found = solved_report().detection
    equal = [one.model_copy(update={"sequence": share(1.0, one.n)}) for one in found.lengths]
    report = solved_report(detection=found.model_copy(update={"lengths": equal}))
    assert summary.key_numbers(report)[2].detail.startswith("length 16, lowest of 16")


def test_the_null_of_both_heads_comes_first_and_gives_the_key_number():
    assert [name for name, _ in summary.null_rows(solved_report())] == ["both heads", "clock", "reading"]
    assert summary.key_numbers(solved_report())[3].label == "Family-wise p, both heads together"


def test_every_table_has_a_caption_and_column_heads():
    page = render_html(sealed(many_heads_report()))
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) >= 8
    for table in tables:
        assert "<caption>" in table
        assert 'scope="col"' in table


def test_figures_are_well_formed_and_described():
    checks = summary.interchange_checks(solved_report())
    for figure in (
        training_figure(emergence("L0.H0", "L1.H0"), curve()),
        length_figure(checks),
        circuit_figure(drawing()),
    ):
        root = ElementTree.fromstring(str(figure))
        names = [child.tag.split("}")[1] for child in root][:2]
        assert names == ["title", "desc"]
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_training_figure_shades_the_bracket_between_its_checkpoints():
    figure = ElementTree.fromstring(str(training_figure(emergence("L0.H0", "L1.H0"), [])))
    scale = StepScale.over([0, 64, 9312], 48, 872)
    bracket = next(e for e in figure.iter() if e.get("class") == "bracket")
    assert float(bracket.get("x")) == pytest.approx(scale(3664), abs=0.01)
    assert float(bracket.get("width")) == pytest.approx(scale(4250) - scale(3664), abs=0.02)


def test_figures_without_data_are_empty():
    assert training_figure(None, []) == ""
    assert length_figure([]) == ""
    assert circuit_figure(None) == ""


def test_step_scale_puts_zero_left_and_doubles_evenly():
    scale = StepScale.over([0, 100, 200, 400], 0, 126)
    assert [scale(0), scale(100), scale(400)] == [0, 26, 126]
    assert scale(200) == pytest.approx(76)
    assert [nice_ceiling(v) for v in (2.4, 0.11, 1.0, 7)] == [2.5, 0.2, 1.0, 10]


def test_checks_of_one_rule_stand_together_clock_first():
    groups = summary.grouped_checks(causal("L0.H0", "L1.H0", None))
    assert [[(c.name, c.role) for c in group] for group in groups] == [
        [(name, "clock"), (name, "reading")] for name in ("interchange", "knock-out", "keep-only")
    ]


@pytest.mark.parametrize(
    ("words", "shown"),
    [("from s_t to x_{t+1}", "from s<sub>t</sub> to x<sub>t+1</sub>"), ("d_model 32", "d_model 32"),
     ("low >= 0.9", "low \u2265 0.9"), ("<b>s_t", "&lt;b&gt;s<sub>t</sub>"),
     ("binary_copy", "binary_copy"), ("s_{<}", "s_{&lt;}")],
)  # fmt: skip
def test_formulas_get_subscripts_and_names_do_not(words, shown):
    assert summary.formula(words) == shown


def test_markdown_escapes_and_fences():
    assert escaped("a|b\n<c> [d](e) *f*") == r"a\|b \<c\> \[d\](e) \*f\*"
    assert escaped("- x") == r"\- x"
    assert escaped("1. x") == "1\u200b. x"
    assert code("a ``b`` c") == "``` a ``b`` c ```"


def test_write_report_writes_three_whole_files_with_equal_bytes(tmp_path):
    paths = write_report(solved_report(), tmp_path / "report")
    first = {kind: path.read_bytes() for kind, path in paths.items()}
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]
    assert {kind: path.read_bytes() for kind, path in write_report(solved_report(), tmp_path / "b").items()} == first


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    paths = write_report(solved_report(), tmp_path)
    before = paths["json"].read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("interp.files.write_all", full)
    with pytest.raises(StoreError, match=r"report\.html: cannot be written"):
        write_report(empty_report(), tmp_path)
    assert paths["json"].read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
