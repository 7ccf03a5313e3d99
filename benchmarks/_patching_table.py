"""The correctness lines and the table of the patching benchmark, from its records."""

from typing import Any

from rich.table import Table

CAPTION = (
    "Processor time of one thread for all patches; brackets: lowest and highest round. Full forwards are timed on 32 "
    "random patches (batches of 128: on 128) and scaled. best: fastest full forwards, logits at all positions. beside, "
    "without a bar: batches that resume at the patched layer, share the prefix and unembed only what is read."
)
NAMES = {
    "loop": "lean loop",
    "hooks": "loop over our hooks",
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
    "autocircuit": "AutoCircuit",
}


def correctness_lines(record: dict[str, Any]) -> list[str]:
    """One line per set of weights; what is wrong, where a check failed."""
    lines = []
    for line, one in zip(record["lines"], record["checks"], strict=True):
        mark = "[green]correct[/]" if one["passed"] else "[red]WRONG, no ratio[/]"
        lines.append(f"{mark} {record['name']}: {line}")
        lines += [f"  {failure}" for failure in one["failures"]]
    return lines


def table(records: list[dict[str, Any]]) -> Table:
    """A section per case; neither times nor ratios where a check failed."""
    drawn = Table(caption=CAPTION, caption_justify="left")
    for name, justify in (("work", "left"), ("by", "left"), ("time", "right"), ("engine is faster", "right")):
        drawn.add_column(name, justify=justify)
    drawn.add_column("bar", justify="right")
    for record in records:
        for cells in rows(record):
            drawn.add_row(*cells)
        drawn.add_section()
    return drawn


def rows(record: dict[str, Any]) -> list[list[str]]:
    """The lines of one case: engine, TransformerLens, the best full forwards, and those beside."""
    growth, work = record["memory_growth_bytes"], [record["name"], f"{record['patches']:,} patches"]
    if growth is not None:
        work.append(f"{growth / 2**20:,.0f} MiB over the model's {record['model_bytes'] / 2**20:,.0f}")
    if "seconds" not in record:
        return [[work[0], "refused: not correct", "", "", ""]]
    lines = [["engine", time_of(record, "engine"), "", ""]]
    if "transformer_lens" in record["seconds"]:
        lines.append(line_of(record, "transformer_lens", "transformer_lens", ""))
    lines.append(line_of(record, record["best"], "best", "best: " if record["swept"] else "beside: "))
    beside = [name for name in (record["resumed"], "nnsight", "pyvene") if name in record["seconds"]]
    lines += [line_of(record, name, name, "beside: ") for name in beside]
    if "memory" in record["bars"]:
        bar = record["bars"]["memory"]
        lines.append(
            ["memory of the process", f"{bar['bytes'] / 1e9:.2f} GB", "", verdict(bar, f"{bar['at_most'] / 1e9:g} GB")]
        )
    lines += [[f"[dim]{words}[/]", "", "", ""] for words in missing(record["skipped"])]
    work += [""] * (len(lines) - len(work))
    lines += [["", "", "", ""]] * (len(work) - len(lines))
    return [[what, *line] for what, line in zip(work, lines, strict=True)]


def missing(skipped: dict[str, str]) -> list[str]:
    """Who did not run, and why; those with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(NAMES[name])
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def line_of(record: dict[str, Any], name: str, key: str, prefix: str) -> list[str]:
    """Who, its time, the engine's ratio, the bar."""
    found, bar = record["ratios"][key], record["bars"].get(key)
    median, lowest, highest = (short(found[name]) for name in ("median", "lowest", "highest"))
    shown = f"{median}x \\[{lowest}, {highest}]"
    return [
        prefix + label(name),
        time_of(record, name),
        shown,
        "" if bar is None else verdict(bar, f"{bar['at_least']:g}x"),
    ]


def short(value: float) -> str:
    """Three digits, or all of a larger number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def label(name: str) -> str:
    """What an entrant is called."""
    kind, _, size = name.partition("-")
    words = {"batch": f"lean batches of {size}", "resumed": f"resumed, by {size} position{'s' * (size != '1')}"}
    return NAMES.get(name) or words[kind]


def verdict(bar: dict[str, Any], asked: str) -> str:
    """The bar, and whether it is met."""
    return f"{asked} {'[green]pass[/]' if bar['passed'] else '[yellow]short[/]'}"


def time_of(record: dict[str, Any], name: str) -> str:
    """Median processor time of one entrant."""
    seconds = record["seconds"][name]["median_cpu_seconds"]
    return f"{1e3 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def markdown(document: dict[str, Any]) -> str:
    """The cases of a result file as a Markdown table: ratios with their lowest and highest round, and the bars."""
    lines = [
        "| case | patches | engine | over TransformerLens | over the best full forwards | over resumed batches |",
        "|---|---|---|---|---|---|",
    ]
    for record in document["cases"]:
        cells = [record["name"], f"{record['patches']:,}", time_of(record, "engine")]
        for key in ("transformer_lens", "best", record["resumed"]):
            cells.append(ratio_of(record, key) if key in record["ratios"] else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_of(record: dict[str, Any], key: str) -> str:
    """How many times faster the engine is, with the bar that was asked for."""
    found, bar = record["ratios"][key], record["bars"].get(key)
    text = f"{short(found['median'])} [{short(found['lowest'])}, {short(found['highest'])}]"
    if bar is None:
        return text
    return f"{text}, {bar['at_least']:g} asked" + ("" if bar["passed"] else ": short")
