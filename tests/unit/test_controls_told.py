"""Controls that are the circuit itself have no p in the terminal and on the page; the JSON keeps it."""

import pytest

from circuits.circuit_text import show_discovery
from circuits.discovery_result import ControlSummary, DiscoveryFile
from circuits.outputs import CircuitOutput
from circuits.report import circuit_tables
from tests.unit.small_circuits import circuit, discovery


def with_control(shared: float) -> DiscoveryFile:
    """A discovery whose one control holds this share of the circuit."""
    row = ControlSummary(
        name="same types", what="random unions", n=100, mean=0.97, largest=0.97, shared=shared, p_value=1.0,
        headline=False,
    )  # fmt: skip
    return discovery(circuit()).model_copy(update={"controls": [row]})


@pytest.mark.parametrize(("shared", "only_itself"), [(1.0, True), (0.75, False)])
def test_where_no_different_circuit_exists_a_dash_stands_for_p(capsys, monkeypatch, shared, only_itself):
    monkeypatch.setenv("COLUMNS", "300")
    found = with_control(shared)
    show_discovery(CircuitOutput(model="poly1", step=1, discovery=found, trajectory=None))
    table, words = [line for line in capsys.readouterr().out.splitlines() if "same types" in line]
    assert table.strip("\u2502 ").split("\u2502")[-1].strip() == ("\u2013" if only_itself else "1")
    (row,) = circuit_tables.controls(found).rows
    assert row[-1] == ("\u2013" if only_itself else "1.00")
    for said in (words, row[1]):
        assert ("no different circuit of these types exists" in said) is only_itself
    assert found.controls[0].p_value == 1.0
