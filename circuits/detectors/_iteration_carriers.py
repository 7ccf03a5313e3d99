"""What carries the input token in a solved model without the textbook reading head, found by intervention."""

from circuits.detectors._iteration_checks import (
    Head,
    Setting,
    edit_offset,
    interchange,
    pair_batches,
    share_interval,
)
from circuits.detectors._iteration_scan import interval, label
from circuits.detectors.base import Carrier
from probes.intervals import mean

CARRIER_BAR = 0.1  # interchange accuracy below this (chance is about 1/modulus) is not listed
OFFSET_RANGE = range(-4, 5)
TOP_OFFSETS = 4


def carriers(setting: Setting) -> list[Carrier]:
    """Heads whose output carries x_{t+1}, strongest first, then the key offsets the strongest one depends on."""
    cfg = setting.model.cfg
    heads = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    batches = list(pair_batches(setting, "input"))
    found = []
    single = {}
    for head in heads:
        hits = interchange(setting, [head], batches)
        single[head] = share_interval(hits.swapped)
        if single[head].value > CARRIER_BAR:
            text = "output at the query carries the input: answers that follow the donor's input when it is swapped"
            found.append(Carrier(component=label(*head), description=text, effect=single[head]))
    if cfg.n_heads > 1:
        found += _layers(setting, batches, single)
    found += _everywhere(setting, heads, batches, single)
    found.sort(key=lambda carrier: -carrier.effect.value)
    strongest = max(single, key=lambda head: single[head].value)
    return found + key_offsets(setting, strongest)


def _layers(setting: Setting, batches: list, single: dict[Head, object]) -> list[Carrier]:
    """All heads of one layer together, where they carry more than the best of them alone."""
    found = []
    for layer in range(setting.model.cfg.n_layers):
        heads = [head for head in single if head[0] == layer]
        together = share_interval(interchange(setting, heads, batches).swapped)
        if together.low > max(single[head].high for head in heads):
            text = "all heads of the layer together carry more of the input than the best one alone"
            found.append(Carrier(component=f"L{layer}.H*", description=text, effect=together))
    return found


def _everywhere(setting: Setting, heads: list[Head], batches: list, single: dict[Head, object]) -> list[Carrier]:
    """Heads that carry the input only when patched at every position: the input is fetched before the query."""
    found = []
    for head in heads:
        whole = share_interval(interchange(setting, [head], batches, everywhere=True).swapped)
        if whole.value > CARRIER_BAR and whole.low > single[head].high:
            text = "carries the input through earlier positions: patched at every position up to the query"
            found.append(Carrier(component=label(*head), description=text, effect=whole))
    return found


def key_offsets(setting: Setting, head: Head) -> list[Carrier]:
    """Step accuracy lost when the head cannot read key t+1+offset, for the offsets that matter most."""
    found = []
    for offset in OFFSET_RANGE:
        edited = edit_offset(setting, head, offset)
        if edited is None:
            continue
        lost = interval(mean(edited.before - edited.after, setting.generator))
        place = "x_{t+1}" if offset == 0 else f"x_{{t+1{offset:+d}}}"
        text = f"step accuracy lost without key {place} (mean attention there {edited.removed_mass:.2f})"
        found.append(Carrier(component=label(*head), description=text, effect=lost, offset=offset))
    found.sort(key=lambda carrier: -carrier.effect.value)
    return [carrier for carrier in found[:TOP_OFFSETS] if carrier.effect.low > 0]
