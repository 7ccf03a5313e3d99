"""Prompt pairs as JSON lines: one pair per line, as text or as token ids.

The keys of a line; `clean`, `corrupted` and `answers` are needed, any other key is refused:

- `clean`, `corrupted`: text, or a list of token ids. Both must have the same number of tokens. A BOS token is added to
  neither, unless `bos` asks for it; places below count without it.
- `answers`: what may rightly follow: a text, a token id, or a list of them, each one token exactly as written (so most
  often with a leading space). With several positions: a list of such lists, one for each.
- `wrong`: what the answers are compared with, likewise; may be left out.
- `position`: the place whose next-token prediction is read, or a list of places; negative ones count from the end.
  Default -1, the last token.
- `spans`: name to tokens of the clean prompt: `[start, stop]` in tokens, `{"chars": [start, stop]}` in characters, or
  `{"text": "Mary", "occurrence": 2}`; a plain text stands for one that occurs once.
- `group`: any text, such as the template. `split`: "score", "choose" or "evaluate". `unit`: text or number; prompts
  that share it are one sequence. Default: prompts with the same clean tokens are, and two that are each other's
  corrupted one.

A first line with the key `pairs` (its value is the format number, 1) is a header, written by `write_jsonl`: `d_vocab`,
`names` (token names by id), `padding` and `source`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.files import read_bytes, replace
from interp.jsonfile import parsed
from interp.pairs.alignment import Span
from interp.pairs.base import PARTS, Pairs, Source
from interp.pairs.rows import Padding, Row, refuse_unequal, stack, unequal
from interp.pairs.text import tokens_of_chars
from interp.pairs.tokenizers import Bos, Encoded, TextTokenizer, fits, text_tokenizer

FORMAT = 1
MAX_FILE, MAX_LINE = 256 << 20, 1 << 20
KEYS = ("clean", "corrupted", "answers", "wrong", "position", "spans", "group", "split", "unit")
NEEDED = ("clean", "corrupted", "answers")
FIELD = re.compile(r'"(\w+)"\s*:')
EXPECTED = 'expected one JSON object to a line, such as {"clean": "a b", "corrupted": "a c", "answers": " d"}'
HEADER = {"pairs": int, "d_vocab": int, "names": dict, "padding": str, "source": dict}


def read_jsonl(
    path: Path | str,
    tokenizer: Any = None,
    *,
    d_vocab: int | None = None,
    bos: Bos = False,
    padding: Padding | None = None,
    drop_unequal: bool = False,
) -> Pairs:
    """Pairs from a file of JSON lines; see the top of this file for its keys.

    Args:
        tokenizer: of the `tokenizers` or `transformers` library; not needed where everything is token ids.
        d_vocab: token ids of the model; None: as many as the tokenizer, or the header of the file, says.
        bos: put a BOS token before each prompt: True for the tokenizer's own, or the token itself.
        padding: side on which shorter prompts are filled up; None: right, or as the header says.
        drop_unequal: leave out pairs whose prompts differ in length; their number is kept in the source.

    Raises:
        UsageError: naming file, line and key, also where a line is not JSON.
        StoreError: if the file cannot be read, or a line is too long or nested too deeply.
    """
    path = Path(path)
    data = read_bytes(path.resolve(), MAX_FILE)
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    values = [(f"{path}:{number}", _object(line, f"{path}:{number}")) for number, line in lines]
    header = values.pop(0)[1] if values and "pairs" in values[0][1] else {}
    _check_header(header, f"{path}:1")
    text = _tokenizer(tokenizer, d_vocab)
    size = d_vocab or header.get("d_vocab") or (text.d_vocab if text else None)
    if size is None:
        raise UsageError(f"{path}: without a tokenizer d_vocab, the number of token ids of the model, must be given")
    if not values:
        raise UsageError(f"{path}: holds no prompt pairs")
    rows = [_row(value, where, text) for where, value in values]
    dropped = sum(map(unequal, rows))
    if not drop_unequal:
        for row in rows:
            refuse_unequal(row)
    elif dropped == len(rows):
        raise UsageError(f"{path}: in all {dropped} pairs the prompts differ in length; none is left")
    first = _bos(text, bos, path)
    written = header.get("source", {})
    names = {int(token): name for token, name in header.get("names", {}).items()}
    return stack(
        [row for row in rows if not unequal(row)],
        Source(
            kind="jsonl",
            file=str(path),
            sha256=hashlib.sha256(data).hexdigest(),
            tokenizer=text.fingerprint if text else written.get("tokenizer", ""),
            bos=written.get("bos", "none") if first is None else "added",
            settings=_settings(written, dropped),
        ),
        size,
        name=text.name if text else lambda token: names.get(token, f"[{token}]"),
        bos=first,
        padding=padding or header.get("padding", "right"),
    )


def write_jsonl(pairs: Pairs, path: Path | str) -> None:
    """Write pairs as token ids with a header, so that `read_jsonl` needs no tokenizer.

    Columns that are padding in every prompt are not kept.

    Raises:
        StoreFull: if there is no room; an old file stays.
        StoreError: for any other refusal.
    """
    left = bool((pairs.starts > 0).any())
    names = {str(token): name for token, name in pairs.names.items()}
    head = {"pairs": FORMAT, "d_vocab": pairs.d_vocab, "names": names, "padding": "left" if left else "right"}
    lines = [{**head, "source": asdict(pairs.source)}]
    for row, (start, length) in enumerate(zip(pairs.starts.tolist(), pairs.lengths.tolist(), strict=True)):
        real = slice(start, start + length)
        line: dict[str, Any] = {key: getattr(pairs, key)[row, real].tolist() for key in ("clean", "corrupted")}
        for key in ("answers", "wrong"):
            line[key] = [[token for token in each if token >= 0] for each in getattr(pairs, key)[row].tolist()]
        line["position"] = (pairs.position[row] - start).tolist()
        line["spans"] = {name: [a - start, b - start] for name, (a, b) in pairs.spans[row].items()}
        line |= {"group": pairs.group[row], "unit": int(pairs.unit[row])}
        lines.append(line | ({"split": pairs.part[row]} if pairs.part[row] else {}))
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    replace(Path(path), text.encode())


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parsed(line, where, limit=MAX_FILE if b'"pairs"' in line[:20] else MAX_LINE)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {_malformed(line, error)}; {EXPECTED}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is a {type(value).__name__}; {EXPECTED}")
    return value


def _malformed(line: bytes, error: Exception) -> str:
    """What is no JSON in a line, at which column and in which field."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error.reason} at byte {error.start + 1})"
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({str(error)[:80]})"
    fields = [key for key in FIELD.findall(error.doc[: error.pos]) if key in KEYS]
    at = f", in or after the field {fields[-1]!r}" if fields else ""
    found = error.doc[error.pos : error.pos + 20]
    there = f"found {found!r}" if found else "where the line ends"
    return f"not valid JSON at column {error.pos + 1}{at}: {error.msg}, {there}"


