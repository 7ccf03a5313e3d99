"""What a view is given: the run to look at, the validated address, and the furniture every view shares."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import streamlit as st

from dashboards.address import Address
from interp.errors import InterpError
from interp.run import Run, Store

Widget = Literal["selectbox", "slider", "segments"]
NOT_GIVEN, READ_ONLY = "not applicable", "Read only: nothing is intervened on"
COUNT = "{:,}".format
ADDRESS = re.compile(r":(?=//)|www(?=\.)|@", re.IGNORECASE)
MEANING, JOINER = frozenset("\\`*_{}[]()<>#+-.!|$:~&"), "\u2060"


@dataclass(frozen=True)
class Page:
    """One rerun of one view.

    The address (the query parameters of the URL) is the only truth about what is looked at, the session holds unsaved
    forms only, and the disk holds results. Whatever is read through `get`, `number`, `choice` or `pick` is checked and
    clamped first, and remembered, so that `share` offers a link that names every one of them, defaults included.
    """

    view: str
    title: str
    store: Store
    run: Run | None
    address: Address
    names: tuple[str, ...] = field(default=(), repr=False)
    pages: Mapping[str, Any] = field(default_factory=dict, repr=False)
    slots: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the run's checkpoints, ascending; empty without a run."""
        return self.address.steps

    def get(self, name: Literal["run", "step", "layer", "head", "example"]) -> Any:
        """A parameter every view shares, as it is after clamping.

        `step` is the checkpoint nearest to the one asked for (the newest by default; None without checkpoints);
        `layer` and `head` lie within the run's model, from 0; `example` is 0 or more (clamp it with `number`, which
        knows how many there are); `run` is the run's name or None.
        """
        return self.address.get(name)

    def step_among(self, steps: Sequence[int], what: str, name: str = "step", default: int | None = None) -> int | None:
        """The step to show of those a view has something for; the line under the title tells of another one asked for.

        Args:
            steps: ascending; None is returned where there are none.
            what: what the other checkpoints lack, such as "stored circuit".
            name: parameter of the address.
            default: shown where the address names no step; the last one if not given.
        """
        return self.address.step(steps, what, name, default)

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number of the address, clamped to [low, high]; `default`, or `low`, where there is none."""
        return self.address.number(name, low, high, default)

    def choice(self, name: str, options: Sequence[str], default: str | None = None) -> str:
        """A word of the address if it is one of `options`; else `default`, or the first; never anything unlisted."""
        return self.address.choice(name, options, default)

    def text(self, name: str) -> str:
        """Free text of the address, or nothing; it is never taken as markup, a path or a name without a check."""
        return self.address.text(name)

    def put(self, **values: Any) -> None:
        """Write parameters into the address; None removes one. Use it in callbacks, or before what depends on them."""
        for name, value in values.items():
            if value is None:
                st.query_params.pop(name, None)
            elif st.query_params.get(name) != str(value):
                st.query_params[name] = str(value)
        self.address.update(values)

    def pick(
        self,
        name: str,
        label: str,
        options: Sequence[Any],
        default: Any = None,
        *,
        widget: Widget = "selectbox",
        show: Callable[[Any], str] = str,
        help: str | None = None,
    ) -> Any:
        """A widget bound to one parameter of the address: its value always comes from there, its change goes there.

        Args:
            options: allowed values, whole numbers or words, at least one; with "slider" in ascending order.
            show: text of an option.
        """
        key, written = f"{self.view}.{name}", {str(option): option for option in options}
        st.session_state[key] = written[self.choice(name, list(written), None if default is None else str(default))]
        change = {"key": key, "on_change": self._changed, "args": (name, key), "format_func": show, "help": help}
        if len(options) < 2 or widget == "selectbox":
            return st.selectbox(label, options, **change, disabled=len(options) < 2)
        if widget == "slider":
            return st.select_slider(label, options, **change)
        return st.segmented_control(label, options, **change, required=True)

    def _changed(self, name: str, key: str) -> None:
        self.put(**{name: st.session_state[key]})

    def pick_step(self, label: str = "Checkpoint (training step)") -> int | None:
        """The slider over checkpoints that every view shares; None, with a note, where the run has none."""
        if not self.steps:
            st.info("This run has no checkpoint yet; the first one is written before training starts.")
            return None
        return self.pick("step", label, self.steps, self.get("step"), widget="slider", show=COUNT)

    def header(
        self,
        *,
        direction: str = NOT_GIVEN,
        ablation: str = NOT_GIVEN,
        family: str = NOT_GIVEN,
        n: int | str = NOT_GIVEN,
        exploratory: bool = False,
    ) -> None:
        """Title and the line that says how the numbers below were made.

        A view that gives `n` alone only reads; one that gives nothing has no numbers yet.

        Args:
            direction: which run is patched with what, such as "clean into corrupted".
            ablation: zero, mean, resample, or interchange with a donor.
            family: the pair family, such as "input", "clock" or "state".
            n: number of prompts or pairs behind one number.
            exploratory: mark what one finds by clicking, until a held-out command confirms it.
        """
        left, self.slots["share"] = st.columns([6, 1], vertical_alignment="center")
        left.title(self.title, anchor=False)
        if exploratory:
            st.badge(
                "exploratory",
                color="orange",
                help="Found by clicking on the prompts shown. `interp detect` or `interp circuit` confirms it on "
                "held-out prompts.",
            )
        made = {"direction": direction, "ablation": ablation, "pair family": family}
        words = [f"{name}: {plain(value)}" for name, value in {**made, "n": n}.items()]
        if set(made.values()) == {NOT_GIVEN}:
            words = ["No numbers yet"] if n == NOT_GIVEN else [READ_ONLY, words[-1]]
        st.caption(" · ".join(words))
        self.slots["notes"] = st.empty()

    def share(self, command: str | None = None, python: str | None = None) -> None:
        """Offer the full link, the command that gives the same, and the Python for it, in a button beside the title.

        The button is drawn once the whole view has been read, so the link names everything in it.

        Args:
            command: from `self.command(...)`; None where no command gives this.
            python: lines after `self.python_start()`; None where there is nothing to say.
        """
        self.slots["shared"] = (command, python)

    def draw_notes(self) -> None:
        """Say below the title which steps are shown instead of those asked for; called by the router after the view."""
        if "notes" in self.slots and self.address.notes:
            self.slots["notes"].caption(plain(" ".join(self.address.notes.values())))

    def draw_share(self) -> None:
        """Draw the button; called by the router after the view. One that stopped early can still be sent."""
        if "share" not in self.slots:
            return
        command, python = self.slots.get("shared") or (self.command("runs", "show"), "print(run.config)")
        with self.slots["share"], st.popover("Share", icon=":material/share:", key=f"{self.view}.share"):
            st.markdown("**Copy link** (to exactly this state, for whoever sees this store)")
            st.code(self.link(), language=None, wrap_lines=True)
            if command:
                st.markdown("**Copy as command**")
                st.code(command, language="sh", wrap_lines=True)
            if python:
                st.markdown("**Copy as Python**")
                st.code(f"{self.python_start()}\n{python}", language="python", wrap_lines=True)

    def link(self) -> str:
        """The address with every parameter this rerun has read, defaults included."""
        return f"{st.context.url or '/' + self.view}?{urlencode(self.address.full())}"

    def open(self, view: str, label: str, **parameters: Any) -> None:
        """A link to another view of this dashboard with these parameters; nothing where there is no such view."""
        if view in self.pages:
            given = {name: str(value) for name, value in parameters.items() if value is not None}
            st.page_link(self.pages[view], label=label, query_params=given)

    def command(self, *words: str, run: bool = True) -> str:
        """An `interp` command line for this run and store: command("detect", "--checkpoints", "all")."""
        name = [self.run.name] if run and self.run is not None else []
        rest = words[1:] if words[:1] != ("report",) and words[:1] != ("runs",) else words[2:]
        head = words[: len(words) - len(rest)]
        return shlex.join(["interp", *head, *name, *rest, "--store", str(self.store.root)])

    def python_start(self) -> str:
        """The lines with which every "copy as Python" begins: the store and the run."""
        lines = ["from interp.run import Store", "", f"store = Store({str(self.store.root)!r})"]
        if self.run is not None:
            lines.append(f"run = store.run({self.run.name!r})")
        return "\n".join(lines)

    def empty(self, what: str, why: str, command: str | None = None) -> None:
        """An empty state that teaches: what would be here, why it is not, and the command that brings it."""
        st.subheader(what, anchor=False)
        st.markdown(why)
        if command:
            st.code(command, language="sh", wrap_lines=True)

    def problem(self, error: InterpError | str, todo: str = "", command: str | None = None) -> None:
        """What happened, as the error says it, and what to do; text is never taken as markup."""
        st.error("This cannot be shown.", icon=":material/error:")
        st.text(str(error))
        if todo:
            st.markdown(todo)
        if command:
            st.code(command, language="sh", wrap_lines=True)

    @contextmanager
    def guarded(self, todo: str = "", command: str | None = None):
        """Shows an expected error of the block as `problem` and goes on after it, so that one panel hides no other."""
        try:
            yield
        except InterpError as error:
            self.problem(error, todo, command)


def plain(value: object) -> str:
    """Text from a file or an address as Markdown that shows it as it is, on one line.

    Every character with a meaning is escaped; addresses, which Markdown would turn into links by itself, are broken by
    an invisible joiner.
    """
    text = ADDRESS.sub(lambda found: f"{found.group()}{JOINER}", " ".join(str(value).split()))
    return "".join(f"\\{letter}" if letter in MEANING else letter for letter in text)


def parameters(query: Mapping[str, str]) -> dict[str, str]:
    """The query parameters as plain text, each cut to 200 characters and at most 40 of them."""
    return {name[:40]: value[:200] for name, value in list(query.items())[:40]}
