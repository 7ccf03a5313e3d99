"""The plot of the patching benchmark: processor seconds of engine and baselines on a logarithmic axis, as SVG."""

import math
from typing import Any

from markupsafe import Markup

from circuits.report.svg import element, figure, line, marker, text

LEFT, RIGHT, TOP, ROW = 190.0, 860.0, 56.0, 30.0
SERIES = (
    ("engine", "engine", "circle"),
    ("resumed", "resumed batches", "triangle"),
    ("best", "best full forwards", "square"),
    ("transformer_lens", "TransformerLens", "diamond"),
)
STYLE = """text{font:12px system-ui,sans-serif;fill:#333}.tick{fill:#666}.grid{stroke:#ddd}.span{stroke:#bbb}
.engine{fill:#0b6e4f}.resumed{fill:#8a8a8a}.best{fill:#c77700}.transformer_lens{fill:#6a3d9a}
@media (prefers-color-scheme:dark){text{fill:#ddd}.tick{fill:#aaa}.grid{stroke:#444}.span{stroke:#666}
.engine{fill:#4cc38a}.resumed{fill:#9a9a9a}.best{fill:#f0a640}.transformer_lens{fill:#b79af0}}"""


def plot(records: list[dict[str, Any]]) -> str:
    """One line per case with a mark for each way to compute its patches; refused cases are left out."""
    shown = [record for record in records if "seconds" in record]
    values = [seconds for record in shown for _, seconds in points(record)]
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))) if values else (-2, 2)
    bottom = TOP + ROW * len(shown)

    def x(seconds: float) -> float:
        return LEFT + (math.log10(seconds) - low) / max(1, high - low) * (RIGHT - LEFT)

    parts = [element("style", Markup(STYLE))]
    for power in range(low, high + 1):
        parts.append(line(x(10.0**power), TOP - 6, x(10.0**power), bottom, "grid"))
        parts.append(text(x(10.0**power), bottom + 16, f"{10.0**power:g} s", "tick", "middle"))
    for index, (_, label, shape) in enumerate(SERIES):
        parts.append(marker(shape, LEFT + 160 * index, 20, SERIES[index][0]))
        parts.append(text(LEFT + 160 * index + 10, 24, label))
    for index, record in enumerate(shown):
        y, marks = TOP + ROW * (index + 0.5), points(record)
        ends = [seconds for _, seconds in marks]
        parts.append(text(LEFT - 12, y + 4, record["name"], "", "end"))
        parts.append(line(x(min(ends)), y, x(max(ends)), y, "span"))
        for name, seconds in marks:
            shape = next(shape for key, _, shape in SERIES if key == name)
            parts.append(marker(shape, x(seconds), y, name, f"{name}: {seconds:.3g} s"))
    words = "Processor seconds for every head patch of a case, by engine and baselines, on one thread"
    return str(figure(RIGHT + 30, bottom + 30, "Exact patching", words, *parts))


def points(record: dict[str, Any]) -> list[tuple[str, float]]:
    """(series, seconds) of one case."""
    names = {key: record[key] if key in ("best", "resumed") else key for key, _, _ in SERIES}
    seconds = record["seconds"]
    return [(key, seconds[name]["median_cpu_seconds"]) for key, name in names.items() if name in seconds]