def _check_header(header: Mapping[str, Any], where: str) -> None:
    if not header:
        return
    if header["pairs"] != FORMAT:
        raise UsageError(
            f"{where}: format {header['pairs']!r}, this version reads {FORMAT}; a newer version may read it"
        )
    for key, value in header.items():
        if key not in HEADER or not isinstance(value, HEADER[key]):
            raise UsageError(f"{where}: header key {key!r} is not one of {', '.join(HEADER)}, or has a wrong value")
    names, source = header.get("names", {}), header.get("source", {})
    if not all(token.isascii() and token.isdigit() and isinstance(name, str) for token, name in names.items()):
        raise UsageError(f"{where}: header key 'names': expected token ids as keys and texts as values")
    if header.get("padding", "right") not in ("left", "right"):
        raise UsageError(f"{where}: header key 'padding': expected 'left' or 'right', got {header['padding']!r}")
    if not all(isinstance(value, dict if key == "settings" else str) for key, value in source.items()):
        raise UsageError(f"{where}: header key 'source': expected texts, and an object as settings")


def _settings(written: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """What the file said of its origin, and how many pairs were left out."""
    origin = written.get("settings", {}).get("origin", written)
    return {**({"origin": origin} if origin else {}), **({"dropped_unequal": dropped} if dropped else {})}


def _bos(text: TextTokenizer | None, bos: Bos, path: Path) -> int | None:
    """Id of the token to put first."""
    if bos is not False and text is None:
        raise UsageError(f"{path}: a BOS token to put first needs a tokenizer; write its id into the prompts instead")
    return None if text is None else text.bos_id(bos)


def _tokenizer(tokenizer: Any, d_vocab: int | None) -> TextTokenizer | None:
    if tokenizer is None:
        return None
    return text_tokenizer(tokenizer) if d_vocab is None else fits(tokenizer, d_vocab)


def _require_tokenizer(text: TextTokenizer | None, where: str) -> TextTokenizer:
    if text is None:
        raise UsageError(f"{where} is text, which needs a tokenizer (the model has no tokenizer.json); give token ids")
    return text


def _row(value: dict[str, Any], where: str, text: TextTokenizer | None) -> Row:
    """One line as a row.

    Raises:
        UsageError: naming the key.
    """
    for key in value:
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(KEYS)}")
    for key in NEEDED:
        if key not in value:
            raise UsageError(f"{where}: key {key!r} is missing; a line needs {', '.join(NEEDED)}")
    clean, corrupted = (_prompt(value[key], f"{where}: {key}", text) for key in ("clean", "corrupted"))
    places = value.get("position", -1)
    listed = places if isinstance(places, list) else [places]
    if not listed or not all(type(place) is int for place in listed):
        raise UsageError(f"{where}: position {places!r}: expected a whole number or a list of them")
    before = value["clean"] if isinstance(value["clean"], str) and listed == [-1] else ""
    sets = {
        key: _sets(value.get(key, [[]] * len(listed)), f"{where}: {key}", len(listed), text, before)
        for key in ("answers", "wrong")
    }
    spans = value.get("spans", {})
    if not isinstance(spans, dict):
        raise UsageError(f"{where}: spans: expected an object of name to span")
    labels = {key: value.get(key, "") for key in ("group", "split")}
    if not all(isinstance(label, str) for label in labels.values()) or labels["split"] not in (*PARTS, ""):
        raise UsageError(f"{where}: group and split: expected texts, split one of {', '.join(PARTS)}; got {labels}")
    unit = value.get("unit")
    if unit is not None and type(unit) not in (int, str):
        raise UsageError(f"{where}: unit {unit!r}: expected a text or a whole number")
    return Row(
        where=where,
        clean=clean.ids,
        corrupted=corrupted.ids,
        places=tuple(listed),
        **sets,
        spans={name: _span(each, f"{where}: span {name}", value["clean"], clean) for name, each in spans.items()},
        group=labels["group"],
        part=labels["split"],
        unit=None if unit is None else str(unit),
    )


