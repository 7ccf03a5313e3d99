"""The words and tables of a circuit's page, from a discovery."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.circuit_effects import RANK_SCORE
from circuits.report.circuit_drawn import Drawn, DrawnEdge, drawn, kinds, ranked, total
from circuits.report.numbers import bounds, count, decimal, estimate, probability, sample

if TYPE_CHECKING:
    from circuits.discovery_result import DiscoveryFile, Faithfulness
    from circuits.interactions import PairEffect, Role
    from circuits.trajectory import Trajectory

MOST_EDGES, MOST_PAIRS = 200, 12
DASH = "\u2013"
BADGES = {"circuit": "good", "candidate": "warn", "no faithful circuit": "bad"}


@dataclass(frozen=True)
class Grid:
    """One table; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Key:
    """One of the numbers at the top."""

    name: str
    number: str
    detail: str


def keys(found: "DiscoveryFile") -> list[Key]:
    """What a reader looks for first; empty where there is no circuit."""
    one = found.faithfulness
    if one is None:
        return []
    control = next((row for row in found.controls if row.headline and row.largest is not None), None)
    share = found.n_kept / max(1, found.n_live)
    best = Key("Best matched control", DASH, "no matched control could be made")
    if control is not None:
        best = Key("Best matched control", _share(control.largest), f"of {control.n} {control.what}")
    return [
        Key("Metric kept", _share(one.retained.value), f"{_range(one.retained)}, {sample(one.retained.n)} sequences"),
        Key("Edges", count(found.n_kept), f"{_share(share)} of {count(found.n_live)} live ones"),
        best,
        _right(one),
    ]


def _right(one: "Faithfulness") -> Key:
    """Share of single answers that the circuit alone gets right."""
    n, known = f"{sample(one.retained.n)} sequences", one.intervals.get("accuracy_circuit")
    spread = f"{n}, no interval stored" if known is None else f"{_range(known)}, {n}"
    model = f"the model alone has {_share(one.accuracy_model)}"
    return Key("Answers right with the circuit alone", _share(one.accuracy_circuit), f"{spread}; {model}")


def behaviour(found: "DiscoveryFile") -> list[tuple[str, str]]:
    """What the model does, and what the circuit keeps of it."""
    gate, one = found.gate, found.faithfulness
    said = f"share of single answers right {estimate(gate.accuracy)}, each read position by itself; "
    said += f"always the best constant answer gives {decimal(gate.constant)}"
    rows = [
        ("Behaviour", f"{said} ({100 * gate.accuracy.level:g} % intervals, in the next line too)"),
        ("All ablated", f"the metric falls by {estimate(gate.difference)}"),
    ]
    if one is None:
        return rows

    def told(name: str) -> str:
        value = decimal(getattr(one, name))
        return f"{value} {bounds(one.intervals[name])}" if name in one.intervals else value

    values = f"model {told('metric_model')}, circuit {told('metric_circuit')}, all ablated {told('metric_ablated')}"
    level = "95 % intervals" if one.intervals else "no interval stored"
    n = f"{sample(one.retained.n)} held-out sequences, {level}"
    rows += [
        ("Metric", f"{values}; {n}"),
        ("Kept", f"{estimate(one.retained)}: (circuit \u2212 ablated) / (model \u2212 ablated), ratio of means"),
        ("KL", f"{told('kl')} nats per read position, from model to circuit; {n}"),
    ]
    if one.cmd is not None and one.cpr is not None:
        beats = "; above 1 means circuits that beat the model" if one.cpr > 1 else ""
        rows.append(("MIB areas", f"CMD {told('cmd')} (0 is best), CPR {told('cpr')}{beats}; linear axis; {n}"))
    return rows


def controls(found: "DiscoveryFile") -> Grid:
    """Circuits that this one has to beat."""
    rows = [
        (
            row.name + (" (the claim rests on it)" if row.headline else ""),
            row.described,
            count(row.n),
            _share(row.mean),
            _share(row.largest),
            _share(row.matched),
            _share(row.shared),
            DASH if row.p_value is None or row.only_itself else probability(row.p_value),
        )
        for row in found.controls
    ]
    names = ("control", "what it is", "n", "mean kept", "largest", "matched by type", "shared", "p")
    caption = (
        "Share of the metric that other circuits of this size keep; n is how many were run. Matched is the share of "
        "edges with a counterpart of the same type, shared that of the found circuit\u2019s edges which they hold too, "
        "both means over the n."
    )
    return Grid(caption, names, tuple(rows))


def tests(found: "DiscoveryFile") -> Grid:
    """Hypothesis tests about the circuit."""
    rows = [
        (
            row.name,
            row.hypothesis,
            decimal(row.statistic),
            DASH if row.p_value is None else probability(row.p_value),
            count(row.n),
            row.reading,
        )
        for row in found.tests
    ]
    names = ("test", "hypothesis", "statistic", "p", "n", "reading")
    return Grid("Tests after Shi et al., Hypothesis testing the circuit hypothesis (2024).", names, tuple(rows))


