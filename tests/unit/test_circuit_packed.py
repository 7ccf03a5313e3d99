"""Circuits of many edges are stored whole in a small file, read back equal, and refused where they cannot be."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch

from circuits import through_training
from circuits.circuit import Circuit, CircuitFile
from circuits.circuit_packed import BYTES_EACH, MOST_EDGES, MOST_LISTED, Edges, packed, unpacked
from circuits.interchange.export import circuit_of_path
from circuits.interchange.own import write_circuit
from circuits.report.circuit_drawn import drawn
from circuits.report.circuit_page import render_circuit_page
from circuits.report.circuit_svg import description
from circuits.stored import MAX_BYTES, discovery_payload, newest_circuit
from circuits.subject import Prompts
from circuits.through_training import Request, discover_at
from interp.arrays import encode_arrays
from interp.config import RunConfig, validated
from interp.errors import StoreError, UsageError
from interp.rng import generator
from interp.run import Store
from tests.unit.runs_with_circuits import LAST, run_with_circuit
from tests.unit.small_circuits import circuit, discovery, same, shape

WIDE = shape(n_layers=6, heads=8)  # 55 senders
N_POS = 17


def large(n_pos: int = N_POS, frequency: bool = True) -> Circuit:
    """A circuit by position of random live edges, a tenth of them kept."""
    of, stream = WIDE, generator(0, "large circuit")
    exists = circuit(of).graph.exists
    causal = torch.ones(n_pos, n_pos, dtype=torch.bool).triu()
    live = exists[:, :, None, None] & causal & (torch.rand((*exists.shape, 1, 1), generator=stream) < 0.9)
    scores = torch.randn(live.shape, generator=stream) * live
    kept = live & (torch.rand(live.shape, generator=stream) < 0.1)
    again = (torch.randint(6, live.shape, generator=stream) / 5 * live).float() if frequency else None
    columns = tuple(f"p{place}" for place in range(n_pos))
    return circuit(of, live=live, kept=kept, scores=scores, frequency=again, columns=columns)


@pytest.fixture(scope="module")
def one() -> Circuit:
    made = large()
    assert made.n_live > 60_000
    return made


def equal(left: Circuit, right: Circuit) -> bool:
    """Whether every entry is the same."""
    pairs = [(getattr(left, name), getattr(right, name)) for name in ("live", "kept", "scores")]
    again = left.frequency is right.frequency or torch.equal(left.frequency, right.frequency)
    return again and all(torch.equal(*pair) for pair in pairs) and left.columns == right.columns


@pytest.mark.parametrize("frequency", [True, False])
def test_a_circuit_of_many_edges_comes_back_equal(frequency):
    made = large(frequency=frequency)
    file = made.to_file()
    assert (file.format, file.n_live, file.n_kept) == (2, made.n_live, made.n_kept)
    again = CircuitFile.model_validate_json(file.model_dump_json())
    assert equal(again.circuit(), made) and again.circuit().edges() == made.edges()


def test_a_run_stores_it_and_a_folder_too(one, tmp_path):
    run = Store(tmp_path).create("poly1", RunConfig(task="parity"))
    found = discovery(one)
    run.write_analysis("circuit-a", discovery_payload(5, "ab" * 32, {"by_position": True}, found))
    assert equal(newest_circuit(run).discovery.circuit.circuit(), one)
    size = (run.path / "analysis" / "circuit-a.json").stat().st_size
    assert size < 10 * one.n_live + 100 * MOST_LISTED, size
    write_circuit(tmp_path / "circuit.json", one)
    assert equal(circuit_of_path(tmp_path / "circuit.json")[0], one)


def test_small_circuits_list_every_live_edge_as_before():
    few = circuit(shape())
    body = few.to_file().model_dump(mode="json")
    assert (body["format"], body["packed"], len(body["edges"])) == (1, None, few.n_live)
    del body["packed"]
    assert same(validated(CircuitFile, body, "a file of an older version").circuit(), few)


def test_kept_edges_are_listed_by_name_with_their_numbers(one):
    file = one.to_file()
    assert len(file.edges) == min(one.n_kept, MOST_LISTED) and all(edge.kept for edge in file.edges)
    first = file.edges[0]
    place = (*one.graph.index(first.edge), *first.place)
    assert first.score == float(one.scores[place]) and first.frequency == float(one.frequency[place])
    frame = one.to_frame()
    assert len(frame) == one.n_live and int(frame.kept.sum()) == one.n_kept
    largest = (one.scores.abs() * one.kept).argmax()
    assert frame.edge[0] == one.name(tuple(int(axis) for axis in torch.unravel_index(largest, one.kept.shape)))


def test_where_more_are_kept_than_listed_the_strongest_are_and_it_is_said(one, monkeypatch):
    monkeypatch.setattr("circuits.circuit.MOST_LISTED", 500)
    file = one.to_file()
    weakest = min(abs(edge.score) for edge in file.edges)
    assert len(file.edges) == 500 and int((one.scores[one.kept].abs() > weakest).sum()) == 499
    assert equal(file.circuit(), one)
    said = f"{one.n_kept:,} of {one.n_live:,} live edges, of which the 500 strongest are drawn"
    assert said in description(drawn(file))
    found = discovery(one)
    assert f"Only the 500 largest of {one.n_kept:,} are counted here." in render_circuit_page(found, "poly", 1)


def test_equal_edges_give_equal_text(one):
    edges = Edges(one.live, one.kept, one.scores, one.frequency)
    assert packed(edges) == packed(edges)


def test_a_score_that_is_no_number_is_refused_when_it_is_written(one):
    scores = one.scores.clone()
    scores[tuple(one.live.nonzero()[0])] = float("nan")
    with pytest.raises(StoreError, match="score of a circuit: not every value is finite"):
        packed(Edges(one.live, one.kept, scores, None))


def text_of(**arrays) -> str:
    return base64.b64encode(zlib.compress(encode_arrays(arrays, "x"))).decode()


GAP, KEPT, SCORE = np.array([0, 2], np.uint32), np.array([128], np.uint8), np.ones(2, np.float32)
DAMAGED = {
    "no base64": ("\u00e9", "not readable"),
    "not compressed": (base64.b64encode(b"plain").decode(), "not readable"),
    "no arrays": (base64.b64encode(zlib.compress(b"plain")).decode(), "not a readable .npz"),
    "cut": (text_of(gap=GAP, kept=KEPT, score=SCORE)[:-40], "holds more than n_live|not readable"),
    "a bomb": (base64.b64encode(zlib.compress(bytes(1 << 28))).decode(), "holds more than n_live 2 edges"),
    "fewer": (text_of(gap=GAP[:1], kept=KEPT, score=SCORE), "gap: expected 2 of uint32"),
    "wide numbers": (text_of(gap=GAP, kept=KEPT, score=SCORE.astype(np.float64)), "score: expected 2 of float32"),
    "missing": (text_of(gap=GAP, kept=KEPT), "score: expected 2 of float32"),
    "no number": (text_of(gap=GAP, kept=KEPT, score=np.array([1, np.inf], np.float32)), "not finite"),
    "outside": (text_of(gap=np.array([0, 4], np.uint32), kept=KEPT, score=SCORE), r"outside the mask of \[2, 2\]"),
    "twice": (text_of(gap=np.array([1, 0], np.uint32), kept=KEPT, score=SCORE), r"outside the mask of \[2, 2\]"),
    "unknown": (text_of(gap=GAP, kept=KEPT, score=SCORE, more=SCORE), "unknown arrays"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_text_that_is_damaged_or_hostile_is_refused(case):
    text, said = DAMAGED[case]
    with pytest.raises(StoreError, match=said):
        unpacked(text, (2, 2), 2, "file")


def test_a_number_of_edges_that_does_not_fit_is_refused(one):
    body = json.loads(one.to_file().model_dump_json())
    for name, value, said in (
        ("n_live", one.n_live - 1, "expected"),
        ("n_live", 10**12, "expected 0 to"),
        ("n_kept", 3, "n_kept 3 is not the number of kept edges"),
    ):
        with pytest.raises(StoreError, match=said):
            validated(CircuitFile, {**body, name: value}, "file").circuit()


@pytest.mark.parametrize(
    ("by_position", "limit", "said"),
    [
        (True, "MOST_EDGES", r"live edges, at most 10; leave --positions out, or give shorter prompts"),
        (False, "MOST_EDGES", r"live edges, at most 10; it has too many heads"),
        (True, "MOST_ENTRIES", r"the circuit could not be stored: .* entries, at most 10; leave --positions out"),
    ],
)
def test_what_could_not_be_stored_is_refused_before_the_search(by_position, limit, said, tmp_path, monkeypatch):
    run = run_with_circuit(tmp_path)
    monkeypatch.setattr(f"circuits.circuit_packed.{limit}", 10)
    monkeypatch.setattr(through_training, "discover", lambda *given: pytest.fail("it was searched"))
    request = Request(str(tmp_path), run.name, LAST, Prompts(3, 16), "resample", by_position, {})
    with pytest.raises(UsageError, match=said):
        discover_at(request)


def test_a_problem_as_large_as_a_file_has_room_for_is_storable():
    """No entry compresses, and the text has four characters for three bytes; the rest of a file is small."""
    assert MAX_BYTES > MOST_EDGES * BYTES_EACH * 4 / 3 + (4 << 20)
