"""Copy head, or name mover: raises the logits of the tokens that it looks at.

Claim: a head whose output at a place directly raises the logits of the earlier tokens it attends to, so that the model
predicts them.

Statistic: sum over earlier places k of attention times u_k[token k] / std(u_k), where u_k = W_U^T (v_k W_O) are the
direct logits of the value at k, centred over tokens; the first place and the query's own are left out. In standard
deviations over tokens: about 0 at random, at most sqrt(number of tokens - 1). It is read in the second of two equal
blocks of random tokens or, with prompts of a behaviour, where their answers are read: there a copy head is a name mover
of that behaviour. Beside it stands the eigenvalue copying score, which decides nothing.

Null: random twins of the same shape, and the same scores for the token after the one attended to instead of the token
itself: over sequences the signs of the differences are drawn anew. Each null gives one maximum over all heads, so that
p is family-wise; the larger p counts.

Threshold: p <= 0.05 after multiplication by the number of head types looked for, and half of the attention that is read
goes to tokens whose logits are raised by more than one standard deviation.

Causal check: under mean ablation the log-probability of the most attended token falls, beyond its interval and beyond
what control heads of the same layer cost.

Known failure: copying through later layers (a head whose output an MLP turns into the token) is not direct and not
found. A head that rests on the first place on random tokens needs prompts of its behaviour.

Source: "A Mathematical Framework for Transformer Circuits", copying heads; "Interpretability in the Wild", name movers.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.detectors.base import HeadCheck
from circuits.heads.checks import Head, Setting, attended_token
from circuits.heads.probe import Probe
from circuits.heads.view import View

RAISED = 1.0


class Copying:
    """The detector; the module docstring has claim, statistic, null, threshold, causal check and known failure."""

    name = "copying"
    claim = "raises the logits of the tokens it attends to, so that they are predicted"
    verdict = "copy head"
    statistic = "attention-weighted direct logit of the attended tokens, in standard deviations over tokens"
    rate = "share of the attention read that goes to tokens raised by more than one standard deviation"
    needs_all = True

    def scores(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Attention-weighted score of the attended tokens, mean over queries."""
        return self._weighted(view, probe, view.raises(view.tokens))

    def rates(self, view: View, probe: Probe) -> Float[Tensor, "head"]:
        """Share of the mass on tokens that are raised."""
        raised = (view.raises(view.tokens) > RAISED).to(view.pattern)
        hit = self._weighted(view, probe, raised).sum(0)
        return hit / self._weighted(view, probe, torch.ones_like(raised)).sum(0).clamp(min=1e-12)

    def contrast(self, view: View, probe: Probe) -> Float[Tensor, "prompt head"]:
        """Score of the attended tokens minus that of the tokens after them."""
        return self._weighted(view, probe, view.raises(view.tokens) - view.raises(view.tokens.roll(-1, 1)))

    def checks(self, setting: Setting, heads: list[Head]) -> list[HeadCheck]:
        """The most attended token without the head."""
        return attended_token(setting, heads)

    def _weighted(
        self, view: View, probe: Probe, values: Float[Tensor, "row head k_pos"]
    ) -> Float[Tensor, "prompt head"]:
        """Attention-weighted values of what is read, mean over a prompt's queries."""
        n, queries = probe.n, probe.queries.to(values.device)
        index = queries[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[2])
        pattern = view.pattern[:n].gather(2, index) * read_places(queries, values.shape[2])[:, None]
        return (pattern * values[:n, :, None]).sum(-1).mean(-1)


def read_places(queries: Tensor, n_pos: int) -> Bool[Tensor, "prompt query k_pos"]:
    """Keys that count: before the query and not the first."""
    place = torch.arange(n_pos, device=queries.device)
    return (place < queries[..., None]) & (place > 0)


DETECTOR = Copying()
