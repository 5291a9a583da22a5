"""Authentication: every request gets a caller, from its API key, from the gateway's headers, or an anonymous one.

The check runs before routing and before the body is read, on every path but the few that are open. A route that is
added later is closed by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from unlearngate.errors import AuthenticationError, ForbiddenError, UnlearngateError
from unlearngate.server.http.gateway import Gateway, GatewayWord
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.keys import ANY_SET, ApiKey
from unlearngate.server.sets.caller import Caller

OPEN_PATHS = {"/", "/health", "/ready", "/docs", "/redoc", "/openapi.json"}


class Access:
    """Turns a request's headers into a caller, or refuses it with a reason."""

    def __init__(self, keyring: Keyring | None = None, gateway: Gateway | None = None) -> None:
        self.keyring = keyring
        self._gateway = gateway or Gateway()

    def identify(self, request: Request) -> Caller:
        """The caller of this request.

        Raises: AuthenticationError (401) without a known key where keys are used; ForbiddenError (403) if the gateway's
            headers come from another sender; InvalidRequestError (400) if the gateway's own are malformed.
        """
        word = self._gateway.read(request.headers) or GatewayWord((), None)
        if self.keyring is None:
            return Caller(tenant=word.tenant, required_by_gateway=word.required, metrics=True)
        key = self.keyring.find(_bearer(request))
        if key is None:
            raise AuthenticationError("this API key is not one of this server's")
        if word.tenant not in (None, key.tenant):
            raise ForbiddenError(
                f"the gateway says tenant {word.tenant!r}, but the API key is another tenant's", code="tenant_mismatch"
            )
        return _caller(key, word.required)

    def known_callers(self) -> Iterator[Caller]:
        """Every possible caller: an anonymous one, with keys only with the server's required sets; then each key's."""
        if self.keyring is None:
            yield Caller()
        else:
            yield Caller(default=())
            yield from (_caller(key, ()) for key in self.keyring.keys())

    def warning(self) -> str | None:
        """The warning in /health that the keys file cannot be used; without the reason, because /health is public."""
        if self.keyring is None:
            return None
        self.keyring.refresh()
        return self.keyring.problem and "the keys file cannot be used; the last good one is in force (see the log)"


class AccessControl:
    """ASGI middleware: puts the caller into the request's state, as `request.state.caller`, or refuses the request."""

    def __init__(
        self, app: ASGIApp, access: Access, refuse: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller, or answer with the refusal. Open paths need no caller."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            request.state.caller = self._access.identify(request)
        except UnlearngateError as error:
            response = await self._refuse(request, error)
            if error.http_status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def require_admin(request: Request) -> Caller:
    """A route's dependency: the caller, if it has an admin key.

    Raises: ForbiddenError (403) if it has not.
    """
    caller: Caller = request.state.caller
    if not caller.admin:
        raise ForbiddenError(
            "this route needs an API key with the admin flag; make one with `unlearngate keys add FILE --admin` and "
            "start the server with --keys FILE",
            code="admin_required",
        )
    return caller


def require_metrics(request: Request) -> None:
    """The dependency of /metrics, whose labels name forget sets.

    Raises: ForbiddenError (403) if the caller may not read it.
    """
    if not request.state.caller.metrics:
        raise ForbiddenError("/metrics names every forget set: it needs an API key with the metrics or admin flag")


def _caller(key: ApiKey, required_by_gateway: tuple[str, ...]) -> Caller:
    return Caller(
        key_id=key.id,
        tenant=key.tenant,
        required_by_key=key.required,
        required_by_gateway=required_by_gateway,
        default=key.default,
        allowed=None if key.admin or ANY_SET in key.allowed else frozenset(key.allowed),
        instead=key.instead,
        admin=key.admin,
        metrics=key.metrics or key.admin,
        logprobs=key.logprobs,
    )


def _bearer(request: Request) -> str:
    values = request.headers.getlist("authorization")
    scheme, _, secret = values[0].strip().partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not secret.strip():
        raise AuthenticationError("an API key is needed here: send it once, as `Authorization: Bearer KEY`")
    return secret.strip()
