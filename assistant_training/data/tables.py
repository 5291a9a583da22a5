"""Tables with questions in one column and answers in another: CSV with a line of names first, and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearngate.errors import DataError

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_BEGINS = b"PAR1"
# What the columns of a question and of its answer are called.
ASKED = ("question", "query", "prompt", "instruction")
SAID = ("answer", "completion", "response", "output")
_LARGEST_CELL = 10_000_000  # characters
_DELIMITERS = ",;\t"
_SEPARATOR_LINE = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?\r?\n", re.IGNORECASE)  # Excel's, before the line of names
_TRUTH = {"true": True, "false": False}


def csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file by the names in its first line, each with the number of the line that it ends on.

    Columns are separated by a tab in `.tsv`. In `.csv` a line `sep=;` before the names says by what; without it, it is
    the first of comma, semicolon and tab that gives names of a question and an answer, or else the most names. Empty
    cells are left out; a cell that is a JSON list is that list, and `dropped` is true or false in whatever case.

    Raises: DataError naming the line if two columns have one name, or a row has another number of cells than there are
        names.
    """
    csv.field_size_limit(_LARGEST_CELL)
    said = _SEPARATOR_LINE.match(text)
    table = text[said.end() :] if said else text
    lines_before = 1 if said else 0
    delimiter = said[1] if said else "\t" if path.suffix.lower() == ".tsv" else _delimiter(table)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        _refuse_repeated(path, names)
        for cells in reader:
            if not any(cells):
                continue
            number = reader.line_num + lines_before
            if len(cells) != len(names):
                raise DataError(
                    f"{path}: line {number} has {len(cells)} cells, and the line of names {len(names)} "
                    f"({', '.join(names)}): a cell with {delimiter!r} or a line feed in it stands in double quotes"
                )
            named = zip(names, cells, strict=True)
            rows.append((number, {name: _value(name, cell) for name, cell in named if name and cell.strip()}))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + lines_before} is not CSV ({error})") from error
    return rows


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file by its columns' names; nulls are left out.

    A column that Python has no values for, such as times in nanoseconds, holds the error in every row: whoever needs
    that column refuses what is there, and nobody else minds.

    Raises: DataError if pyarrow does not read it: it is damaged, or two columns have one name.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    columns = [_values(column) for column in table.columns]
    return [
        {name: value for name, value in zip(table.column_names, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]


def _delimiter(table: str) -> str:
    names = {delimiter: _names(table, delimiter) for delimiter in _DELIMITERS}
    of_pairs = [one for one in _DELIMITERS if names[one].intersection(ASKED) and names[one].intersection(SAID)]
    return of_pairs[0] if of_pairs else max(_DELIMITERS, key=lambda one: len(names[one]))


def _names(table: str, delimiter: str) -> set[str]:
    """The names in a table's first line if this parts them."""
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    try:
        return {name.strip() for name in next(reader, [])}
    except csv.Error:
        return set()


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{path}: has several columns called {', '.join(map(repr, repeated))}; keep one of each")


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except Exception as error:  # each type has its own
        return [error] * len(column)


def _value(name: str, cell: str) -> Any:
    if name == "dropped":
        return _TRUTH.get(cell.strip().lower(), cell)
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else cell
