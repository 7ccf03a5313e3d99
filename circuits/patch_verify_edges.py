"""Reruns edges and sets of patches by whole forward passes of the model, in float64 where it can be copied."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from circuits.edge_reference import EdgeReference, Edit, Sites, plain_run
from circuits.engine.runs import Runs, replaced_values
from circuits.engine.sites import BY_COMPONENT, Site
from circuits.patch_edges import EdgeResult
from circuits.patch_sets import At, SetResult
from circuits.patch_verify import Checks, exact, logits_with, value_of

COMPUTED: tuple[Site, ...] = (
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)


class Reruns:
    """The plain runs of one call, of its own model: nothing that the engine recorded."""

    def __init__(self, runs: Runs):
        self.runs, self.model = runs, exact(runs.model)
        self.decoder = runs.decoder.to(torch.float64)
        self.base = plain_run(self.decoder, runs.prompts.base)
        self.source = self._source()
        self.before = self.logits([])
        self.start = value_of(runs, self.before, self.before)

    def logits(self, edits: Sequence[Edit]) -> Tensor:
        """Logits of the base run with these edits."""
        with torch.no_grad():
            return logits_with(self.model, self.runs.prompts.base, edits)

    def effect(self, edits: Sequence[Edit]) -> Tensor:
        """What the edits do to the metric of each prompt."""
        return value_of(self.runs, self.logits(edits), self.before) - self.start

    def _source(self) -> Sites:
        prompts, given = self.runs.prompts, self.runs.given
        if prompts.source is not None:
            return plain_run(self.decoder, prompts.source)
        stated = (given.ablation, prompts.lengths, given.seed)
        return {at: replaced_values(value, *stated) for at, value in self.base.items()}


def edge_checks(result: EdgeResult) -> Checks:
    """Edges, by place where they are resolved, that were asked for and can reach the metric."""
    graph = result.graph

    @cache
    def reference() -> tuple[Reruns, EdgeReference]:
        reruns = Reruns(result.edges.runs)
        return reruns, EdgeReference(reruns.decoder, reruns.base, reruns.source)

    def both(place: Sequence[int]) -> tuple[Tensor, Tensor]:
        sender, receiver, *where = place
        pos, query = (*where, None)[:2] if where else (slice(None), None)
        reruns, by_hand = reference()
        edit = by_hand.edit(graph.senders[sender], graph.receivers[receiver], pos, query)
        return result.effect[(slice(None), *place)], reruns.effect([edit])

    return Checks(result.edges.ran.nonzero(), both)


def set_checks(result: SetResult) -> Checks:
    """Sets with a patch that can reach the metric."""
    plain = cache(lambda: Reruns(result.patches.runs))

    def both(place: Sequence[int]) -> tuple[Tensor, Tensor]:
        edits = edits_of(result.sets[place[0]], plain().source)
        return result.effect[:, place[0]], plain().effect(edits)

    return Checks(torch.tensor(result.patches.order, dtype=torch.long)[:, None], both)


def edits_of(patches: Sequence[At], source: Sites) -> list[Edit]:
    """One edit for each site and layer of a set, in order of computation."""
    by_site: dict[tuple[str, int], list[At]] = {}
    for one in patches:
        by_site.setdefault((one.site, one.layer), []).append(one)
    order = sorted(by_site, key=lambda at: (at[1], COMPUTED.index(at[0])))
    return [Edit(site, layer, putting(by_site[site, layer], source[site, layer])) for site, layer in order]


def putting(patches: Sequence[At], value: Tensor) -> Any:
    """Puts a site's values in at some of its places."""

    def change(activation: Tensor) -> Tensor:
        changed = activation.clone()
        for one in patches:
            position, component = (slice(None) if index is None else index for index in (one.position, one.component))
            at = (slice(None), position, component) if one.site in BY_COMPONENT else (slice(None), position)
            changed[at] = value[at].to(activation)
        return changed

    return change
