"""The table of the discovery benchmark for the docs, from its results."""

from typing import Any

HEADER = (
    "| edges | kept, of live | share of live | metric kept | best random, matched as finely as leaves a choice | "
    "best random, all types matched (of the circuit it holds) | CMD |\n|---|---|---|---|---|---|---|"
)


def markdown(results: dict[str, Any]) -> str:
    """One row per kind of graph: lowest and highest over the solved runs."""
    runs = list(results["polynomial"]["runs"].values())
    rows = [row(name, [run[name] for run in runs]) for name in runs[0] if name != "step"]
    if "heads" in results:
        several = [run["length 8"] for run in results["heads"]["runs"].values()]
        rows.append(row("length 8, four heads per layer", several))
    return "\n".join([HEADER, *rows])


def row(name: str, found: list[dict[str, Any]]) -> str:
    """The cells of one kind of graph."""
    live = {one["n_live"] for one in found}
    random = [one["controls"]["random paths"] for one in found]
    same = [one["controls"].get("same types", one["controls"]["random paths"]) for one in found]
    typed = f"{span([one['largest'] for one in same])} ({span([one['shared'] for one in same])})"
    cells = [
        name,
        f"{span([one['n_kept'] for one in found], '{:.0f}')} of {', '.join(f'{n:,}' for n in sorted(live))}",
        span([one["share_of_live"] for one in found]),
        span([one["kept"]["value"] for one in found]),
        span([one["largest"] for one in random]),
        typed,
        span([one["cmd"] for one in found], "{:.3f}"),
    ]
    return f"| {' | '.join(cells)} |"


def span(values: list[float], form: str = "{:.1%}") -> str:
    """Lowest to highest."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def large(results: dict[str, Any]) -> str:
    """The two large shapes with random weights, as rows."""
    gpt2, qwen = results["gpt2"], results["qwen"]
    exact = next(name for name in qwen["seconds"] if name.startswith("exact"))
    both = qwen["correlation of EAP-IG"]
    rows = (
        ("GPT-2-small", "whole discovery, 100 matched random circuits", gpt2["seconds"]["all"], gpt2["peak_gib"], "-"),
        (
            "Qwen2.5-0.5B, bfloat16 file",
            "EAP-IG of inputs, 5 steps",
            qwen["seconds"]["EAP-IG, inputs, 5 steps"],
            qwen["peak_gib"],
            "-",
        ),
        (
            "the same",
            exact,
            qwen["seconds"][exact],
            qwen["peak_gib"],
            f"{both['noising']:.3f}, {both['denoising']:.3f}",
        ),
    )
    head = "| shape | what | CPU s | peak of the process, GiB | correlation of EAP-IG with it |\n|---|---|---|---|---|"
    return "\n".join([head, *(f"| {a} | {b} | {c:.0f} | {d:.2f} | {e} |" for a, b, c, d, e in rows)])
