"""The rows of a data file: objects as JSON lines or in one JSON array, whatever the file is called; and tables."""

from __future__ import annotations

import codecs
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearngate.assistant_training.data.tables import CSV_SUFFIXES, PARQUET_BEGINS, csv_rows, parquet_rows
from unlearngate.errors import DataError

_EXPECTED = "expected a JSON object on each line, or one JSON array of objects"
_WRITTEN_BY = (
    "pandas writes JSON lines with frame.to_json(PATH, orient='records', lines=True), datasets with "
    "dataset.to_json(PATH)"
)
_AS_UTF8 = "save it from the spreadsheet as `CSV UTF-8`, or convert it with `iconv -f WINDOWS-1252 -t UTF-8`"
_OTHER_FILES = {
    b"\x1f\x8b": "is compressed by gzip; unpack it with gunzip",
    b"PK\x03\x04": f"is a zip archive or a spreadsheet; {_WRITTEN_BY}",
    b"version https://git-lfs": "is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`",
    codecs.BOM_UTF16_LE: "is UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16; save it as UTF-8",
}


class Row(NamedTuple):
    """One object of a file, and where it is: `FILE: line 3`, or `FILE: row 3` of an array."""

    where: str
    fields: Mapping[str, Any]

    def error(self, reason: str) -> DataError:
        """An error that names the place."""
        return DataError(f"{self.where}: {reason}")


def read_rows(path: Path) -> list[Row]:
    """Read the objects of a file of JSON lines, of one JSON array or of a single object, or a table's rows, in order.

    In an array of nothing but strings, each is the `text` of a row.

    A table is a file called .csv or .tsv, or a Parquet file under any name (tables.py).
    A byte order mark at the start is skipped. Lines end with a line feed, and with nothing else: U+2028, U+2029 and
    U+0085 may stand inside a JSON string. Empty lines are skipped.

    Raises: DataError naming the file and the line, what is there and what was expected.
    """
    if _begins(path) == PARQUET_BEGINS:
        return [Row(f"{path}: row {number}", row) for number, row in enumerate(parquet_rows(path), start=1)]
    text = _text(path)
    if path.suffix.lower() in CSV_SUFFIXES:
        return [Row(f"{path}: line {number}", row) for number, row in csv_rows(path, text)]
    if text.lstrip().startswith("["):
        return _array(path, text)
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except ValueError as error:
            if not rows and (whole := _one_object(text)) is not None:
                return [Row(f"{path}: row 1", whole)]
            hint = "" if line.lstrip().startswith("{") else f"; of a table, {_WRITTEN_BY}"
            raise DataError(f"{path}: line {number} is not JSON ({error}); {_EXPECTED}{hint}") from error
        rows.append(_row(f"{path}: line {number}", value))
    return rows


def begins_as_json(path: Path) -> bool:
    """Whether a file's first line that is not empty holds JSON: an object, or the beginning of an array of objects.

    Raises: DataError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            line = next((line.strip() for line in file if line.strip()), b"").removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if line.startswith(b"{"):
        try:
            return isinstance(_parsed(line.decode("utf-8")), dict) or line == b"{"
        except ValueError:
            return line == b"{"
    return line.startswith(b"[") and line.removeprefix(b"[").lstrip()[:1] in (b"", b"{", b'"')


def find_json_files(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """A data set's files by their stems: STEM.jsonl or, where there is none, STEM.json.

    Raises: DataError naming all that are missing.
    """
    paths = {stem: [folder / f"{stem}.jsonl", folder / f"{stem}.json"] for stem in stems}
    found = {stem: next((path for path in both if path.is_file()), None) for stem, both in paths.items()}
    if missing := [f"{stem}.json" for stem, path in found.items() if path is None]:
        raise DataError(f"{folder}: {', '.join(missing)} missing, also as .jsonl")
    return {stem: path for stem, path in found.items() if path is not None}


def short(value: object) -> str:
    """A value as an error shows it: a long one is cut."""
    return reprlib.repr(value)


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET_BEGINS))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_seen(raw) or f'cannot be read as UTF-8 ({error}); {_AS_UTF8}'}") from error
    if reason := _seen(raw):
        raise DataError(f"{path}: {reason}")
    return text


def _seen(raw: bytes) -> str | None:
    """What a file is that is recognised by its first bytes."""
    return next((reason for start, reason in _OTHER_FILES.items() if raw.startswith(start)), None)


def _parsed(text: str) -> Any:
    """A JSON value. Raises: ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _one_object(text: str) -> Mapping[str, Any] | None:
    """The object that a whole file is, written over several lines; None if it is none."""
    try:
        value = _parsed(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _array(path: Path, text: str) -> list[Row]:
    try:
        values = _parsed(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise DataError(f"{path}: holds more than one JSON array; {_EXPECTED}") from error
        raise DataError(f"{path}: line {error.lineno} is not JSON ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if all(isinstance(value, str) for value in values):  # as MUSE has its texts
        values = [{"text": value} for value in values]
    return [_row(f"{path}: row {number}", value) for number, value in enumerate(values, start=1)]


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where} must hold a JSON object, got {type(value).__name__}: {short(value)}")
    return Row(where, value)
