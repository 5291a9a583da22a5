"""What a gateway in front of this server may say about a request, in headers that no other sender may use.

    x-unlearngate-gateway: SECRET     proves that the request comes through the gateway
    x-unlearngate-required: a,b       forget sets that must be in force, besides those required anyway
    x-unlearngate-tenant: acme        whose request it is

Without the secret, a request with any `x-unlearngate-*` header is refused: its sender believes that it counts.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers

from unlearngate.errors import ForbiddenError, InvalidRequestError, UnsupportedDeploymentError
from unlearngate.manifest import NAME_PATTERN

PREFIX = "x-unlearngate-"
SECRET_HEADER = f"{PREFIX}gateway"
REQUIRED_HEADER = f"{PREFIX}required"
TENANT_HEADER = f"{PREFIX}tenant"
_SHORTEST_SECRET = 32


@dataclass(frozen=True, slots=True)
class GatewayWord:
    """What the gateway said."""

    required: tuple[str, ...]
    tenant: str | None


class Gateway:
    """Knows the gateway by its secret; without a secret there is none."""

    def __init__(self, secret: str | None = None, *, demanded: bool = False) -> None:
        self._secret = secret
        self._demanded = demanded

    @staticmethod
    def from_file(path: Path, *, demanded: bool) -> Gateway:
        """The gateway whose secret is the file's only line.

        Args:
            path: the file.
            demanded: whether requests that do not come through the gateway are refused.

        Raises: UnsupportedDeploymentError if the secret is one that could be guessed, or cannot be sent in a header.
        """
        secret = path.read_text(encoding="utf-8").strip()
        if len(secret) < _SHORTEST_SECRET or not re.fullmatch(r"[!-~]+", secret):
            raise UnsupportedDeploymentError(
                f"{path}: a gateway secret is one line of at least {_SHORTEST_SECRET} printable ASCII characters "
                f"without spaces, got {len(secret)} characters; make one with `openssl rand -hex 32`"
            )
        return Gateway(secret, demanded=demanded)

    def read(self, headers: Headers) -> GatewayWord | None:
        """What the gateway says with these headers; None if the request did not come through it.

        Raises: ForbiddenError if another sender sets its headers, or if the gateway is demanded; InvalidRequestError if
            what it says is malformed.
        """
        ours = sorted({name for name in headers if name.startswith(PREFIX)})
        if not ours and not self._demanded:
            return None
        if not ours:
            raise ForbiddenError("this server answers only requests that come through its gateway", code="gateway_only")
        if not self._proven(headers.getlist(SECRET_HEADER)):
            raise ForbiddenError(
                f"only this server's gateway may set {', '.join(ours)}, and the request does not carry its secret in "
                f"{SECRET_HEADER}; leave the headers out",
                code="gateway_only",
            )
        unknown = sorted(set(ours) - {SECRET_HEADER, REQUIRED_HEADER, TENANT_HEADER})
        if unknown:
            raise InvalidRequestError(
                f"unknown header {', '.join(unknown)}; a gateway may set {REQUIRED_HEADER} and {TENANT_HEADER}",
                param=unknown[0],
            )
        return GatewayWord(_names(headers, REQUIRED_HEADER), _tenant(headers))

    def _proven(self, shown: list[str]) -> bool:
        # A second value would be the client's, passed on by a gateway that adds its own without removing others.
        return (
            self._secret is not None
            and len(shown) == 1
            and hmac.compare_digest(shown[0].encode(), self._secret.encode())
        )


def _names(headers: Headers, header: str) -> tuple[str, ...]:
    names = [name.strip() for value in headers.getlist(header) for name in value.split(",")]
    for name in names:
        # An empty name is refused too: a gateway whose template rendered empty meant some set.
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidRequestError(
                f"{header} must be names of forget sets with commas between, got {name[:80]!r} among "
                f"{len(names)}; for none leave the header out",
                param=header,
            )
    return tuple(dict.fromkeys(names))


def _tenant(headers: Headers) -> str | None:
    values = headers.getlist(TENANT_HEADER)
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(NAME_PATTERN, values[0]):
        raise InvalidRequestError(
            f"{TENANT_HEADER} must be one name of small letters, digits, '.', '_' and '-', got "
            f"{', '.join(values)[:80]!r}",
            param=TENANT_HEADER,
        )
    return values[0]