def roles(found: "DiscoveryFile") -> Grid:
    """What heads and MLPs are besides their place."""
    rows = [(row.node, *role_words(row), count(row.n), row.rule) for row in found.roles]
    caption = (
        "Heads and MLPs with a role. Effects are shares of clean minus ablated that are lost by ablating them, on the "
        "prompts that rank edges; n counts sequences. 95 % intervals are widened for the number of tests (Bonferroni)."
    )
    return Grid(caption, ("component", "role", "effect of ablating it", "n", "rule"), tuple(rows))


def role_words(role: "Role") -> tuple[str, str]:
    """Role and effects of one head or MLP; what its interval is of differs by role."""
    between = f"[{_share(role.low)}, {_share(role.high)}]"
    alone = f"alone {_within(role.alone, role.alone_low, role.alone_high)}"
    given = "" if role.given is None else _within(role.given, role.given_low, role.given_high)
    if role.role == "backup" and role.given is not None:
        gain = f"{_share(role.given - role.alone)} {between} more"
        return f"backup of {role.other}", f"{alone}; while {role.other} is ablated {given}, which is {gain}"
    if role.role == "relay":
        through = f"leaving out only what {role.other} writes into its values {given}, beyond the rule by {between}"
        return f"relay of {role.other}", f"{alone}; {through}"
    return role.role, f"alone {_share(role.alone)} {between}"


def pairs(found: "DiscoveryFile") -> Grid:
    """Pairs of edges that do more, or less, together than apart."""
    far = [row for row in found.pairs if row.low > 0 or row.high < 0]
    n = next((row.n for row in far if row.n is not None), None)
    if n is None and found.circuit is not None:  # files from before it was kept with each pair
        n = found.circuit.provenance.n_units.get("score")
    rows = [
        (
            f"{row.first} and {row.second}",
            _within(row.together, row.together_low, row.together_high),
            interaction_words(row),
            DASH if n is None else count(n),
        )
        for row in sorted(far, key=lambda row: -abs(row.interaction))[:MOST_PAIRS]
    ]
    caption = "Pairs whose joint effect is not the sum of both, beyond the interval: positive for stand-ins, "
    caption += "negative for edges that need each other."
    caption += f" The {MOST_PAIRS} largest of {count(len(far))}." if len(far) > MOST_PAIRS else ""
    caption += (
        " Shares of clean minus ablated on the prompts that rank edges; n counts sequences. 95 % intervals are widened "
        f"for the {count(len(found.pairs))} pairs looked at (Bonferroni)."
    )
    return Grid(caption, ("pair", "lost without both", "E(ab) \u2212 E(a) \u2212 E(b)", "n"), tuple(rows))


def interaction_words(pair: "PairEffect") -> str:
    """Interaction with its interval."""
    return f"{_share(pair.interaction)} [{_share(pair.low)}, {_share(pair.high)}]"


def tips(found: "DiscoveryFile") -> dict[str, str]:
    """More words for the tooltips of the drawing, by node and edge."""
    said: dict[str, list[str]] = {}
    for role in found.roles:
        said.setdefault(role.node, []).append(": ".join(role_words(role)) + f", n = {role.n}")
    for pair in found.pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if pair.low > 0 or pair.high < 0:
                said.setdefault(one, []).append(f"with {other}: {interaction_words(pair)} beyond both effects")
    return {name: "\n".join(lines[:5]) for name, lines in said.items()}


def edges(found: "DiscoveryFile") -> Grid:
    """Kept edges, large effects first, else large rank scores; edges by position with their places."""
    if found.circuit is None:
        return Grid("", (), ())
    data = drawn(found.circuit)
    order, rows = ranked(data), []
    for name, places in order[:MOST_EDGES]:
        again = [edge.frequency for edge in places if edge.frequency is not None]
        share = DASH if not again else _share(sum(again) / len(again))
        row = (name, *((_effect(places),) if data.effects else ()), decimal(total(places)), share)
        rows.append((*row, *((kinds(data, name),) if data.positions else ())))
    left = len(order) - len(rows)
    effects, rank = ("effect",) if data.effects else (), "rank score"
    names = ("edge", *effects, rank, "kept again", *(("where",) if data.positions else ()))
    return Grid(_about_edges(found, data, left), names, tuple(rows))


def _effect(places: list[DrawnEdge]) -> str:
    """Effect with its interval; of several places the sum of their single effects."""
    known = [edge.effect for edge in places if edge.effect is not None]
    if not known:
        return "not measured"
    if len(places) == 1:
        value, low, high = known[0]
        return f"{decimal(value)} [{decimal(low)}, {decimal(high)}]"
    some = "" if len(known) == len(places) else f", {len(known)} of {len(places)} places"
    return f"{decimal(sum(value for value, _, _ in known))}{some}"


