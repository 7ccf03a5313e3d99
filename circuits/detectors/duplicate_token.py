"""Duplicate token head: looks at the earlier occurrence of the current token.

Claim: a head whose attention goes from a token to the same token earlier in the text, and whose output then changes
what the model predicts.

Statistic: attention mass on place p - block from each place p of the second of two equal blocks of random tokens; the
same token stands there and nowhere else before.

Null: random twins of the same shape, and the same second blocks after a first block without any of their tokens: over
sequences the signs of the differences are drawn anew. Each null gives one maximum over all heads, so that p is
family-wise; the larger p counts.

Threshold: p <= 0.05 after multiplication by the number of head types looked for, and the earlier occurrence is the most
attended key of half of the queries (the first place and the query's own left out).

Causal check: when the head's output in the second block is the one without the repeat, the predictions there change, in
KL divergence, more than when control heads of the same layer are treated in the same way.

Known failure: a head that looks at its own token as much as at the earlier one is found, though it may serve the
current token only; the causal check decides. Without a control head nothing is tested.

Source: "Interpretability in the Wild: a Circuit for Indirect Object Identification", duplicate token heads; the nulls
and the check are ours.
"""

from jaxtyping import Float
from torch import Tensor

from circuits.detectors.base import HeadCheck
from circuits.heads.checks import Head, Setting, without_repeat
from circuits.heads.probe import Probe
from circuits.heads.targets import target_first, target_mass
from circuits.heads.view import View


class DuplicateToken:
    """The detector; the module docstring has claim, statistic, null, threshold, causal check and known failure."""

    name = "duplicate_token"
    claim = "attends to the earlier occurrence of the current token, and this changes the prediction"
    verdict = "duplicate token head"
    statistic = "attention on the earlier occurrence of the current token, second of two equal blocks of random tokens"
    rate = "share of queries whose earlier occurrence is the most attended key, first place and own place left out"
    needs_all = True

    def _target(self, probe: Probe) -> tuple[Tensor, Tensor]:
        queries = probe.second[1 - probe.start :]  # a target on the first place would be where heads rest
        return queries, queries - probe.block

    def scores(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Mass on the earlier occurrence."""
        return target_mass(view.pattern[: probe.n], *self._target(probe))

    def rates(self, view: View, probe: Probe) -> Float[Tensor, "head"]:
        """How often the earlier occurrence is the most attended key."""
        return target_first(view.pattern[: probe.n], *self._target(probe))

    def contrast(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Mass on the place one block back, with the same token there minus with another."""
        return self.scores(view, probe) - target_mass(view.pattern[probe.n :], *self._target(probe))

    def checks(self, setting: Setting, heads: list[Head]) -> list[HeadCheck]:
        """The repeat taken from the head."""
        return without_repeat(setting, heads, None)


DETECTOR = DuplicateToken()
