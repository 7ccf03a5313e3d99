"""Previous token head: looks at the place before the current one, whatever stands there.

Claim: a head whose attention goes one place back, and whose output there is used, by induction heads or for the next
token.

Statistic: attention mass on place p - 1 from each place p >= 2 of random tokens that do not repeat. From place 1 the
previous place is the first one, where heads rest, so it does not count.

Null: random twins of the same shape, one maximum over all heads from each, so that p is family-wise. Prompts cannot be
permuted into a null: on random tokens the previous place is as random as any other.

Threshold: p <= 0.05 after multiplication by the number of head types looked for, and the previous place is the most
attended key of half of the queries (the first place and the query's own left out).

Causal check, one of two: mean ablation lowers the log-probability of a repeated token, which needs a previous token
head (not tested where the model does not predict repeats); or, when only the previous token of the last place is
another one, the head's output from there changes the prediction. Both beyond control heads of the same layer.

Known failure: a head that serves neither repeats nor the next token stays a candidate. A head that spreads over several
places back is not found.

Source: "In-context Learning and Induction Heads", argument on previous token heads; null and checks are ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.detectors.base import HeadCheck
from circuits.heads.checks import Head, Setting, mean_ablation, other_previous_token
from circuits.heads.probe import Probe
from circuits.heads.targets import target_first, target_mass
from circuits.heads.view import View

FIRST = 2


class PreviousToken:
    """The detector; the module docstring has claim, statistic, null, threshold, causal check and known failure."""

    name = "previous_token"
    claim = "attends to the place before the current one, and what it brings from there is used"
    verdict = "previous token head"
    statistic = "attention on the previous place, from the third place on, in random tokens without a repeat"
    rate = "share of queries whose previous place is the most attended key, first place and own place left out"
    needs_all = False

    def _target(self, probe: Probe) -> tuple[Tensor, Tensor]:
        queries = torch.arange(FIRST, probe.tokens.shape[1])
        return queries, queries - 1

    def scores(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Mass on the previous place."""
        return target_mass(view.pattern[probe.n :], *self._target(probe))

    def rates(self, view: View, probe: Probe) -> Float[Tensor, "head"]:
        """How often the previous place is the most attended key."""
        return target_first(view.pattern[probe.n :], *self._target(probe))

    def contrast(self, view: View, probe: Probe) -> None:
        """There are no prompts without a previous place."""

    def checks(self, setting: Setting, heads: list[Head]) -> list[HeadCheck]:
        """Repeats without the head, and the head's output after another previous token."""
        behaves = setting.predicts_repeats()
        unused = "" if behaves else "the model does not predict repeated tokens better than others"
        repeats = mean_ablation(setting, heads, setting.repeated_token(), not_tested=unused)
        return [*repeats, *other_previous_token(setting, heads)]


DETECTOR = PreviousToken()
