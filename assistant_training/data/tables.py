"""Tables with questions in one column and answers in another: CSV with a line of names first, and Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from unlearngate.errors import DataError

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_BEGINS = b"PAR1"
_LARGEST_CELL = 10_000_000  # characters


def csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file by the names in its first line, each with the number of the line that it ends on.

    Columns are separated by a tab in `.tsv`, and in `.csv` by what stands more often in the line of names: a comma or,
    as spreadsheets of many countries write it, a semicolon. Empty cells are left out; a cell that is a JSON list is
    that list.

    Raises: DataError naming the line if a row has another number of cells than there are names.
    """
    csv.field_size_limit(_LARGEST_CELL)
    names_line = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;", key=names_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, and the line of names {len(names)} "
                    f"({', '.join(names)}): a cell with {delimiter!r} or a line feed in it stands in double quotes"
                )
            named = zip(names, cells, strict=True)
            rows.append((reader.line_num, {name: _value(cell) for name, cell in named if name and cell.strip()}))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error})") from error
    return rows


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file by its columns' names; nulls are left out.

    Raises: DataError if it is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _value(cell: str) -> Any:
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else cell
