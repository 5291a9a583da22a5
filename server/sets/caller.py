"""The caller of a request, as far as it decides the forget sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What requests may have of logprobs, where a set is required for them. Rounded ones are not offered: a client's
# temperature scales them before they would be rounded, so that a few requests measure them as exactly as wanted.
Logprobs = Literal["full", "none"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, and what is in force or visible for it. Without a key every set may be named and listed."""

    key_id: str | None = None
    tenant: str | None = None
    required_by_key: tuple[str, ...] = ()
    required_by_gateway: tuple[str, ...] = ()
    default: tuple[str, ...] | None = None  # None: the server's
    allowed: frozenset[str] | None = None  # None: every set
    instead: Mapping[str, str] = field(default_factory=dict)  # by a set's name; others say what their manifests do
    admin: bool = False
    metrics: bool = False
    logprobs: Logprobs | None = None  # None: the server's
