"""Find and read the files of a public benchmark as they are published: JSON lines, one JSON array, or Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from unlearngate.assistant_training.data.rows import Row, read_rows, short
from unlearngate.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
Item = TypeVar("Item")


def find_files(folder: Path, stem: str) -> list[Path]:
    """The files of a split: `STEM.jsonl`, `STEM.json`, `STEM-00000-of-00001.parquet`, or what is in a folder `STEM`.

    Returns: in the order of their names; none if there is no such file. A split in several formats is one of them.
    """
    for suffix in SUFFIXES:
        found = [path for path in sorted(folder.glob(f"{stem}*{suffix}")) if _is_part(path, stem)]
        if found := [*found, *sorted((folder / stem).glob(f"*{suffix}"))]:
            return found
    return []


def split_rows(folder: Path, stem: str) -> list[Row]:
    """The rows of a split that must be there.

    Raises: DataError naming the folder and what was expected in it.
    """
    paths = find_files(folder, stem)
    if not paths:
        raise DataError(f"{folder}: has no {stem}.json, {stem}.jsonl or {stem}-00000-of-00001.parquet")
    rows = [row for path in paths for row in _rows(path)]
    if not rows:
        raise DataError(f"{paths[0]}: holds no row")
    return rows


def text_of(row: Row, field: str) -> str:
    """A field that must be a text with something in it.

    Raises: DataError naming the row and its fields.
    """
    value = row.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise row.error(
            f"'{field}' must be a text, got {short(value)}; the row has {', '.join(row.fields) or 'nothing'}"
        )
    return value


def checked_folder(folder: Path) -> Path:
    """Raises: DataError if this is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; --data takes the folder that the benchmark was downloaded to")
    return folder


def evenly(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most so many items, at even distances; None takes all."""
    return list(items if most is None else items[:: max(1, -(-len(items) // most))])


def _is_part(path: Path, stem: str) -> bool:
    return path.stem == stem or path.stem.startswith(f"{stem}-0")


def _rows(path: Path) -> list[Row]:
    """Rows; a JSON array of strings, as MUSE's script writes texts, is rows with the field `text`."""
    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            values = None  # JSON lines, or what read_rows says better
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return [Row(f"{path}: row {number}", {"text": text}) for number, text in enumerate(values, start=1)]
    return read_rows(path)
