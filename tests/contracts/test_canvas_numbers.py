"""The numbers of the attention view in the docs are those of the result file, and that file keeps its bars."""

import json

from benchmarks.canvas import BARS, table


def test_the_page_has_the_measured_table_and_no_bar_is_broken(root):
    record = json.loads((root / "benchmarks" / "results" / "canvas.json").read_text())
    assert table(record) in (root / "docs" / "measured.md").read_text(encoding="utf-8")
    assert record["bars"] == BARS
    assert [name for name, bar in BARS.items() if record["measured"][name] > bar] == []
    assert record["measured"]["scrub_messages_sent"] == 0
