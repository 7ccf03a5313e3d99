"""Every detector that the registry lists says what it claims, how it decides and where it fails."""

import importlib
import inspect

import pytest

from circuits.detectors.base import Detection, HeadDetector
from interp.registry import load, names, origin

MUST_SAY = ("claim", "statistic", "null", "threshold", "causal check", "known failure")


@pytest.fixture(scope="module", params=names("detector"))
def name(request):
    """Each listed detector in turn."""
    return request.param


def test_detectors_are_listed_by_file_name():
    heads = {"copying", "duplicate_token", "induction", "previous_token"}
    assert {"iteration_head", *heads} <= set(names("detector"))


def test_detector_has_a_name_a_claim_and_a_scan(name):
    detector = load("detector", name)
    assert detector.name == name
    assert detector.claim.strip()
    if isinstance(detector, HeadDetector):
        assert detector.verdict and detector.statistic and detector.rate
        scans = (detector.scores, detector.rates, detector.contrast)
        assert all(list(inspect.signature(scan).parameters) == ["view", "probe"] for scan in scans)
        assert list(inspect.signature(detector.checks).parameters) == ["setting", "heads"]
        return
    parameters = list(inspect.signature(detector.detect).parameters)
    assert parameters[:2] == ["model", "task"]
    returned = inspect.signature(detector.detect).return_annotation
    assert returned in (Detection, "Detection")


def test_detector_documentation_says_how_it_decides(name):
    detector = load("detector", name)
    module = importlib.import_module(f"circuits.detectors.{name}") if origin("detector", name).endswith(".py") else None
    words = " ".join(text.lower() for text in (inspect.getdoc(module), inspect.getdoc(type(detector))) if text)
    assert not [term for term in MUST_SAY if term not in words]
