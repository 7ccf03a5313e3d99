"""What `interp probe --json` holds, and its JSON Schema."""

from typing import Literal

from pydantic import Field

from interp.schemas import Output, Part


class LensPoint(Part):
    """The lens at one checkpoint, over the positions that the task asks for."""

    step: int
    key: str = Field(description="of the stored analysis")
    probability: list[float] = Field(description="mean probability of the right next token, by depth")
    low: list[float] = Field(
        description="lower end of its 95 % interval over prompts, by depth: the mean of the ends of single positions, "
        "as wide as if all of them varied together"
    )
    high: list[float] = Field(description="upper ends, in the same way")
    first: list[float] = Field(description="share of prompts where it is the most probable, by depth")
    answered_from: str | None = Field(
        description="depth from which on it stays first for 90 %; null: not even the last"
    )


class LensSummary(Part):
    """The logit lens through training."""

    length: int
    n: int = Field(description="held-out sequences")
    seed: int
    depths: list[str]
    points: list[LensPoint]


class Explained(Part):
    """How much of the variance of embeddings a plane shows, along its two axes."""

    what: Literal["tokens", "positions"]
    n: int = Field(description="points")
    last: list[float] = Field(description="of the checkpoint it was fitted to")
    first: list[float] = Field(description="of the first checkpoint")


class EmbeddingSummary(Part):
    """Embeddings through training, in the principal plane of the last checkpoint."""

    key: str = Field(description="of the stored analysis")
    steps: list[int]
    fit: str
    explained: list[Explained]


class ProbeOutput(Output):
    """`interp probe RUN --json`."""

    kind: Literal["probe"] = "probe"
    run: str
    lens: LensSummary | None = Field(description="null: not asked for")
    embedding: EmbeddingSummary | None = Field(description="null: not asked for")


OUTPUTS: dict[str, type[Output]] = {"probe": ProbeOutput}
