"""Chunks of one shape as one CUDA graph: the first runs as it is, the second is captured, and all others are replayed.

A graph replays GPU work at the addresses that it was captured with, and no Python runs. So whatever differs between
chunks of one shape must be read from memory that stays (here: which prompts they are), and whatever the host decides
while it sends the work must depend on the shape alone. `Tape` keeps those decisions, since taking them waits for the
GPU, which a capture forbids. Source: PyTorch documentation, "CUDA Graphs", whole-network capture.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.engine.products import Products

LEAST = 4  # chunks of one shape from which on a capture can pay: one to warm up, one to capture, the others to gain


class Graph(Protocol):
    """Work that is sent once and replayed."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run the work as it is, on the stream of the capture."""

    def capture(self, work: Callable[[], None]) -> None:
        """Take down what the work sends, without running it."""

    def replay(self) -> None:
        """Run what was taken down, on the memory that it was taken down with."""


class CudaGraph:
    """The graph of a CUDA device."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.graph = device, torch.cuda.Stream(device), torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run the work on a stream of its own, between what was sent before and what will be sent after."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> None:
        """Capture on the same stream; intermediate tensors live in a memory pool of the graph."""
        with torch.cuda.device(self.device), torch.cuda.graph(self.graph, stream=self.stream):
            work()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self.graph.replay()


@dataclass
class Tape:
    """Decisions of the host in the order in which they are taken: written down in a first pass, read in a second."""

    decided: list[Any] = field(default_factory=list)
    at: int | None = None  # the next one to be read; None while writing

    def once(self, decide: Callable[[], Any]) -> Any:
        """The decision, taken now or read back."""
        if self.at is None:
            self.decided.append(decide())
            return self.decided[-1]
        self.at += 1
        return self.decided[self.at - 1]

    def rewind(self) -> None:
        """Read from the first one on."""
        self.at = 0


@dataclass
class Shape:
    """Chunks of one shape.

    Attributes:
        prompts: the static input, overwritten before each replay.
        sent: the captured work, kept because the graph reads the tensors that it refers to.
        spent: operations and launches of one chunk, once it is captured.
    """

    prompts: Int[Tensor, "prompt"]
    graph: Graph
    tape: Tape = field(default_factory=Tape)
    spent: tuple[int, int] | None = None
    sent: Callable[[], None] | None = None


class Replays:
    """Runs the chunks of a call, replaying those whose shape occurs often enough."""

    def __init__(self, mul: Products, keys: Sequence[Hashable], graph: Callable[[], Graph] | None, why_not: str = ""):
        self.mul, self.new_graph, self.why_not = mul, graph, why_not
        often = {key for key, count in Counter(keys).items() if count >= LEAST}
        self.often = set() if graph is None else often
        if graph is not None and not often:
            self.why_not = f"fewer than {LEAST} chunks of one shape"
        self.shapes: dict[Hashable, Shape] = {}
        self.total, self.replayed = len(keys), 0

    @property
    def on(self) -> bool:
        """Whether any chunk will be replayed."""
        return bool(self.often)

    def run(self, key: Hashable, prompts: Int[Tensor, "prompt"], work: Callable[[Tensor], None]) -> None:
        """Run `work(prompts)`, or replay what it sent for other prompts.

        Args:
            key: equal for chunks between which nothing differs but the prompts.
        """
        if key not in self.often:
            work(prompts)
            return
        shape = self.shapes.get(key)
        if shape is None:
            shape = self.shapes[key] = Shape(prompts.clone(), self.new_graph())
            self._taped(shape, lambda: shape.graph.warm_up(lambda: work(shape.prompts)))
            if self.mul.fell_back:
                self._give_up("an operation ran as its torch reference, which waits for the GPU")
            return
        shape.prompts.copy_(prompts)
        if shape.spent is not None:
            self.mul.flops, self.mul.launches = (
                done + more for done, more in zip((self.mul.flops, self.mul.launches), shape.spent, strict=True)
            )
        elif not self._captured(shape, work):
            work(prompts)
            return
        shape.graph.replay()
        self.replayed += 1

    def _taped(self, shape: Shape, send: Callable[[], None]) -> None:
        self.mul.tape = shape.tape
        try:
            send()
        finally:
            self.mul.tape = None

    def _captured(self, shape: Shape, work: Callable[[Tensor], None]) -> bool:
        """Capture one chunk; if that is impossible, no further chunk is tried."""
        before = self.mul.flops, self.mul.launches
        shape.tape.rewind()
        shape.sent = lambda: work(shape.prompts)
        try:
            self._taped(shape, lambda: shape.graph.capture(shape.sent))
        except RuntimeError as error:
            self.mul.flops, self.mul.launches = before
            self._give_up(f"the capture failed: {str(error).splitlines()[0]}")
            return False
        shape.spent = self.mul.flops - before[0], self.mul.launches - before[1]
        return True

    def _give_up(self, reason: str) -> None:
        self.often, self.why_not = set(), reason

    def __str__(self) -> str:
        if not self.replayed:
            return f"no graph: {self.why_not}"
        plural = "" if len(self.shapes) == 1 else "s"
        cut = f"; then {self.why_not}" if self.why_not else ""
        return f"{len(self.shapes)} graph{plural}, replayed for {self.replayed} of {self.total} chunks{cut}"


def why_no_graph(device: torch.device, metric: Any) -> str:
    """Why a call on this device with this metric is not captured; empty where it can be."""
    if device.type != "cuda":
        return f"tensors are on {device.type}"
    if not hasattr(metric, "directions"):
        return f"{type(metric).__name__} looks at values on the host"
    return ""
