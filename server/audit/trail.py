"""Reading an audit log: is its chain whole, and what was in force for a request?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEFORE_THE_FIRST = "0" * 64  # what line 1 names as the digest of the line before it
REQUEST_EVENTS = ("admitted", "ended", "refused")


@dataclass(slots=True)
class Trail:
    """What the files hold. `problems` is empty if they are one chain from `first` to `last` without a gap."""

    problems: list[str] = field(default_factory=list)
    num_lines: int = 0
    first: int = 0
    last: int = 0
    digest: str = BEFORE_THE_FIRST  # of the last line
    anchored: bool = False
    found: list[dict[str, Any]] = field(default_factory=list)
    open_requests: int = 0

    @property
    def tenants(self) -> list[str]:
        """Whose lines were found: a client chooses its x-request-id, so several tenants may have sent the same."""
        return sorted({str(line.get("tenant")) for line in self.found})


def read_trail(
    files: Sequence[Path],
    *,
    request_id: str | None = None,
    tenant: str | None = None,
    key: str | None = None,
    anchor: str | None = None,
) -> Trail:
    """Verify the chain over all files, whatever their order, line by line.

    Args:
        files: the log's files; the oldest may be missing, none in between.
        request_id: collect this request's lines: the id of its response, or the x-request-id that its client sent.
        tenant: of these, only this tenant's.
        key: of these, only those of the API key with this id.
        anchor: the digest of a line, kept elsewhere, that must be among them.

    Raises: OSError if a file cannot be read.
    """
    trail = Trail()
    admitted: dict[str, int] = {}
    for file in sorted(files, key=_first_number):
        for where, line in _lines(file):
            content = _parse(line)
            if content is None:
                trail.problems.append(f"{where}: is no audit line")
                continue
            _check_link(trail, where, content)
            trail.last, trail.digest = content["seq"], hashlib.sha256(line).hexdigest()
            trail.num_lines += 1
            trail.anchored |= trail.digest == anchor
            if content["event"] not in REQUEST_EVENTS:
                continue
            change = {"admitted": 1, "ended": -1}.get(content["event"], 0)
            admitted[content["request"]] = admitted.get(content["request"], 0) + change
            wanted = request_id is not None and request_id in (content["request"], content["client_request"])
            if wanted and tenant in (None, content.get("tenant")) and key in (None, content.get("key")):
                trail.found.append(content)
    trail.open_requests = sum(max(0, number) for number in admitted.values())
    if anchor is not None and not trail.anchored:
        trail.problems.append(f"no line has the digest {anchor}: lines were changed or removed after it was noted")
    return trail


def _check_link(trail: Trail, where: str, content: dict[str, Any]) -> None:
    if trail.num_lines == 0:
        trail.first = content["seq"]
        if trail.first == 1 and content["prev"] != BEFORE_THE_FIRST:
            trail.problems.append(f"{where}: is numbered 1 but names a line before it")
        return
    if content["seq"] != trail.last + 1:
        trail.problems.append(f"{where}: line {content['seq']} follows line {trail.last}: lines are missing or doubled")
    elif content["prev"] != trail.digest:
        trail.problems.append(f"{where}: line {trail.last}, before this one, was changed")


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield f"{file}:{number}", line.removesuffix(b"\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("seq"), int):
        return None
    of_request = content.get("event") in REQUEST_EVENTS
    wanted = {"prev", "event"} | ({"request", "client_request"} if of_request else set())
    return content if wanted <= set(content) else None


def _first_number(file: Path) -> int:
    for _, line in _lines(file):
        content = _parse(line)
        return content["seq"] if content else 0
    return 0
