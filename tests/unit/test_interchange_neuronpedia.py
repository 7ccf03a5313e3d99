"""Attribution graphs: valid for Neuronpedia's schema and circuit-tracer's stricter reader, and kind to the viewer."""

import json
from dataclasses import replace

import jsonschema
import pytest

from circuits.circuit import Circuit
from circuits.circuit_effects import EdgeEffect, EdgeEffects
from circuits.interchange.export import circuit_of_path
from circuits.interchange.neuronpedia import circuit_of_graph, neuronpedia_json, write_neuronpedia
from interp.errors import NotExpressible, StoreError
from tests.unit.small_circuits import circuit, example, placed, same, shape

TEXT, NUMBER, MAPPING = {"type": "string"}, {"type": "number"}, {"type": "object"}
# Schema 1.0.0 of Neuronpedia, as the tables of research/interchange.md give it.
METADATA = {
    "type": "object",
    "required": ["slug", "scan", "prompt_tokens", "prompt"],
    "properties": {"slug": TEXT, "scan": TEXT, "prompt": TEXT, "prompt_tokens": {"type": "array", "items": TEXT}}
    | {"node_threshold": NUMBER, "feature_details": MAPPING, "info": MAPPING}
    | {"generation_settings": MAPPING, "pruning_settings": MAPPING},
}
Q_PARAMS = {
    "type": "object",
    "properties": {"pinnedIds": {"type": "array", "items": TEXT}, "supernodes": {"type": "array"}}
    | {"linkType": TEXT, "clickedId": TEXT, "sg_pos": TEXT},
}
NODE = {
    "type": "object",
    "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
    "properties": {"node_id": TEXT, "feature": {"type": ["integer", "null"]}, "layer": {"type": ["string", "integer"]}}
    | {"ctx_idx": {"type": "integer"}, "feature_type": TEXT, "jsNodeId": TEXT, "clerp": TEXT}
    | {"influence": {"type": ["number", "null"]}, "activation": {"type": ["number", "null"]}},
}
LINK = {
    "type": "object",
    "required": ["source", "target", "weight"],
    "properties": {"source": TEXT, "target": TEXT, "weight": NUMBER},
}
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": METADATA,
        "qParams": Q_PARAMS,
        "nodes": {"type": "array", "items": NODE},
        "links": {"type": "array", "items": LINK},
    },
}
FLAT = {"embed->L0.H1.k": 1.0, "embed->L0.H1.v": 0.5, "L0.H1->M1": -2.0, "M1->logits": 3.0}
PLACED = {
    ("embed->L0.H0.k", 1, 3): 1.0,
    ("embed->L0.H0.v", 1, 3): 0.25,
    ("embed->L0.H0.q", 3, 3): 0.5,
    ("L0.H0->logits", 3, 3): 2.0,
}
CASES = {
    "without positions": lambda: circuit(edges=FLAT),
    "by position": lambda: placed(PLACED),
    "shared keys": lambda: circuit(shape(heads=4, kv=2)),
    "parallel": lambda: circuit(shape(parallel=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_graphs_are_valid_and_satisfy_the_stricter_reader_and_the_viewer(case):
    body = json.loads(json.dumps(neuronpedia_json(CASES[case](), [])))
    jsonschema.validate(body, SCHEMA)
    assert set(body["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    assert isinstance(body["metadata"]["transcoder_list"], list)
    nodes, ids = body["nodes"], [node["node_id"] for node in body["nodes"]]
    assert len(ids) == len(set(ids))
    assert len({(node["layer"], node["feature"], node["ctx_idx"]) for node in nodes}) == len(nodes)
    assert all(isinstance(node["feature"], int) and isinstance(node["layer"], str) for node in nodes)
    assert all(0 <= node["ctx_idx"] < len(body["metadata"]["prompt_tokens"]) for node in nodes)
    assert {end for link in body["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert len({(link["source"], link["target"]) for link in body["links"]}) == len(body["links"])
    for node in nodes:
        if node["feature_type"] == "logit":
            assert "(p=0.750)" in node["clerp"]
        assert "error" not in node["feature_type"]


def test_queries_keys_and_values_of_a_head_add_up_to_one_link():
    body = neuronpedia_json(circuit(edges=FLAT), [])
    last = 3
    links = {(link["source"], link["target"]): link["weight"] for link in body["links"]}
    assert links == {
        (f"E_3_{last}", f"0_1_{last}"): 1.5,
        (f"0_1_{last}", f"1_2_{last}"): -2.0,
        (f"1_2_{last}", f"3_3_{last}"): 3.0,
    }
    names = {node["node_id"]: (node["clerp"], node["layer"], node["jsNodeId"]) for node in body["nodes"]}
    assert names == {
        f"E_3_{last}": ("", "E", f"E_3-{last}"),
        f"0_1_{last}": ("L0.H1", "0", "0_1-0"),
        f"1_2_{last}": ("M1", "1", "1_2-0"),
        f"3_3_{last}": ('Output "3" (p=0.750)', "3", f"L_3-{last}"),
    }
    assert "their nodes stand at the last token" in body["metadata"]["info"]["description"]


def with_effects(one: Circuit, measured: dict[str, float]) -> Circuit:
    rows = [EdgeEffect(edge=name, value=value, low=value - 1, high=value + 1) for name, value in measured.items()]
    about = {"unit": "logit_diff", "n": 32, "n_prompts": 32, "measured": len(rows), "of": one.n_kept}
    return replace(one, effects=EdgeEffects(**about, edges=rows))


def test_weights_are_exact_effects_where_they_are_measured_and_the_notes_say_which(tmp_path):
    costs = {"embed->L0.H1.k": 4.0, "embed->L0.H1.v": 0.25, "L0.H1->M1": -1.0, "M1->logits": 8.0}
    for measured, weights, said in (
        (costs, [4.25, -1.0, 8.0], "in units of the metric (logit_diff), on 32 held-out sequences"),
        ({"M1->logits": 8.0}, [0.0, 0.0, 8.0], "only 1 of 4 edges are measured, the others have the weight 0"),
    ):
        one, notes = with_effects(circuit(edges=FLAT), measured), []
        links = {(link["source"], link["target"]): link["weight"] for link in neuronpedia_json(one, notes)["links"]}
        assert links == dict(zip((("E_3_3", "0_1_3"), ("0_1_3", "1_2_3"), ("1_2_3", "3_3_3")), weights, strict=True))
        assert any(note.startswith("weights are exact effects") and said in note for note in notes)
        assert not any("scores are of the metric" in note or "rank score" in note for note in notes)
        write_neuronpedia(tmp_path / "a.json", one, [])
        assert same(circuit_of_path(tmp_path / "a.json")[0], one)
    notes = []
    neuronpedia_json(circuit(edges=FLAT), notes)
    assert any(note.startswith("weights are rank scores without a unit") for note in notes)


def test_a_circuit_by_position_has_its_nodes_at_their_positions():
    body = neuronpedia_json(placed(PLACED), [])
    links = {(link["source"], link["target"]): link["weight"] for link in body["links"]}
    assert links == {("E_3_1", "0_0_3"): 1.25, ("E_3_3", "0_0_3"): 0.5, ("0_0_3", "3_3_3"): 2.0}
    assert body["metadata"]["prompt_tokens"] == ["BoS", "3", "EoI", "3"]
    assert body["metadata"]["prompt"] == "BoS 3 EoI 3"


def test_edges_into_shared_keys_are_divided_among_the_heads():
    body = neuronpedia_json(circuit(shape(heads=4, kv=2), {"embed->L1.KV1.v": 3.0}), [])
    assert {(link["target"], link["weight"]) for link in body["links"]} == {("1_2_3", 1.5), ("1_3_3", 1.5)}


@pytest.mark.parametrize("case", CASES)
def test_our_own_graphs_give_the_circuit_back(case, tmp_path):
    one = CASES[case]()
    for name in ("a.json", "b.json"):
        write_neuronpedia(tmp_path / name, one, [])
    back, _ = circuit_of_path(tmp_path / "a.json")
    assert same(one, back)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_changed_links_and_foreign_graphs_are_refused():
    body = json.loads(json.dumps(neuronpedia_json(circuit(edges=FLAT), [])))
    body["links"][0]["weight"] = 9.0
    with pytest.raises(StoreError, match="links were changed after the export"):
        circuit_of_graph(body, "graph.json")
    del body["metadata"]["interp"]
    with pytest.raises(StoreError, match="features are no heads"):
        circuit_of_graph(body, "graph.json")


def test_a_circuit_without_an_example_is_refused():
    with pytest.raises(NotExpressible, match="no example prompt"):
        neuronpedia_json(circuit(edges=FLAT, example=None), [])


def test_words_with_spaces_of_their_own_are_joined_without_more():
    spaced = example().model_copy(update={"names": ["The", " cat", '"', " sat"]})
    body = neuronpedia_json(circuit(edges=FLAT, example=spaced), [])
    assert body["metadata"]["prompt"] == 'The cat" sat'
