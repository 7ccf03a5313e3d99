"""What the Lens view shows of stored analyses: panels, cells and prompts in words. No Streamlit, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.report.canvas.heat import HeatPanel
from interp.run import Run
from probes.stored import StoredLens, stored_lens

NOT_ASKED = "the task does not ask for the next token there"


@dataclass(frozen=True)
class LensFrames:
    """The lens at every stored checkpoint of one probe set."""

    found: tuple[StoredLens, ...]
    arrays: tuple[dict[str, np.ndarray], ...]

    @property
    def steps(self) -> list[int]:
        """Checkpoints."""
        return [one.step for one in self.found]

    @property
    def about(self) -> Any:
        """Depths, positions, which of them are scored, vocabulary, prompts."""
        return self.found[0].about

    @property
    def depths(self) -> list[str]:
        """From the last depth down to the embedding, as they are drawn."""
        return [str(name) for name in reversed(self.about["depths"])]

    @property
    def chance(self) -> float:
        """Probability of a uniform guess."""
        return 1 / max(1, len(self.about["vocabulary"]))

    def part(self, name: str) -> np.ndarray:
        """[frame depth position], the last depth first."""
        return np.stack([arrays[name][::-1] for arrays in self.arrays])


def lens_frames(run: Run) -> LensFrames | None:
    """Every stored checkpoint of the newest probe set; None where there is none.

    Raises:
        StoreError: if one of them is damaged; the message names the file.
    """
    found = stored_lens(run)
    same = [one for one in found if one.about["depths"] == found[-1].about["depths"]]
    return LensFrames(tuple(same), tuple(one.arrays(run) for one in same)) if same else None


def lens_panel(frames: LensFrames) -> HeatPanel:
    """Probability of the right token above that of a uniform guess; hatched where the task does not ask."""
    scored = np.array(frames.about["scored"], dtype=bool)
    shape = frames.part("probability").shape
    columns = [str(name) for name in frames.about["positions"]]
    return HeatPanel(
        title="stream after",
        rows=frames.depths,
        columns=columns,
        values=frames.part("probability") - frames.chance,
        low=frames.part("low") - frames.chance,
        high=frames.part("high") - frames.chance,
        tested=np.broadcast_to(scored, shape),
        row_name="depth",
    )


def cell_words(frames: LensFrames, frame: int, row: int, column: int) -> str:
    """One cell in a sentence, with the probability itself."""
    about, arrays = frames.about, frames.arrays[frame]
    depth = len(frames.depths) - 1 - row
    where = f"{frames.depths[row]} at {about['positions'][column]}, checkpoint {frames.steps[frame]:,}"
    values = {name: float(arrays[name][depth, column]) for name in ("probability", "low", "high", "rank", "first")}
    said = "{probability:.3f} [{low:.3f}, {high:.3f}]; mean rank {rank:.1f}; first in {first:.0%}".format(**values)
    asked = "" if about["scored"][column] else f" ({NOT_ASKED})"
    return f"{where}{asked}: probability of the right token {said} of {about['n']} prompts."


def example_rows(frames: LensFrames, frame: int, example: int) -> list[dict[str, Any]]:
    """One row per depth and position of one prompt: the most probable token there, and the right one."""
    about, arrays = frames.about, frames.arrays[frame]
    tokens, names = [str(name) for name in about["examples"][example]], about["vocabulary"]
    rows = []
    for depth, stream in enumerate(about["depths"]):
        for place, position in enumerate(about["positions"]):
            top = int(arrays["top"][example, depth, place])
            rank = int(arrays["answer_rank"][example, depth, place])
            rows.append(
                {
                    "depth": str(stream),
                    "place": place,
                    "position": f"{position}: {tokens[place]}",
                    "top": str(names[top]) if 0 <= top < len(names) else "?",
                    "probability": float(arrays["top_probability"][example, depth, place]),
                    "right": tokens[place + 1],
                    "of the right one": float(arrays["answer_probability"][example, depth, place]),
                    "rank": rank,
                    "said": mark(bool(about["scored"][place]), rank == 1),
                }
            )
    return rows


def mark(asked: bool, right: bool) -> str:
    """Whether the most probable token is the right one, where the task asks."""
    return "not asked" if not asked else "right" if right else "wrong"


def example_names(frames: LensFrames) -> Sequence[str]:
    """The prompts that are kept whole."""
    return [" ".join(map(str, tokens)) for tokens in frames.about["examples"]]