def _about_edges(found: "DiscoveryFile", data: Drawn, left: int) -> str:
    """What the columns of the edges are."""
    effects = found.circuit.effects
    caption = "Kept edges by size of effect" if effects else "Kept edges by size of rank score"
    caption += f"; {count(left)} smaller ones are in circuit.json." if left else "."
    if effects is not None:
        caption += (
            f" Effect: {effects.kind}, in units of the metric ({effects.unit}), on {count(effects.n)} held-out "
            f"sequences, {100 * effects.level:g} % intervals; measured for {effects.counted} kept edges."
        )
    caption += f" R{RANK_SCORE[1:]}."
    if len(data.edges) < data.n_kept:
        caption += f" Only the {count(len(data.edges))} largest of {count(data.n_kept)} are counted here."
    if data.positions:
        caption += " Of an edge with several places effect and rank score are sums over single places; kept again is "
        caption += "their mean."
    return caption


def stability(found: "DiscoveryFile") -> list[str]:
    """How much of the circuit another sample of prompts gives again."""
    said, again = [], found.stability
    if again is not None and again.overlap is not None:
        said.append(
            f"{again.reruns} whole searches on resampled prompts keep {min(again.sizes)} to {max(again.sizes)} edges; "
            f"their overlap with this circuit (Jaccard) is {decimal(again.overlap.value)} {bounds(again.overlap)}, the "
            "lowest and the highest of them."
        )
    if found.split_half is not None:
        said.append(
            f"Circuits searched on two halves of the prompts overlap (Jaccard) by {decimal(found.split_half)}, in one "
            "random division, so without an interval. So far do two searches of this model, on half the prompts each, "
            "agree."
        )
    return said


def story_table(story: "Trajectory") -> Grid:
    """One row per checkpoint."""
    rows = [
        (
            count(point.step),
            point.verdict,
            decimal(point.accuracy) if point.accuracy_interval is None else estimate(point.accuracy_interval),
            f"{count(point.n_kept)} of {count(point.n_live)}" if point.n_live else DASH,
            estimate(point.retained),
            DASH if point.overlap is None else decimal(point.overlap),
            DASH if point.split_half is None else decimal(point.split_half),
            DASH if band is None else decimal(band),
            {True: "yes", False: "no", None: DASH}[point.changed],
        )
        for point, band in zip(story.points, story.bands(), strict=True)
    ]
    caption = (
        f"{story.note} Answers right counts each read position by itself, such as one state of a task\u2019s sequence "
        "(99.9 % intervals); metric kept is that of the circuit (95 % intervals). Overlap (Jaccard) is that with the "
        "circuit before; two halves is that of circuits searched on two halves of the prompts, in one random division; "
        "the band is the lower of the halves here and before. These three have no interval."
    )
    names = ("step", "verdict", "answers right", "edges", "metric kept", "overlap", "two halves", "band", "changed")
    return Grid(caption, names, tuple(rows))


def lives(story: "Trajectory", most: int = 40) -> Grid:
    """Edges that stayed, with birth and death."""
    born = [edge for edge in story.edges if edge.born is not None]
    rows = [
        (edge.edge, count(edge.born), DASH if edge.died is None else count(edge.died), count(len(edge.present)))
        for edge in born[:most]
    ]
    more = f" {count(len(born) - most)} more are not shown." if len(born) > most else ""
    caption = (
        f"{count(len(born))} edges pass at three checkpoints in a row: the verdict is circuit, and the circuit holds "
        "the edge. Born is the first of these; died is the first of three in a row without it. A candidate speaks "
        f"neither for an edge nor against it.{more}"
    )
    return Grid(caption, ("edge", "born", "died", "passes"), tuple(rows))


def provenance(found: "DiscoveryFile", extra: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    rows = list(extra)
    if found.circuit is not None:
        about = found.circuit.provenance
        parts = ", ".join(
            f"{name} {count(n)} ({count(about.n_units.get(name, n))} sequences)" for name, n in about.n_prompts.items()
        )
        rows += [
            ("Model", about.model + ("" if about.step is None else f", step {count(about.step)}")),
            ("Weights", about.fingerprint),
            ("Stored as", about.dtype),
            *((name.replace("_", " "), value) for name, value in about.processing.items()),
            ("Prompts", f"{about.pairs}: {parts}"),
            ("Prompt hash", about.pairs_fingerprint),
            ("Metric", about.metric),
            ("Ablation", f"{about.ablation}; {about.direction}"),
            ("Chosen along", about.method),
            ("Code", about.code_version),
            ("Seed", str(about.seed)),
            ("Threads", str(about.threads)),
        ]
    chosen = ", ".join(f"{name} {value}" for name, value in found.settings.model_dump(mode="json").items())
    return [*rows, ("Settings", chosen)]


def _share(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %".replace("-", "\u2212")


def _within(value: float, low: float | None, high: float | None) -> str:
    """A share with its interval, where one is stored."""
    return _share(value) if low is None or high is None else f"{_share(value)} [{_share(low)}, {_share(high)}]"


def _range(interval) -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}] %"
