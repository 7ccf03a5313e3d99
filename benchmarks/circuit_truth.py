"""How well every search method, and the whole pipeline, finds circuits that are known: hand-set, compiled, trained.

    python -m benchmarks.circuit_truth [--only hand_set compiled trained]

Edges are scored by head with ties counted half (`circuits.edge_scoring`), over live edges of which it is known whether
they are true. Writes benchmarks/results/circuit_truth.json after every case; cases already there that belong to the
present families are not run again unless --again is given.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from interp.provenance import code_version
from interp.rng import generator
from tests.truth.circuit_families import FAMILIES, INTERACTING, PLAIN
from tests.truth.circuit_measuring import ONE_WAY, SINGLE, Known, hand_set
from tests.truth.compiled_circuits import ALGORITHMS
from tests.truth.hand_circuits import FORMS
from tests.truth.trained_circuits import index, trained

RESULTS = Path(__file__).parent / "results" / "circuit_truth.json"
PARTS = ("hand_set", "compiled", "trained")
RANKED = (*ONE_WAY, "exact", "eap", "eap_ig", "pipeline")
METHODS = {"hand_set": RANKED, "compiled": RANKED, "trained": (*ONE_WAY, *SINGLE, "pipeline")}
BARS = {"exact": 0.99, "eap_ig": 0.97, "pipeline": 0.95}
DRAWS = 2000


def compiled(algorithm: str, form: str) -> Known:
    """One of the compiled algorithms in a form."""
    planted = ALGORITHMS[algorithm](0)
    return Known(f"{algorithm}, {form}", planted.decoder(FORMS[form]), planted.pairs(), planted.true, planted.open)


def cases() -> Iterator[tuple[str, str, Callable[[], Known]]]:
    """(part, name, how to build it) of every case."""
    for family in FAMILIES:
        for form in FORMS:
            yield "hand_set", f"{family}, {form}", lambda family=family, form=form: hand_set(family, form)
    for algorithm in ALGORITHMS:
        for form in ("plain", "all"):
            yield "compiled", f"{algorithm}, {form}", lambda algorithm=algorithm, form=form: compiled(algorithm, form)
    for name in index():
        yield "trained", name, lambda name=name: trained(name)


def identity(case: Known) -> dict:
    """What a case is: prompts, edges, and the size of its weights, which rounding does not change."""
    decoder = case.decoder
    tensors = [decoder.W_E, decoder.W_U, *(layer.attn.W_O for layer in decoder.layers)]
    return {
        "pairs": case.pairs.fingerprint(),
        "true": sorted(case.true),
        "open": sorted(case.open),
        "weights": round(float(sum(x.abs().sum() for x in tensors)), 2),
    }


def same(one: dict, two: dict) -> bool:
    """Whether two identities are of the same case, up to rounding on another machine."""
    close = abs(one["weights"] - two["weights"]) <= 1e-3 * abs(two["weights"])
    return close and all(one[key] == two[key] for key in ("pairs", "true", "open"))


def measured(case: Known, methods: tuple[str, ...]) -> dict:
    """All scores of one case."""
    scores = {name: case.score(name).model_dump() for name in methods}
    counts = {key: scores["pipeline"][key] for key in ("n", "n_true")}
    kept = {name: {key: round(one[key], 4) for key in ("auroc", "auprc", "precision")} for name, one in scores.items()}
    return {
        "identity": identity(case),
        **counts,
        "scores": kept,
        "signed_exact": round(case.score("exact", signed=True).auroc, 4),
        "roles_missing": [list(role) for role in sorted(set(case.roles) - case.named_roles())],
    }


def interval(groups: list[list[float]], seed: int = 0) -> dict:
    """Mean over groups of the mean over models, with a 95 % bootstrap interval that draws models within groups."""
    stream, n = generator(seed, "bootstrap"), sum(map(len, groups))
    means = torch.zeros(DRAWS)
    for one in groups:
        drawn = torch.randint(len(one), (DRAWS, len(one)), generator=stream)
        means += torch.tensor(one)[drawn].mean(1) / len(groups)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    value = statistics.fmean(statistics.fmean(one) for one in groups)
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def families(rows: dict[str, dict]) -> dict[str, dict]:
    """AUROC by family and method over its models, and over all families."""
    by_family: dict[str, list[dict]] = {}
    for name, row in rows.items():
        by_family.setdefault(name.rpartition("-s")[0], []).append(row["scores"])
    found = {
        family: {method: interval([[one[method]["auroc"] for one in some]]) for method in METHODS["trained"]}
        for family, some in sorted(by_family.items())
    }
    every = {
        method: interval([[one[method]["auroc"] for one in some] for some in by_family.values()])
        for method in METHODS["trained"]
    }
    return found | {"all families": every}


def bars(result: dict) -> list[dict]:
    """What has to hold, the figure measured, and whether it does."""
    hand, found = result["hand_set"], []

    def lowest(rows: dict, method: str, names) -> tuple[float, str]:
        return min((row["scores"][method]["auroc"], key) for key, row in rows.items() if key.split(", ")[0] in names)

    def add(claim: str, bar: float, value: float, where: str) -> None:
        found.append({"claim": claim, "bar": bar, "measured": value, "where": where, "holds": value >= bar})

    for method in ("exact", "eap_ig"):
        add(f"additive and serial families: {method}", BARS[method], *lowest(hand, method, PLAIN))
        add(f"compiled algorithms: {method}", BARS[method], *lowest(result["compiled"], method, ALGORITHMS))
    add("interacting families: pipeline", BARS["pipeline"], *lowest(hand, "pipeline", INTERACTING))
    missing = [f"{key} {row['roles_missing']}" for key, row in hand.items() if row["roles_missing"]]
    named = sum(not row["roles_missing"] for row in hand.values()) / len(hand)
    add("backups, relays and negative heads are named", 1.0, named, "; ".join(missing) or "all")
    for family, row in result["families"].items():
        if family != "all families":
            best = max(SINGLE, key=lambda method: row[method]["value"])
            add(
                f"{family}: pipeline against the best single method", row[best]["value"], row["pipeline"]["value"], best
            )
    return found


def table(result: dict) -> str:
    """AUROC of trained families by method as a Markdown table; intervals for the pipeline and over all families."""
    shown = ("exact", "eap", "eap_ig", "acdc", "masks", "pipeline")
    lines = ["| family | models | " + " | ".join(shown) + " |", "|---" * (2 + len(shown)) + "|"]
    for family, row in result["families"].items():
        wide = ("pipeline",) if family != "all families" else shown
        cells = [
            f"{row[m]['value']:.3f} [{row[m]['low']:.3f}, {row[m]['high']:.3f}]"
            if m in wide
            else f"{row[m]['value']:.3f}"
            for m in shown
        ]
        lines.append(f"| {family} | {row['pipeline']['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hand_table(result: dict) -> str:
    """Lowest AUROC over the forms of each hand-set family and compiled algorithm as a Markdown table."""
    shown = RANKED
    lines = ["| family | " + " | ".join(shown) + " |", "|---" * (1 + len(shown)) + "|"]
    for part in ("hand_set", "compiled"):
        for family in dict.fromkeys(key.split(", ")[0] for key in result[part]):
            rows = [row["scores"] for key, row in result[part].items() if key.split(", ")[0] == family]
            cells = [f"{min(row[method]['auroc'] for row in rows):.3f}" for method in shown]
            lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, write after every case, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--again", action="store_true", help="run all cases again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    result: dict = {"format": 1, "code_version": code_version(), **{part: {} for part in PARTS}}
    for part, name, build in cases():
        before, case = old.get(part, {}).get(name), build()
        if (
            before is not None
            and same(before["identity"], identity(case))
            and not (arguments.again and part in arguments.only)
        ):
            result[part][name] = before
        elif part in arguments.only:
            result[part][name] = measured(case, METHODS[part])
            print(f"{part}: {name}: pipeline {result[part][name]['scores']['pipeline']['auroc']:.3f}", flush=True)
            so_far = {key: old.get(key, {}) | result[key] for key in PARTS}
            arguments.out.write_text(json.dumps(result | so_far, indent=1) + "\n")
    if all(result[part] for part in PARTS):
        result["families"] = families(result["trained"])
        result["bars"] = bars(result)
        print(hand_table(result), table(result), sep="\n\n")
        for one in result["bars"]:
            print(
                "holds" if one["holds"] else "FALLS SHORT",
                one["claim"],
                one["measured"],
                "bar",
                one["bar"],
                one["where"],
            )
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
