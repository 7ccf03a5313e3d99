"""Prompt pairs from the CSV files of MIB and EAP-IG: ioi, greater-than, fact-retrieval and hypernymy.

The task is told by the columns, of which `clean` and `corrupted` are common to all:

- ioi: `correct_idx`, `incorrect_idx`; a second corruption in `corrupted_hard`.
- greater-than: `correct_idx` (`label` in one file), the two-digit year itself, not a token id.
- fact-retrieval: `country_idx`, `corrupted_country_idx`.
- hypernymy: `answers_idx`, `corrupted_answers_idx`, written as Python lists; read as literals, never run.

Token ids in these files belong to one tokenizer, that of GPT-2 in most; with another they are meaningless. The
original code puts a BOS token first: give `bos` to compare with its numbers. Source: EAP-IG `dataset.py`, `utils.py`.
"""

import ast
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.files import read_bytes
from interp.pairs.base import Pairs, Source
from interp.pairs.rows import Padding, Row, refuse_unequal, stack, unequal
from interp.pairs.tokenizers import Bos, TextTokenizer, fits, text_tokenizer

MAX_FILE = 256 << 20
COLUMNS = {
    "ioi": ("correct_idx", "incorrect_idx"),
    "fact-retrieval": ("country_idx", "corrupted_country_idx"),
    "hypernymy": ("answers_idx", "corrupted_answers_idx"),
    "greater-than": ("correct_idx",),
}


def read_mib_csv(
    path: Path | str,
    tokenizer: Any,
    *,
    corrupted: str = "corrupted",
    d_vocab: int | None = None,
    bos: Bos = False,
    padding: Padding = "right",
    drop_unequal: bool = False,
) -> Pairs:
    """Pairs of one CSV file; the task is the group, and what is read is the last token.

    Args:
        tokenizer: of the `tokenizers` or `transformers` library, the one that the file's token ids belong to.
        corrupted: column of the corrupted prompt, such as "corrupted_hard".
        d_vocab: token ids of the model, which the tokenizer must fit.
        bos: put a BOS token before each prompt: True for the tokenizer's own, or the token itself.
        drop_unequal: leave out pairs whose prompts differ in length; their number is kept in the source.

    Raises:
        UsageError: naming file, line and column.
        StoreError: if the file cannot be read.
    """
    path = Path(path)
    data = read_bytes(path.resolve(), MAX_FILE)
    text = text_tokenizer(tokenizer) if d_vocab is None else fits(tokenizer, d_vocab)
    records = _records(data, path)
    task = _task(records[0][1], corrupted, path)
    rows = [_row(record, where, task, corrupted, text) for where, record in records]
    dropped = sum(map(unequal, rows))
    if not drop_unequal:
        for row in rows:
            refuse_unequal(row)
    elif dropped == len(rows):
        raise UsageError(f"{path}: in all {dropped} pairs the prompts differ in length; none is left")
    first = text.bos_id(bos)
    source = Source(
        kind="mib-csv",
        file=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        tokenizer=text.fingerprint,
        bos="none" if first is None else "added",
        settings={"task": task, "corrupted": corrupted, **({"dropped_unequal": dropped} if dropped else {})},
    )
    kept = [row for row in rows if not unequal(row)]
    return stack(kept, source, d_vocab or text.d_vocab, name=text.name, bos=first, padding=padding)


def _records(data: bytes, path: Path) -> list[tuple[str, dict[str, str]]]:
    """Lines of the file by column, each with its file and line number."""
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        found = []
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise UsageError(
                    f"{where}: has another number of fields than the {len(reader.fieldnames or ())} columns"
                )
            found.append((where, record))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None
    if not found:
        raise UsageError(f"{path}: holds no prompt pairs")
    return found


def _task(record: Mapping[str, str], corrupted: str, path: Path) -> str:
    """The task that has these columns.

    Raises:
        UsageError: if none has.
    """
    columns = {"correct_idx" if name == "label" else name for name in record}
    if {"clean", corrupted} <= columns:
        for task, needed in COLUMNS.items():
            if set(needed) <= columns:
                return task
    known = "; ".join(f"{task}: {', '.join(needed)}" for task, needed in COLUMNS.items())
    raise UsageError(
        f"{path}: columns {', '.join(name or '(unnamed)' for name in record)}: expected clean, {corrupted} and those "
        f"of a task ({known})"
    )


def _row(record: Mapping[str, str], where: str, task: str, corrupted: str, text: TextTokenizer) -> Row:
    """One line as a row."""
    prompts = {}
    for column in ("clean", corrupted):
        try:
            prompts[column] = text.encode(record[column]).ids
        except UsageError as error:
            raise UsageError(f"{where}: {column}: {error}") from None
    if task == "greater-than":
        column = "correct_idx" if "correct_idx" in record else "label"
        sets = _years(record[column], f"{where}: {column}", record["clean"], text)
    else:
        sets = [_ids(record[column], f"{where}: {column}") for column in COLUMNS[task]]
    answers, wrong = sets
    n = len(prompts["clean"])
    return Row(
        where=where,
        clean=prompts["clean"],
        corrupted=prompts[corrupted],
        places=(-1,),
        answers=(tuple(answers),),
        wrong=(tuple(wrong),),
        spans={"END": (n - 1, n)} if n else {},
        group=task,
    )


def _ids(value: str, where: str) -> list[int]:
    """Token ids of a cell: a whole number or a list of them.

    Raises:
        UsageError: for anything else; nothing in the cell is run.
    """
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    listed = found if isinstance(found, list | tuple) else [found]
    if not listed or not all(type(token) is int for token in listed):
        raise UsageError(f"{where}: {value[:60]!r}: expected a token id or a list of token ids")
    return list(listed)


def _years(value: str, where: str, clean: str, text: TextTokenizer) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens of the two-digit years above the year, and of those up to it.

    Raises:
        UsageError: if it is no year, or if years are not one token.
    """
    if not value.strip().isdecimal() or int(value) > 98:
        raise UsageError(f"{where}: {value[:60]!r}: expected a year from 0 to 98")
    tokens = [text.require_one(f"{year:02d}", f"{where}: the year", clean) for year in range(100)]
    return tokens[int(value) + 1 :], tokens[: int(value) + 1]
