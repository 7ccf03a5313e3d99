"""The address of a view: query parameters, checked and clamped against the run they speak of. No Streamlit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.errors import InterpError
from interp.run import Run

MOST_EXAMPLES = 1_000_000


@dataclass(frozen=True)
class Address:
    """Raw parameters, the limits the run sets, and what was read.

    Attributes:
        read: every value that was read, for the link that names them all.
        notes: what to say of a step that was asked for and is not the one shown, by parameter.
    """

    raw: dict[str, str]
    run: str | None
    steps: tuple[int, ...] = ()
    layers: int = 1
    heads: int = 1
    read: dict[str, str] = field(default_factory=dict, compare=False)
    notes: dict[str, str] = field(default_factory=dict, compare=False)

    def get(self, name: str) -> Any:
        """One of run, step, layer, head, example; see `Page.get`. KeyError for any other name."""
        if name == "run":
            return self._seen(name, self.run)
        if name == "step":
            return self.step(self.steps)
        most = {"layer": self.layers - 1, "head": self.heads - 1, "example": MOST_EXAMPLES}[name]
        return self.number(name, 0, most)

    def step(
        self, steps: Sequence[int], what: str = "checkpoint", name: str = "step", default: int | None = None
    ) -> int | None:
        """The step among `steps` nearest to the one asked for; the default, or the last, where none is; None of none.

        Where another one was asked for, `notes` says so from now on.

        Args:
            what: what the steps left out lack, such as "stored circuit".
        """
        asked = self.raw.get(name)
        shown = default if whole(asked) is None and default in steps else nearest(asked, steps)
        self.notes.pop(name, None)
        if asked and shown is not None and whole(asked) != shown:
            lacks = "checkpoint" if name == "step" and whole(asked) not in self.steps else what
            self.notes[name] = (
                f"The step in the address is no number; showing {shown:,}."
                if whole(asked) is None
                else f"Step {whole(asked):,} has no {lacks}; showing {shown:,}."
            )
        return self._seen(name, shown)

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number clamped to [low, high]."""
        value = whole(self.raw.get(name))
        if value is None:
            value = low if default is None else default
        return self._seen(name, max(low, min(value, high)))

    def choice(self, name: str, options: Sequence[str], default: str | None = None) -> str:
        """One of `options`: the parameter if it is among them, else the default, else the first."""
        fallback = default if default in options else options[0]
        given = self.raw.get(name)
        return self._seen(name, given if given in options else fallback)

    def text(self, name: str) -> str:
        """Free text, or nothing; whoever uses it checks what it means."""
        given = self.raw.get(name, "")
        return self._seen(name, given) if given else ""

    def update(self, values: Mapping[str, Any]) -> None:
        """Take over parameters that were written."""
        for name, value in values.items():
            self.raw.pop(name, None)
            self.read.pop(name, None)
            self.notes.pop(name, None)
            if value is not None:
                self.raw[name] = str(value)

    def full(self) -> dict[str, str]:
        """Every parameter that is known or was read, checked values over raw ones, the run first."""
        run = {"run": self.run} if self.run else {}
        return run | {name: value for name, value in self.read.items() if name != "run"}

    def _seen(self, name: str, value: Any) -> Any:
        if value is not None:
            self.read[name] = str(value)
        return value


def address(raw: Mapping[str, str], run: Run | None) -> Address:
    """The address against one run; a run that cannot be read sets no limits, its views say what is wrong with it."""
    if run is None:
        return Address(dict(raw), None)
    try:
        refs = run.checkpoints() or run.checkpoints(rolling=True)
        model = run.config.model
    except InterpError:
        return Address(dict(raw), run.name)
    return Address(dict(raw), run.name, tuple(ref.step for ref in refs), model.n_layers, model.n_heads)


def whole(text: str | None) -> int | None:
    """A whole number of at most 18 digits; None for everything else."""
    text = (text or "").strip()
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None


def nearest(text: str | None, steps: Sequence[int]) -> int | None:
    """The step nearest to the one asked for; the last without a valid question; None without steps."""
    wanted = whole(text)
    if not steps:
        return None
    return steps[-1] if wanted is None else min(steps, key=lambda step: (abs(step - wanted), step))
