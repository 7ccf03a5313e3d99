"""What carries the input and the step in a solved model without the textbook pair of heads, found by intervention."""

from circuits.detectors._iteration_checks import edit_offset
from circuits.detectors._iteration_interchange import (
    INTERCHANGE_BAR,
    ROLE_FAMILY,
    Cases,
    Setting,
    collect_cases,
    interchange,
    interchange_everywhere,
    swap_interval,
)
from circuits.detectors._iteration_scan import OFFSETS, Cells, Head, interval, label
from circuits.detectors.base import Carrier, Interval
from probes.intervals import mean

CARRIER_BAR = 0.1  # interchange accuracy below this (chance is about 1/modulus) is not listed
OFFSET_RANGE = range(-4, 5)
TOP_OFFSETS = 4
BROUGHT = {"reading": "input", "clock": "step"}


def carriers(setting: Setting, found: Cells) -> list[Carrier]:
    """Heads whose output carries the input, and the step: alone, in groups, or through earlier positions.

    The strongest comes first within each role, the input before the step; then the key offsets that the strongest
    carrier of the input depends on.
    """
    listed: list[Carrier] = []
    single: dict[str, dict[Head, Interval]] = {}
    for role in ("reading", "clock"):
        cases = collect_cases(setting, ROLE_FAMILY[role])
        single[role] = {head: swap_interval(setting, interchange(setting, [head], cases)) for head in heads_of(setting)}
        rows = [
            Carrier(
                component=label(*head), description=f"carries the {BROUGHT[role]} at the query, alone", effect=effect
            )
            for head, effect in single[role].items()
            if effect.value > CARRIER_BAR
        ]
        rows += groups(setting, role, cases, single[role], found)
        if role == "reading" and all(row.effect.low < INTERCHANGE_BAR for row in rows):
            rows += through_earlier_positions(setting, cases, single[role])
        listed += sorted(rows, key=lambda carrier: -carrier.effect.value)
    strongest = max(single["reading"], key=lambda head: single["reading"][head].value)
    return listed + key_offsets(setting, strongest)


def heads_of(setting: Setting) -> list[Head]:
    """Every head of the model, layer by layer."""
    cfg = setting.model.cfg
    return [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]


def groups(
    setting: Setting, role: str, cases: list[Cases], single: dict[Head, Interval], found: Cells
) -> list[Carrier]:
    """The smallest group of heads of one layer, taken by attention on the target, that carries the role together.

    A layer whose best head suffices alone, or whose heads do not suffice all together, has no group.
    """
    mass = getattr(found, role)[0, ..., OFFSETS.index(0)]
    rows = []
    for layer in range(setting.model.cfg.n_layers):
        heads = [head for head in single if head[0] == layer]
        if len(heads) < 2 or max(single[head].low for head in heads) >= INTERCHANGE_BAR:
            continue
        if swap_interval(setting, interchange(setting, heads, cases)).low < INTERCHANGE_BAR:
            continue
        ranked = sorted(heads, key=lambda head: -float(mass[head]))
        for size in range(2, len(heads) + 1):
            together = swap_interval(setting, interchange(setting, ranked[:size], cases))
            if together.low >= INTERCHANGE_BAR:
                names = "+".join(label(*head) for head in sorted(ranked[:size]))
                share = ", ".join(f"{float(mass[head]):.2f}" for head in sorted(ranked[:size]))
                text = f"carry the {BROUGHT[role]} together; attention on its target {share}"
                rows.append(Carrier(component=names, description=text, effect=together))
                break
    return rows


def through_earlier_positions(setting: Setting, cases: list[Cases], single: dict[Head, Interval]) -> list[Carrier]:
    """Heads that carry the input only when patched at every position: it is fetched before the query."""
    rows = []
    for head, alone in single.items():
        whole = interchange_everywhere(setting, head, cases)
        if whole.value > CARRIER_BAR and whole.low > alone.high:
            text = "carries the input through earlier positions: patched at every position up to the query"
            rows.append(Carrier(component=label(*head), description=text, effect=whole))
    return rows


def key_offsets(setting: Setting, head: Head) -> list[Carrier]:
    """Step accuracy lost when the head cannot read key t+1+offset, for the offsets that matter most."""
    rows = []
    for offset in OFFSET_RANGE:
        edited = edit_offset(setting, head, offset)
        if edited is None:
            continue
        lost = interval(mean(edited.before - edited.after, setting.generator))
        place = "x_{t+1}" if offset == 0 else f"x_{{t+1{offset:+d}}}"
        text = f"step accuracy lost without key {place} (mean attention there {edited.removed_mass:.2f})"
        rows.append(Carrier(component=label(*head), description=text, effect=lost, offset=offset))
    rows.sort(key=lambda carrier: -carrier.effect.value)
    return [carrier for carrier in rows[:TOP_OFFSETS] if carrier.effect.low > 0]


def shared_roles(carried: list[Carrier]) -> dict[str, str]:
    """Role -> the heads that carry it, where some head or group passes the interchange bar."""
    roles: dict[str, str] = {}
    for role, brought in BROUGHT.items():
        passed = [
            c for c in carried if c.offset is None and brought in c.description and c.effect.low >= INTERCHANGE_BAR
        ]
        if passed:
            roles[role] = min(passed, key=lambda c: c.component.count("+")).component
    return roles
