"""Hostile tokens, run names and notes leave the structure of a report page and its Markdown as it was."""

import json
from collections import Counter
from html.parser import HTMLParser

import pytest

from circuits.report.html import render_html
from circuits.report.markdown import render_markdown
from circuits.report.schema import CircuitReport, sealed
from circuits.report.verify import EMBEDDED
from tests.unit.report_factory import drawing, solved_report

BENIGN = "word"
PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</SCRIPT ><svg onload=alert(1)>",
    "<!--",
    "--><img src=x onerror=alert(1)>",
    "<![CDATA[<b>]]>",
    "]]><b>",
    "<img src=x onerror=alert(1)>",
    '"><b>',
    "'><b>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "`onclick=alert(1)`",
    "<svg/onload=alert(1)>",
    "</title><script>1</script>",
    "</style><style>*{display:none}</style>",
    "</textarea><b>",
    "</svg><b>",
    "</desc><b>",
    "</text><a href=x>",
    "</pre><form action=//x>",
    "<iframe srcdoc='<b>'>",
    "<base href=//x>",
    "<link rel=stylesheet>",
    "<meta http-equiv=refresh content=0>",
    "<object data=x>",
    "<embed src=x>",
    "<math><mtext></math><b>",
    "<template><b>",
    "<noscript><p title='</noscript><img src=x>'>",
    "javascript:alert(1)",
    "[a](javascript:alert(1))",
    "![a](//x/y.png)",
    "<http://x.example>",
    "http://x.example",
    "www.x.example",
    "{{ 7*7 }}",
    "{% raw %}",
    "${7*7}",
    "#{7*7}",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "\\u003cb\\u003e",
    "\u2028<b>\u2029",
    "\u202e<b>",
    "a\x00<b>",
    "a\r\n\r\n<b>",
    "```\n<b>",
    "| a | <b> |",
    "%3Cb%3E",
    "\uff1cb\uff1e",
    "<b" + " a" * 2000 + ">",
    "url(//x)",
    "expression(alert(1))",
    "__proto__",
    "constructor",
]


class Structure(HTMLParser):
    """Counts tags with their attribute names, and keeps what stands inside the page's own script."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.seen: Counter[tuple[str, ...]] = Counter()
        self.others: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[(tag, *sorted(name for name, _ in attrs))] += 1

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def unknown_decl(self, data: str) -> None:
        self.others.append(data)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)


def report_with(word: str) -> CircuitReport:
    """The solved report with `word` as a token, run name, note and every other free text."""
    base = solved_report()
    example = base.attention.examples[1]
    odd = example.model_copy(update={"tokens": [word, *example.tokens[1:]], "label": word})
    found = base.detection
    check = found.causal[0].model_copy(
        update={"name": f"interchange {word}", "component": word, "direction": word, "metric": word, "note": word,
                "control_name": word, "threshold": word}
    )  # fmt: skip
    effect = check.effect.model_copy(update={"method": word})
    null = found.null[0].model_copy(update={"scan": word, "component": word})
    detection = found.model_copy(
        update={"run": word, "headline": word, "heads": {"clock": word, "reading": "L1.H0"}, "missing": [word],
                "causal": [check.model_copy(update={"effect": effect}), *found.causal[1:]], "limits": [word],
                "null": [null, *found.null[1:]], "timing": {word: 1.0}, "checkpoint": word, "code_version": word}
    )  # fmt: skip
    drawn = drawing()
    move = drawn.moves[0].model_copy(update={"carries": word, "component": word, "role": word})
    names = [word, *drawn.names[1:]]
    source = base.provenance.model_copy(
        update={"config": {word: word}, "packages": {word: word}, "device": word, "dtype": word, "engine": word,
                "commands": [c.model_copy(update={"purpose": word, "line": word}) for c in base.provenance.commands],
                "config_hash": word, "code_version": word}
    )  # fmt: skip
    point = base.emergence.points[0].model_copy(update={"clock_head": word, "reading_head": word})
    emergence = base.emergence.model_copy(update={"note": word, "points": [point, *base.emergence.points[1:]]})
    control = base.controls[0].model_copy(update={"name": word, "description": word, "outcome": word})
    row = base.circuit[0].model_copy(update={"component": word, "role": word, "position_rule": word, "metric": word})
    about = {"run": word, "task": word, "task_summary": word, "model": word, "training": word, "example": [word, "1"]}
    return CircuitReport.model_validate(
        base.model_copy(
            update={
                "claim": word,
                "notes": [word],
                "limits": [word],
                "generated": word,
                "subject": base.subject.model_copy(update=about),
                "detection": detection,
                "drawing": drawn.model_copy(update={"tokens": [word, *drawn.tokens[1:]], "answer": word, "mlp": word,
                                                    "names": names, "moves": [move, *drawn.moves[1:]]}),
                "circuit": [row, *base.circuit[1:]],
                "controls": [control, *base.controls[1:]],
                "emergence": emergence,
                "provenance": source,
                "attention": base.attention.model_copy(update={"examples": [odd], "rule": word}),
            }
        ).model_dump()
    )  # fmt: skip


@pytest.fixture(scope="module")
def benign() -> Structure:
    return Structure(render_html(sealed(report_with(BENIGN))))


def test_there_are_at_least_fifty_payloads():
    assert len(set(PAYLOADS)) >= 50


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_payload_changes_no_tag_and_no_attribute(benign, payload):
    report = sealed(report_with(payload))
    page = render_html(report)
    found = Structure(page)
    assert found.seen == benign.seen
    assert found.others == benign.others == []
    assert json.loads(EMBEDDED.findall(page)[0])["claim"] == payload


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_payload_adds_no_line_and_no_markup_to_the_markdown(payload):
    plain = render_markdown(report_with(BENIGN)).splitlines()
    lines = render_markdown(report_with(payload)).split("\n")[:-1]
    assert len(lines) == len(plain)
    for shown, usual in zip(lines, plain, strict=True):
        assert shown.replace("\\|", "").count("|") == usual.count("|") or "`" in shown
        outside = shown.split("`")[0]
        assert "<" not in outside.replace("\\<", "").replace("<!-- circuit-report", "")
