"""How a state follows from the state before it and one input, as a table over values modulo m."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from interp.config import Frozen


class IterationParams(Frozen):
    """What every iteration task can vary.

    `order` and `input_shift` exist to train hard negatives for detectors: models that iterate without the textbook
    reading head. Leave both alone for the task of the paper.
    """

    max_length: int = Field(16, ge=1, le=1024, description="lengths are 1 to max_length")
    chain_of_thought: bool = Field(True, description="False: only the last state follows EoI")
    order: Literal["forward", "reversed"] = Field(
        "forward", description="'reversed': the states consume the inputs from last to first, s_t uses x_{L+1-t}"
    )
    input_shift: int = Field(0, ge=0, description="s_t uses x_{((t-1+input_shift) mod L)+1}, counted along `order`")


@dataclass(frozen=True, eq=False)
class Rule:
    """s_1 = first[x_1] and s_t = table[s_{t-1}, x_t], over the values 0..m-1.

    `formula` says the same in words of arithmetic; `inputs` are the values that inputs are drawn from, in order.
    """

    formula: str
    inputs: tuple[int, ...]
    table: Int[Tensor, "modulus modulus"]
    first: Int[Tensor, "modulus"]

    @property
    def modulus(self) -> int:
        """Number of values m."""
        return len(self.first)

    def reachable(self, t: int) -> Bool[Tensor, "modulus"]:
        """True at each value that s_t can take, t >= 1.

        For the default polynomial s_1 is never 0 and s_2 is never 1, so a donor state has to be drawn from these.
        """
        inputs = torch.tensor(self.inputs)
        reached = torch.zeros(self.modulus, dtype=torch.bool)
        reached[self.first[inputs]] = True
        for _ in range(t - 1):
            following = self.table[reached][:, inputs]  # [reached input]
            reached = torch.zeros_like(reached)
            reached[following.flatten()] = True
        return reached

    def probabilities(self, t: int) -> Float[Tensor, "modulus"]:
        """Probability of each value of s_t, t >= 1, when the inputs are independent and uniform."""
        inputs = torch.tensor(self.inputs)
        share = 1.0 / len(inputs)
        mass = torch.bincount(self.first[inputs], minlength=self.modulus).double() * share
        following = self.table[:, inputs]  # [modulus input]
        for _ in range(t - 1):
            spread = (mass[:, None] * share).expand(following.shape)
            mass = torch.zeros_like(mass).index_add(0, following.flatten(), spread.flatten())
        return mass

    def permutation_invariant(self) -> bool:
        """Whether no state depends on the order of the inputs before it, checked over all values.

        Such a task (parity is one) can be solved by counting, without following the states. The order never matters
        exactly when swapping two neighbouring inputs never does: first(x) then y gives what first(y) then x gives,
        and x then y gives what y then x gives from every state that can occur.
        """
        inputs = torch.tensor(self.inputs)
        opening = self.table[self.first[inputs]][:, inputs]  # [x y]
        if not torch.equal(opening, opening.T):
            return False
        reached = self.reachable(1)
        for _ in range(self.modulus):  # the set of states met so far stops growing after at most m steps
            later = torch.zeros_like(reached)
            later[self.table[reached][:, inputs].flatten()] = True
            reached = reached | later
        for state in reached.nonzero().flatten():
            ending = self.table[self.table[state, inputs]][:, inputs]  # [x y]
            if not torch.equal(ending, ending.T):
                return False
        return True


def table_of(modulus: int, terms: tuple[tuple[int, int, int], ...]) -> Int[Tensor, "modulus modulus"]:
    """Values of the polynomial sum c s^a x^b mod m at every (state, input); terms are (c, a, b), and 0^0 is 1."""
    table = torch.zeros(modulus, modulus, dtype=torch.long)
    for coefficient, power_of_state, power_of_input in terms:
        states = torch.tensor([pow(value, power_of_state, modulus) for value in range(modulus)])
        inputs = torch.tensor([pow(value, power_of_input, modulus) for value in range(modulus)])
        table = (table + coefficient % modulus * states[:, None] * inputs[None, :]) % modulus
    return table
