"""What the `--json` outputs of the circuits commands hold, and their JSON Schemas."""

from typing import Literal

from circuits.detectors.base import Detection, Emergence
from circuits.report.verify import VerifyResult
from interp.schemas import Output


class DetectOutput(Output):
    """`interp detect RUN --json`."""

    kind: Literal["detect"] = "detect"
    run: str
    detection: Detection
    emergence: Emergence | None


class ReportOutput(Output):
    """`interp report make RUN --json`."""

    kind: Literal["report"] = "report"
    run: str
    verdict: str
    claim: str
    content_hash: str
    files: dict[str, str]


class VerifyOutput(Output):
    """`interp report verify FILE --json`."""

    kind: Literal["verify"] = "verify"
    result: VerifyResult


class DemoOutput(Output):
    """`interp demo --json`."""

    kind: Literal["demo"] = "demo"
    run: str
    verdict: str
    claim: str
    accuracy: float
    cpu_seconds: dict[str, float]
    files: dict[str, str]


OUTPUTS: dict[str, type[Output]] = {
    "detect": DetectOutput,
    "report": ReportOutput,
    "verify": VerifyOutput,
    "demo": DemoOutput,
}
