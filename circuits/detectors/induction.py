"""Induction head: looks at the token after the previous occurrence of the current token, which is likely to follow.

Claim: a head whose attention goes from a token to the token that followed it before, and that makes the model predict
this token again.

Statistic: attention mass on place p - block + 1 from each place p of the second of two equal blocks of random tokens;
about 1/(p + 1) at random, 1 for a perfect head.

Null: random twins of the same shape, and the same second blocks after a first block without any of their tokens, where
nothing is repeated: over sequences the signs of the differences are drawn anew. Each null gives one maximum over all
heads, so that p is family-wise; the larger p counts.

Threshold: p <= 0.05 after multiplication by the number of head types looked for, and the target is the most attended
key of half of the queries (the first place and the query's own left out).

Causal check: the log-probability of the repeated token falls, beyond its interval and beyond what control heads of the
same layer cost, when the head's output in the second block is the one without the repeat, and when it is its mean.

Known failure: where several induction heads stand in for each other, removing one costs little, and all stay
candidates. A head that copies only natural text is not seen on random tokens.

Source: "In-context Learning and Induction Heads"; the two nulls and the checks against control heads are ours.
"""

from jaxtyping import Float
from torch import Tensor

from circuits.detectors.base import HeadCheck
from circuits.heads.checks import Head, Setting, mean_ablation, without_repeat
from circuits.heads.probe import Probe
from circuits.heads.targets import target_first, target_mass
from circuits.heads.view import View


class Induction:
    """The detector; the module docstring has claim, statistic, null, threshold, causal check and known failure."""

    name = "induction"
    claim = "attends to the token after the previous occurrence of the current one, so that it is predicted again"
    verdict = "induction head"
    statistic = "attention on the token after the previous occurrence of the current token, second of two equal blocks"
    rate = "share of queries whose target is the most attended key, first place and own place left out"
    needs_all = True

    def _target(self, probe: Probe) -> tuple[Tensor, Tensor]:
        queries = probe.second[:-1]  # after the last token nothing has followed
        return queries, queries - probe.block + 1

    def scores(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Mass on the target in sequences with the repeat."""
        return target_mass(view.pattern[: probe.n], *self._target(probe))

    def rates(self, view: View, probe: Probe) -> Float[Tensor, "head"]:
        """How often the target is the most attended key."""
        return target_first(view.pattern[: probe.n], *self._target(probe))

    def contrast(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Mass on the target's place with the repeat minus without it."""
        return self.scores(view, probe) - target_mass(view.pattern[probe.n :], *self._target(probe))

    def checks(self, setting: Setting, heads: list[Head]) -> list[HeadCheck]:
        """The repeat taken from the head, and mean ablation."""
        metric = setting.repeated_token()
        return [*without_repeat(setting, heads, metric), *mean_ablation(setting, heads, metric)]


DETECTOR = Induction()
