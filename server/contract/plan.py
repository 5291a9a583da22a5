"""What one request composes, and the signed token that carries it through vLLM.

The HTTP layer decides a `Plan`, signs it, and puts the token into the request's sampling parameters. The engine refuses
every request without a valid token, so no route, field or adapter name that we forgot returns the plain target.
This module is import-light: vLLM's frontend loads it only to validate parameters.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from unlearngate.manifest import LARGEST

TOKEN_FIELD = "unlearngate"
KEY_VARIABLE = "UNLEARNGATE_TOKEN_KEY"


@dataclass(frozen=True, slots=True)
class Term:
    """One forget set of kind `uld` in force: the branch that runs its assistant, and how strongly it is subtracted.

    lowers: the set lowers tokens and raises none (its rule is "lower").
    sentence has the token ids of what is said instead of an answer at whose first position the set's gate is open; it
    ends with the end-of-sequence. Empty: the answer is composed in any case.
    """

    branch: int
    weight: float
    gate_nats: float
    lowers: bool = False
    sentence: tuple[int, ...] = ()


class VerbatimSet(NamedTuple):
    """One forget set of kind `verbatim` in force: its digest, and the folder of the server's own copy."""

    digest: str
    folder: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the worker needs to compose one request's rows.

    adapter_id is the LoRA adapter that binds the sets to the model; 0 is the plain target. An adapter without terms has
    a set of kind `undial` alone: the target itself is adapted, and nothing is subtracted from it.
    ticket is the HTTP request whose tokens are counted (usage.py). lease is where the open gates of one of its
    sequences are recorded (tally.py). 0 is none.
    keep_ratio is composition.md's tau, tail_ratio its rho.
    verbatim has the sets whose texts must not come out; they need no adapter.
    adapts_target: whether a set of kind `undial` is among the adapter's.
    """

    adapter_id: int = 0
    keep_ratio: float = 0.0
    terms: tuple[Term, ...] = ()
    ticket: int = 0
    lease: int = 0
    tail_ratio: float = 0.0
    verbatim: tuple[VerbatimSet, ...] = ()
    adapts_target: bool = False

    def __post_init__(self) -> None:
        if self.adapter_id < 0 or (self.terms and self.adapter_id == 0):
            raise ValueError(f"a plan with terms needs the adapter that computes their assistants, got {self}")
        for name, ratio in (("keep_ratio", self.keep_ratio), ("tail_ratio", self.tail_ratio)):
            if not 0.0 <= ratio <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {ratio}")
        for term in self.terms:
            if term.branch < 0 or not (0 <= term.weight <= LARGEST and 0 <= term.gate_nats <= LARGEST):
                raise ValueError(f"branch, weight and gate_nats must be finite and >= 0 in fp32, got {term}")

    @property
    def speaks(self) -> bool:
        """Whether a set may have a sentence said instead of the answer."""
        return any(term.sentence for term in self.terms)

    def speechless(self) -> Plan:
        """This plan with every answer composed."""
        return replace(self, terms=tuple(replace(term, sentence=()) for term in self.terms))


def ensure_key() -> None:
    """Give this launch a random signing key, inherited by every process started from here."""
    if not os.environ.get(KEY_VARIABLE):
        os.environ[KEY_VARIABLE] = secrets.token_hex(32)


def sign(plan: Plan) -> str:
    """The token for a plan: base64 of its JSON, a dot, an HMAC-SHA256 with this launch's key."""
    payload = base64.urlsafe_b64encode(json.dumps(asdict(plan)).encode()).decode()
    return f"{payload}.{_mac(payload)}"


def verify(token: object) -> Plan:
    """The plan that a token carries.

    Raises: ValueError if there is no token, or it was not signed with this launch's key.
    """
    if not isinstance(token, str) or "." not in token:
        raise ValueError(
            "the request carries no composition token; send it to unlearngate's own HTTP API, "
            "which decides the forget sets"
        )
    payload, _, mac = token.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(payload).encode()):
        raise ValueError("the request's composition token was not signed by this server")
    fields = json.loads(base64.urlsafe_b64decode(payload))
    fields["terms"] = tuple(Term(**{**term, "sentence": tuple(term["sentence"])}) for term in fields["terms"])
    fields["verbatim"] = tuple(VerbatimSet(*one) for one in fields["verbatim"])
    return Plan(**fields)


def _mac(payload: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise ValueError(f"{KEY_VARIABLE} is not set: start the engine through `unlearngate serve`")
    return hmac.new(key.encode(), payload.encode(), hashlib.sha256).hexdigest()