def _prompt(value: Any, where: str, text: TextTokenizer | None) -> Encoded:
    """Token ids of a prompt; those given as ids have no characters."""
    if isinstance(value, str):
        known = _require_tokenizer(text, where)
        try:
            return known.encode(value)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    if isinstance(value, list) and all(type(token) is int for token in value):
        return Encoded(tuple(value), ())
    raise UsageError(f"{where}: {value!r:.60}: expected a text or a list of token ids")


def _sets(value: Any, where: str, n_read: int, text: TextTokenizer | None, before: str) -> tuple[tuple[int, ...], ...]:
    """One set of token ids for each read position."""
    nested = isinstance(value, list) and any(isinstance(each, list) for each in value)
    if not nested and n_read > 1:
        raise UsageError(f"{where}: {n_read} positions are read; give a list of {n_read} lists")
    sets = value if nested else [value]
    return tuple(
        tuple(_token(token, where, text, before) for token in (each if isinstance(each, list) else [each]))
        for each in sets
    )


def _token(value: Any, where: str, text: TextTokenizer | None, before: str) -> int:
    if type(value) is int:
        return value
    if not isinstance(value, str):
        raise UsageError(f"{where}: {value!r}: expected a text or a token id")
    return _require_tokenizer(text, where).require_one(value, f"{where}:", before)


def _span(value: Any, where: str, prompt: Any, encoded: Encoded) -> Span:
    """(start, stop) in tokens of a span in any of its forms."""
    if _is_range(value):
        return value[0], value[1]
    if isinstance(value, str):
        value = {"text": value}
    known = isinstance(value, dict) and (set(value) == {"chars"} or "text" in value)
    if not known or set(value) - {"chars", "text", "occurrence"}:
        raise UsageError(
            f'{where}: {value!r}: expected [start, stop], {{"chars": [start, stop]}}, {{"text": ..., "occurrence": n}} '
            "or a text"
        )
    if not isinstance(prompt, str):
        raise UsageError(f"{where}: the prompt is given as token ids; give the span as [start, stop] in tokens")
    chars = value["chars"] if "chars" in value else _found(value, where, prompt)
    if not _is_range(chars) or not 0 <= chars[0] < chars[1] <= len(prompt):
        raise UsageError(f"{where}: characters {chars!r}: expected [start, stop] within 0 to {len(prompt)}")
    return tokens_of_chars(encoded, prompt, (chars[0], chars[1]), where)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)


def _found(value: dict[str, Any], where: str, prompt: str) -> list[int]:
    """Characters of the asked occurrence of a text."""
    sought, wanted = value["text"], value.get("occurrence")
    if not isinstance(sought, str) or not sought or (wanted is not None and (type(wanted) is not int or wanted < 1)):
        raise UsageError(f"{where}: {value!r}: expected a text that is not empty, and an occurrence from 1")
    starts = [start for start in range(len(prompt)) if prompt.startswith(sought, start)]
    if not starts:
        raise UsageError(f"{where}: {sought!r} does not occur in the clean prompt")
    if wanted is None and len(starts) > 1:
        raise UsageError(f'{where}: {sought!r} occurs {len(starts)} times; say which with "occurrence"')
    if (wanted or 1) > len(starts):
        raise UsageError(f"{where}: {sought!r} occurs {len(starts)} times, occurrence {wanted} was asked for")
    start = starts[(wanted or 1) - 1]
    return [start, start + len(sought)]
