"""The caller of a request, as far as it decides the forget sets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, and what is in force or visible for it. Without a key every set may be named and listed."""

    key_id: str | None = None
    tenant: str | None = None
    required_by_key: tuple[str, ...] = ()
    required_by_gateway: tuple[str, ...] = ()
    default: tuple[str, ...] | None = None  # None: the server's
    allowed: frozenset[str] | None = None  # None: every set
    admin: bool = False
    metrics: bool = False
