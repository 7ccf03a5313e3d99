"""The four generators: prompts as in their papers, the same for a seed, and clear refusals for other tokenizers."""

from collections import Counter

import pytest
import torch

from interp.errors import UnknownName, UsageError
from interp.pairs.docstring import docstring
from interp.pairs.greater_than import greater_than
from interp.pairs.induction import induction
from interp.pairs.ioi import TEMPLATES, ioi
from interp.rng import generator
from tests.unit.small_tokenizers import byte_level, english, marked_spaces, wrapped


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that knows all words of the generators, with a BOS token."""
    return wrapped(english())


@pytest.fixture(scope="module")
def digits():
    """One that writes digits one by one."""
    return english(digits=1)


def stream(seed: int = 0) -> torch.Generator:
    return generator(seed, "generators")


def at(pairs, prompt: int, span: str, run: str = "clean") -> str:
    """The text of a span in one run."""
    start, stop = pairs.spans[prompt][span]
    return "".join(pairs.name(token) for token in getattr(pairs, run)[prompt, start:stop].tolist())


def answer(pairs, prompt: int) -> list[str]:
    return [pairs.name(token) for token in pairs.answers[prompt, 0].tolist() if token >= 0]


def wrong(pairs, prompt: int) -> list[str]:
    return [pairs.name(token) for token in pairs.wrong[prompt, 0].tolist() if token >= 0]


GENERATORS = {
    "ioi": lambda tokenizer, n, seed, **options: ioi(tokenizer, n, stream(seed), **options),
    "greater_than": lambda tokenizer, n, seed, **options: greater_than(tokenizer, n, stream(seed), **options),
    "docstring": lambda tokenizer, n, seed, **options: docstring(tokenizer, n, stream(seed), **options),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_pairs(tokenizer, name):
    first, again, other = (GENERATORS[name](tokenizer, 12, seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.source.settings["seed"] == stream(0).initial_seed()


@pytest.mark.parametrize("name", GENERATORS)
def test_bos_is_added_on_request_and_moves_nothing_else(tokenizer, name):
    plain, moved = (GENERATORS[name](tokenizer, 6, 0, bos=bos) for bos in (False, True))
    assert (plain.source.bos, moved.source.bos) == ("none", "added")
    for prompt in range(6):
        assert moved.tokens(prompt) == ["<s>", *plain.tokens(prompt)]
        for span, (start, stop) in plain.spans[prompt].items():
            assert moved.spans[prompt][span] == (start + 1, stop + 1)
    assert torch.equal(moved.places, plain.places + 1) and torch.equal(moved.answers, plain.answers)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_tokenizer_of_another_model_and_no_prompts_are_refused(tokenizer, name):
    with pytest.raises(UsageError, match="the model has only 0 to 99"):
        GENERATORS[name](tokenizer, 2, 0, d_vocab=100)
    with pytest.raises(UsageError, match="n=0 prompts asked for"):
        GENERATORS[name](tokenizer, 0, 0)
    assert GENERATORS[name](tokenizer, 2, 0, d_vocab=2000).d_vocab == 2000


@pytest.mark.parametrize("name", GENERATORS)
def test_the_last_token_is_read_and_its_answer_is_right(tokenizer, name):
    pairs = GENERATORS[name](tokenizer, 20, 3)
    assert torch.equal(pairs.places[:, 0], pairs.lengths - 1)
    assert all(pairs.spans[prompt]["END"] == (int(p), int(p) + 1) for prompt, p in enumerate(pairs.position[:, 0]))


def test_ioi_prompts_name_the_subject_twice_and_the_object_once(tokenizer):
    pairs = ioi(tokenizer, 60, stream())
    for prompt in range(60):
        io, s1, s2 = (at(pairs, prompt, span) for span in ("IO", "S1", "S2"))
        assert s1 == s2 != io
        assert answer(pairs, prompt) == [io] and wrong(pairs, prompt) == [s1]
        names = [token for token in pairs.tokens(prompt) if token in (io, s1)]
        assert names == ([io, s1, s1] if pairs.group[prompt] == "ABBA" else [s1, io, s1])
        assert pairs.spans[prompt]["S1+1"][0] == pairs.spans[prompt]["S1"][0] + 1
    assert Counter(pairs.group) == {"ABBA": 30, "BABA": 30}


def changed(pairs, prompt: int) -> list[int]:
    """Columns in which the two runs differ."""
    return (pairs.clean[prompt] != pairs.corrupted[prompt]).nonzero().flatten().tolist()


def test_ioi_corruptions_change_the_mentions_they_say(tokenizer):
    for corruption in ("flip", "other", "abc"):
        pairs = ioi(tokenizer, 40, stream(), corruption=corruption)
        for prompt in range(40):
            mentions = {span: pairs.spans[prompt][span][0] for span in ("IO", "S1", "S2")}
            new = {span: at(pairs, prompt, span, "corrupted") for span in mentions}
            old = {at(pairs, prompt, "IO"), at(pairs, prompt, "S1")}
            if corruption == "abc":
                assert changed(pairs, prompt) == sorted(mentions.values())
                assert len(set(new.values())) == 3 and not old & set(new.values())
            else:
                assert changed(pairs, prompt) == [mentions["S2"]]
                assert (new["S2"] == at(pairs, prompt, "IO")) == (corruption == "flip")
                assert (new["S2"] in old) == (corruption == "flip")


def test_ioi_prompts_differ_in_length_unless_asked_otherwise(tokenizer):
    assert len(ioi(tokenizer, 60, stream()).lengths.unique()) > 1
    equal = ioi(tokenizer, 60, stream(), equal_length=True)
    assert len(equal.lengths.unique()) == 1 and bool(equal.mask.all())


def test_ioi_of_one_order_is_aligned_by_its_spans(tokenizer):
    pairs = ioi(tokenizer, 30, stream())
    names = pairs.of_group("ABBA").position_labels().names
    assert names == ("start..IO", "IO", "IO..S1", "S1", "S1+1", "S1+1..S2", "S2", "S2..END", "END")
    with pytest.raises(UsageError, match="for example by keeping one group"):
        pairs.position_labels()
    one = ioi(tokenizer, 30, stream(), templates=TEMPLATES[:1]).of_group("BABA")
    assert one.aligned() and one.position_labels().one_to_one


def test_ioi_refuses_a_tokenizer_with_too_few_names():
    texts = [template.replace("{", " ").replace("}", "") for template in TEMPLATES]
    few = byte_level(["Mary", "John", "Tom", "Kate", "store", "drink"], texts)
    message = (
        r"\d+ of \d+ names are one token for this tokenizer, at least 5 .* "
        r"\(not one token: ' Aaron', .*\); give others with names="
    )
    with pytest.raises(UsageError, match=message):
        ioi(few, 4, stream(), names=("Aaron", "Adam", "Alan", "Alex", "Alice", "Amy", "Mary"))
    assert len(ioi(english(), 4, stream(), names=("Mary", "John", "Tom", "Kate", "Paul"))) == 4


def test_ioi_refuses_unknown_templates_and_corruptions(tokenizer):
    with pytest.raises(
        UsageError, match=r"template 'Then\{A\} gave to': must have \{A\}, \{B\}, \{S\} once each, and may"
    ):
        ioi(tokenizer, 2, stream(), templates=("Then{A} gave to",))
    with pytest.raises(UsageError, match="templates: give at least one"):
        ioi(tokenizer, 2, stream(), templates=())
    with pytest.raises(UnknownName, match="unknown corruption 'flop'; did you mean 'flip'"):
        ioi(tokenizer, 2, stream(), corruption="flop")


def test_greater_than_answers_are_all_years_above_and_none_below(tokenizer):
    pairs = greater_than(tokenizer, 40, stream())
    assert pairs.aligned()
    for prompt in range(40):
        year = int(at(pairs, prompt, "YY"))
        assert 2 <= year <= 98
        assert answer(pairs, prompt) == [f"{each:02d}" for each in range(year + 1, 100)]
        assert wrong(pairs, prompt) == [f"{each:02d}" for each in range(year + 1)]
        assert (
            at(pairs, prompt, "XX") == at(pairs, prompt, "END")
            and pairs.group[prompt] == at(pairs, prompt, "XX").strip()
        )


def test_greater_than_is_corrupted_by_the_year_01(tokenizer):
    pairs = greater_than(tokenizer, 10, stream())
    for prompt in range(10):
        assert changed(pairs, prompt) == [pairs.spans[prompt]["YY"][0]]
        assert at(pairs, prompt, "YY", "corrupted") == "01"
    text = "".join(pairs.tokens(0))
    assert text.startswith("The ") and " lasted from the year 1" in text and text[-2:] == pairs.group[0]


def test_greater_than_refuses_a_tokenizer_of_single_digits(digits):
    with pytest.raises(UsageError, match=r"0 of 7 centuries are one token for this tokenizer, at least 1 are needed"):
        greater_than(digits, 2, stream())


def test_greater_than_refuses_years_that_are_not_two_tokens():
    halves = english(digits=1)
    halves.add_tokens([" 17"])
    message = "years of two tokens, century and two digits; after 17 this tokenizer writes only 0 of 100"
    with pytest.raises(UsageError, match=message):
        greater_than(halves, 2, stream())


def test_greater_than_refuses_a_template_that_does_not_end_in_the_century(tokenizer):
    with pytest.raises(UsageError, match=r"must end with \{ZZ\}, which the answer completes"):
        greater_than(tokenizer, 2, stream(), template="The{NOUN} from{XX}{YY} to{ZZ} or so")


def test_docstring_asks_for_the_third_parameter(tokenizer):
    pairs = docstring(tokenizer, 20, stream())
    assert pairs.aligned()
    for prompt in range(20):
        a, b, c, d = (at(pairs, prompt, f"{letter}_def") for letter in "ABCD")
        assert answer(pairs, prompt) == [c] and sorted(wrong(pairs, prompt)) == sorted([a, b, d])
        assert (at(pairs, prompt, "A_doc"), at(pairs, prompt, "B_doc")) == (a, b)
        assert len({a, b, c, d}) == 4 and pairs.tokens(prompt)[-1] == "param"


def test_docstring_corruptions_change_the_names_they_say(tokenizer):
    parts = {"definition": ("A_def", "B_def", "C_def", "D_def"), "docstring": ("A_doc", "B_doc")}
    parts["both"] = parts["definition"] + parts["docstring"]
    for corruption, spans in parts.items():
        pairs = docstring(tokenizer, 10, stream(), corruption=corruption)
        for prompt in range(10):
            assert changed(pairs, prompt) == [pairs.spans[prompt][span][0] for span in spans]
            if corruption != "docstring":
                assert answer(pairs, prompt)[0] not in pairs.tokens(prompt, "corrupted")


def test_docstring_refuses_too_few_words_and_unknown_corruptions(tokenizer):
    with pytest.raises(UsageError, match="2 of 3 words are one token for this tokenizer, at least 18 are needed"):
        docstring(tokenizer, 2, stream(), words=("file", "year", "zyxw"))
    with pytest.raises(UnknownName, match="unknown corruption 'body'"):
        docstring(tokenizer, 2, stream(), corruption="body")


def test_induction_repeats_in_the_clean_run_only():
    pairs = induction(200, 10, 30, stream(), bos=7, n_read=4)
    first, second = pairs.clean[:, 1:11], pairs.clean[:, 11:]
    assert torch.equal(second, first[:, :9]) and bool((pairs.clean[:, 0] == 7).all())
    assert torch.equal(pairs.corrupted[:, 11:], second)
    assert torch.equal(pairs.answers[..., 0], first[:, -4:])
    assert torch.equal(pairs.position, torch.arange(16, 20).expand(30, -1))
    for clean, corrupted in zip(pairs.clean.tolist(), pairs.corrupted.tolist(), strict=True):
        assert len(set(corrupted)) == len(corrupted) and 7 not in clean[1:]
        assert clean[10] not in corrupted  # the last answer does not occur
    assert torch.equal(pairs.wrong[..., 0], pairs.corrupted[:, 7:11])


@pytest.mark.parametrize("d_vocab", [25, 50_000])
def test_induction_with_one_read_names_what_the_head_must_find(d_vocab):
    pairs = induction(d_vocab, 6, 20, stream(), exclude=(0, 1))
    assert pairs.aligned() and int(pairs.clean.min()) > 1
    spans = pairs.spans[0]
    assert torch.equal(pairs.clean[:, spans["PREVIOUS"][0]], pairs.clean[:, spans["END"][0]])
    assert torch.equal(pairs.clean[:, spans["NEXT"][0]], pairs.answers[:, 0, 0])
    assert pairs.fingerprint() == induction(d_vocab, 6, 20, stream(), exclude=(0, 1)).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_vocab": 11, "length": 6}, "induction of length 6 needs 12 different tokens, the vocabulary has 11"),
        ({"d_vocab": 12, "length": 6, "bos": 0}, "the vocabulary has 11 to draw from; use a shorter length"),
        ({"d_vocab": 99, "length": 1}, "length=1, n_read=1: expected a length of at least 2"),
        (
            {"d_vocab": 99, "length": 4, "n_read": 4},
            "length=4, n_read=4: expected a length of at least 2 and 1 to length",
        ),
        ({"d_vocab": 99, "length": 4, "n": 0}, "n=0 prompts asked for; ask for at least 1"),
    ],
)
def test_induction_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        induction(**{"n": 2, **arguments}, generator=stream())


def test_ioi_reads_the_same_with_a_tokenizer_that_marks_spaces(tokenizer):
    marked, plain = ioi(marked_spaces(), 30, stream()), ioi(tokenizer, 30, stream())
    for prompt in range(30):
        assert "".join(marked.tokens(prompt)).strip() == "".join(plain.tokens(prompt))
    assert marked.spans == plain.spans and torch.equal(marked.position, plain.position)
