"""The emergence view: n of all checks, columns named for what they hold, and the interval of the statistic."""

from circuits.detectors.base import Interval
from tests.unit.test_emergence import READ, detection, interchange

KNOWN = Interval(value=0.9, low=0.88, high=0.92, n=48, method="t")
OVER = "8 held-out sequences of each of the lengths 4, 6"


def test_the_header_has_the_range_of_n_and_tables_name_what_they_hold(view, normal_store):
    run = normal_store.run("tiny")
    edit = interchange(0.5, True, "knock-out").model_copy(update={"family": "knock-out"})
    edit = edit.model_copy(update={"effect": edit.effect.model_copy(update={"n": 423})})
    found = detection([READ, interchange(0.6, True), edit])
    rows = [row.model_copy(update={"observed_interval": KNOWN, "over": OVER}) for row in found.null]
    step = run.checkpoints()[-1].step
    found = found.model_copy(update={"null": rows, "run": "tiny", "step": step})
    for path in (run.path / "analysis").glob("iteration_head-*"):
        path.unlink()
    run.write_analysis("iteration_head-ff", {"detection": found.model_dump(mode="json")})
    app = view(normal_store, "emergence", run="tiny", step=step)
    assert not app.exception
    (line,) = [one.value.replace("\\", "") for one in app.caption if "pair family" in one.value]
    assert "n: 10 to 423, by check and checkpoint" in line, "not that of the last check alone"
    statistic, checks = (frame.value for frame in app.dataframe)
    assert list(checks["pair family or ablation"]) == ["input", "input", "knock-out"]
    assert list(statistic.loc[0, ["low", "high", "n"]]) == [0.88, 0.92, 48]
    assert any(OVER in one.value for one in app.caption)
