"""Circuits as EAP-IG and MIB write them: names worked out by hand, out and in the same, nothing lost in silence."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from circuits.circuit_effects import EdgeEffect, EdgeEffects
from circuits.interchange.export import circuit_of_path, export_circuit
from circuits.interchange.mib import empty_graph, to_mib
from circuits.interchange.mib_json import circuit_of_mib, mib_json, read_mib_json, write_mib_json
from circuits.interchange.mib_pt import read_mib_pt, write_mib_pt
from interp.errors import CheckpointError, NotExpressible, StoreError
from tests.unit.small_circuits import circuit, placed, same, shape

ONE_LAYER = [
    "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>",
    "input->m0", "a0.h0->m0", "a0.h1->m0",
    "input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits",
]  # fmt: skip
PARALLEL = [
    "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>",
    "input->m0", "input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits",
]  # fmt: skip
CFG = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}


def test_edges_have_the_names_and_the_order_of_eap_ig():
    assert [name for name, *_ in empty_graph(CFG, "here").edges()] == ONE_LAYER
    assert [name for name, *_ in empty_graph({**CFG, "parallel_attn_mlp": True}, "here").edges()] == PARALLEL


def test_gpt2_small_has_the_number_of_edges_of_the_published_files():
    gpt2 = {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    graph = empty_graph(gpt2, "here")
    assert len(graph.edges()) == len({name for name, *_ in graph.edges()}) == int(graph.real.sum()) == 32_491


def test_rows_and_columns_stand_where_eap_ig_looks_for_them():
    graph, _ = to_mib(circuit(edges={"L0.H1->L1.H0.q": 1.5, "M0->L1.H1.v": -2.0, "L1.H0->M1": 3.0, "M1->logits": 4.0}))
    heads = 2
    rows = {"a0.h1": 1 + 1, "m0": 1 + heads, "a1.h0": 1 + (heads + 1), "m1": 1 + (heads + 1) + heads}
    columns = {"a1.h0<q>": 3 * heads + 1, "a1.h1<v>": 3 * heads + 1 + 2 * heads + 1, "m1": 2 * (3 * heads + 1) - 1}
    assert graph.scores[rows["a0.h1"], columns["a1.h0<q>"]] == 1.5
    assert graph.scores[rows["m0"], columns["a1.h1<v>"]] == -2.0
    assert graph.scores[rows["a1.h0"], columns["m1"]] == 3.0
    assert graph.scores[rows["m1"], -1] == 4.0
    assert int(graph.in_graph.sum()) == 4
    assert graph.sources == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert graph.destinations[:7] == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0"]


def test_the_json_holds_the_keys_that_eap_ig_asks_for():
    body = mib_json(circuit(edges={"embed->L0.H0.k": 0.5, "L0.H0->logits": 0.25}), [])
    assert body["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert body["nodes"] == {
        "input": {"in_graph": True},
        "a0.h0": {"in_graph": True},
        "a0.h1": {"in_graph": False},
        "m0": {"in_graph": False},
        "a1.h0": {"in_graph": False},
        "a1.h1": {"in_graph": False},
        "m1": {"in_graph": False},
        "logits": {"in_graph": True},
    }
    assert body["edges"]["input->a0.h0<k>"] == {"score": 0.5, "in_graph": True}
    assert body["edges"]["input->a0.h0<q>"] == {"score": 0.0, "in_graph": False}


SHAPES = {
    "sequential": shape(),
    "parallel": shape(parallel=True),
    "shared keys": shape(heads=6, kv=2),
    "one key head": shape(heads=3, kv=1),
    "attention only": shape(mlp=False),
    "first layer without MLP": shape().model_copy(update={"mlp": [False, True]}),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["json", "pt"])
def test_out_and_in_gives_the_same_circuit(name, kind, tmp_path):
    write, read = {"json": (write_mib_json, read_mib_json), "pt": (write_mib_pt, read_mib_pt)}[kind]
    one = circuit(SHAPES[name])
    for path in (tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"):
        write(path, one, [])
    back, notes = read(tmp_path / f"a.{kind}")
    assert notes == []
    assert same(one, back)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("name", ["sequential", "parallel", "shared keys"])
def test_edges_and_scores_survive_a_program_that_drops_our_record(name):
    one = circuit(SHAPES[name])
    body = {key: value for key, value in mib_json(one, []).items() if key != "interp"}
    back, notes = circuit_of_mib(json.loads(json.dumps(body)), "theirs.json")
    assert torch.equal(back.kept, one.kept)
    assert torch.allclose(back.scores, one.scores, rtol=2 * torch.finfo(torch.float32).eps * 3, atol=0)
    assert back.faithfulness is back.frequency is back.example is None
    assert (back.provenance.model, back.provenance.metric) == ("theirs.json", "unknown")
    assert "live" in notes[0]


def test_heads_that_share_keys_each_get_the_edge_with_an_equal_part_of_its_score():
    one = circuit(shape(heads=4, kv=2), {"embed->L1.KV1.k": 3.0, "L0.H0->L1.H2.q": 1.0})
    notes = []
    body = mib_json(one, notes)
    found = {name: edge["score"] for name, edge in body["edges"].items() if edge["in_graph"]}
    assert found == {"input->a1.h2<k>": 1.5, "input->a1.h3<k>": 1.5, "a0.h0->a1.h2<q>": 1.0}
    assert body["cfg"]["n_key_value_heads"] == 2
    assert any("equal part" in note for note in notes)
    body["edges"]["input->a1.h3<k>"]["in_graph"] = False
    with pytest.raises(StoreError, match=r"heads that share L1\.KV1\.k do not keep the same edges"):
        circuit_of_mib(body, "changed.json")


def test_a_changed_file_gives_the_changed_edges_without_the_numbers_measured_on_the_old_ones():
    one = circuit()
    body = mib_json(one, [])
    name = "a0.h0->logits"
    body["edges"][name] = {"score": 9.0, "in_graph": not body["edges"][name]["in_graph"]}
    back, notes = circuit_of_mib(body, "changed.json")
    place = one.graph.index("L0.H0->logits")
    assert bool(back.kept[place]) is not bool(one.kept[place])
    assert (back.n_kept - one.n_kept) ** 2 == 1
    assert float(back.scores[place]) == 9.0
    assert back.faithfulness is back.frequency is None
    assert "changed after the export" in notes[0]


def test_a_circuit_by_position_is_refused_or_pooled_on_request(tmp_path):
    one = placed({("embed->L0.H0.k", 2, 3): 1.0, ("embed->L0.H0.k", 1, 3): 0.5, ("L0.H0->logits", 3, 3): 2.0})
    with pytest.raises(NotExpressible, match="--pool"):
        export_circuit(one, "mib", tmp_path, "one", False, [])
    assert list(tmp_path.iterdir()) == []
    done = export_circuit(one, "mib", tmp_path, "one", True, [])
    assert any("positions were pooled" in note for note in done.notes)
    written = json.loads(done.files["mib"].read_text())
    assert written["edges"]["input->a0.h0<k>"] == {"score": 1.5, "in_graph": True}
    assert any("positions were pooled" in note for note in written["interp"]["notes"])
    back, _ = circuit_of_path(done.files["mib"])
    assert same(back, one.pooled)


def test_scores_are_called_rank_scores_and_exact_effects_travel_beside_them(tmp_path):
    effects = EdgeEffects(
        unit="logit_diff",
        n=32,
        n_prompts=32,
        measured=1,
        of=1,
        edges=[EdgeEffect(edge="embed->M0", value=7.5, low=7.0, high=8.0)],
    )
    one, notes = circuit(edges={"embed->M0": 2.0}, effects=effects), []
    body = mib_json(one, notes)
    assert body["edges"]["input->m0"]["score"] == 2.0, "readers rank by it"
    assert any("rank scores without a unit" in note and "1 more in size for kept edges" in note for note in notes)
    assert any("exact effects of kept edges" in note for note in notes) and body["interp"]["notes"] == notes
    assert body["interp"]["circuit"]["effects"]["edges"][0]["value"] == 7.5
    assert circuit_of_mib(json.loads(json.dumps(body)), "ours.json")[0].effects == effects
    foreign, more = circuit_of_mib(theirs(), "theirs.json")[0], []
    mib_json(foreign, more)
    assert not any("rank scores" in note for note in more), "what their scores are is not known"
    by_position = replace(placed({("embed->M0", 1, 1): 2.0}), effects=effects)
    done = export_circuit(by_position, "mib", tmp_path, "one", True, [])
    assert done.circuit.effects is None and any("effects of single places do not add up" in note for note in done.notes)


def test_layers_that_differ_have_no_place_in_the_form():
    with pytest.raises(NotExpressible, match="same number of heads"):
        to_mib(circuit(shape().model_copy(update={"heads": [2, 3], "kv_heads": [2, 3]})))


def theirs(**changes) -> dict:
    """A file of EAP-IG with two edges."""
    edges = {"input->a0.h1<v>": {"score": -0.5, "in_graph": True}, "a0.h1->logits": {"score": 1, "in_graph": True}}
    return {"cfg": CFG, "nodes": {"input": {"in_graph": True}}, "edges": edges} | changes


def test_a_foreign_file_may_leave_edges_out_and_need_not_score_them():
    back, notes = circuit_of_mib(theirs(), "theirs.json")
    assert set(back.edges()) == {"embed->L0.H1.v", "L0.H1->logits"}
    assert (back.n_live, back.shape.d_vocab) == (13, 0)
    unscored = theirs(edges={"input->m0": {"score": None, "in_graph": True}}, nodes={"input": True})
    back, notes = circuit_of_mib(unscored, "theirs.json")
    assert back.edges() == ["embed->M0"]
    assert "1 edges have no score and are given 0" in notes


def test_the_token_nan_is_a_missing_score(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs(edges={"input->m0": {"score": float("nan"), "in_graph": True}})))
    assert "NaN" in path.read_text()
    back, notes = read_mib_json(path)
    assert float(back.scores[back.graph.index("embed->M0")]) == 0.0
    assert any("no score" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cfg": {**CFG, "n_heads": "2"}}, "cfg.n_heads: expected int, found '2'"),
        ({"cfg": {**CFG, "n_layers": 10**9}}, "at most 6,000,000 pairs are handled"),
        ({"cfg": {**CFG, "n_layers": 100, "n_heads": 50}}, "100 layers of 50 heads"),
        ({"cfg": {**CFG, "n_heads": 0}}, "1 layers of 0 heads"),
        ({"cfg": {key: CFG[key] for key in ("n_layers", "n_heads", "d_model")}}, "cfg.parallel_attn_mlp"),
        ({"edges": [1]}, "edges: expected dict, found list"),
        ({"edges": {"m0->a0.h0<q>": {"score": 1.0, "in_graph": True}}}, "unknown edge 'm0->a0.h0<q>'"),
        ({"edges": {"input->m0": {"score": 1.0}}}, "edges.input->m0: expected an object with score and in_graph"),
        ({"edges": {"input->m0": {"score": "1", "in_graph": True}}}, "score: expected a number, found str"),
        ({"nodes": {"m0": {"in_graph": True, "neurons": [True, False]}}}, "keeps single neurons"),
        ({"cfg": {**CFG, "n_key_value_heads": 3}}, "does not divide 2 heads"),
        ({"interp": {"format": 2}}, "format 2, this program reads 1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_key(changes, says):
    with pytest.raises(StoreError) as error:
        circuit_of_mib(theirs(**changes), "theirs.json")
    assert str(error.value).startswith("theirs.json: ")
    assert says in str(error.value)


def test_scores_of_nodes_are_said_to_be_left_out():
    _, notes = circuit_of_mib(theirs(nodes={"m0": {"in_graph": True, "score": 0.25}}), "theirs.json")
    assert any("scores of nodes are left out" in note for note in notes)


LOAD = """
import json, sys, torch
d = torch.load(sys.argv[1], weights_only=True)
kinds = {key: list(value.shape) if hasattr(value, "shape") else type(value).__name__ for key, value in d.items()}
print(json.dumps(kinds))
print(d["edges_scores"].dtype, d["edges_in_graph"].dtype, d["nodes_in_graph"].dtype, float(d["edges_scores"][0, -1]))
"""


def test_the_pt_file_is_loaded_by_torch_without_running_code(tmp_path):
    write_mib_pt(tmp_path / "one.pt", circuit(edges={"embed->logits": 0.75}), [])
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "one.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys, kinds = done.stdout.splitlines()
    assert json.loads(keys) == {
        "cfg": "dict",
        "src_nodes": "list",
        "dst_nodes": "list",
        "edges_scores": [7, 15],
        "edges_in_graph": [7, 15],
        "nodes_in_graph": [7],
        "interp": "str",
    }
    assert kinds == "torch.float32 torch.bool torch.bool 0.75"


def test_pairs_that_are_no_edges_mean_nothing_in_a_pt_file(tmp_path):
    graph, _ = to_mib(circuit(edges={"L0.H0->logits": 1.0}))
    whole_row = graph.in_graph | (torch.arange(7) == 1)[:, None]  # as EAP-IG's circuits of nodes fill it
    body = {"cfg": graph.cfg, "src_nodes": graph.sources, "dst_nodes": graph.destinations}
    body |= {"edges_scores": graph.scores, "edges_in_graph": whole_row, "nodes_in_graph": graph.nodes_in_graph}
    torch.save(body, tmp_path / "theirs.pt")
    back, _ = read_mib_pt(tmp_path / "theirs.pt")
    assert back.n_kept == 9
    assert all(edge.startswith("L0.H0->") for edge in back.edges())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"src_nodes": ["input"]}, "src_nodes: not the nodes of its cfg"),
        ({"edges_scores": torch.zeros(2, 2)}, "edges_scores: expected a torch.float32 matrix of [7, 15]"),
        ({"edges_in_graph": torch.zeros(7, 15)}, "edges_in_graph: expected a torch.bool matrix"),
        ({"edges_scores": torch.full((7, 15), float("inf"))}, "infinite score"),
        ({"neurons_in_graph": torch.zeros(7, 8)}, "keeps single neurons"),
        ({"interp": "{"}, "interp: not valid JSON"),
    ],
)
def test_a_pt_file_that_does_not_fit_is_refused(changes, says, tmp_path):
    graph, _ = to_mib(circuit())
    body = {"cfg": graph.cfg, "src_nodes": graph.sources, "dst_nodes": graph.destinations}
    body |= {"edges_scores": graph.scores, "edges_in_graph": graph.in_graph, **changes}
    torch.save(body, tmp_path / "theirs.pt")
    with pytest.raises(StoreError) as error:
        read_mib_pt(tmp_path / "theirs.pt")
    assert says in str(error.value)


def test_a_pt_file_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path):
    marker, memory = tmp_path / "ran", io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", f"cos\nmkdir\n(V{marker}\ntR.".encode())
    (tmp_path / "hostile.pt").write_bytes(memory.getvalue())
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        circuit_of_path(tmp_path / "hostile.pt")
    assert not marker.exists()
