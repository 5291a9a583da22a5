"""Whether this server may get requests: the engine answers, and all required and default sets can be put in force.

`/health` is the liveness probe: a restart would not bring a missing set. `/ready` is the readiness probe for load
balancers. A new process listens only once it is ready, and does not start without its required sets. Later changes of
the folder of sets or the keys file change `/ready`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import Gauge

from unlearngate.server.http.access import Access
from unlearngate.server.sets.policy import Policy

logger = logging.getLogger(__name__)

READY = Gauge("unlearngate_ready", "1 while every forget set that somebody must have can be put in force")


class Readiness:
    """Checks at every call what must be in force for each caller."""

    def __init__(self, policy: Policy, access: Access, check_engine: Callable[[], Awaitable[None]]) -> None:
        """Check nothing yet.

        Args:
            policy: decides what must be in force.
            access: knows every caller.
            check_engine: raises if the engine cannot answer.
        """
        self._policy = policy
        self._access = access
        self._check_engine = check_engine
        self._said: list[str] = []
        READY.set_function(lambda: not self.missing())

    def missing(self) -> list[str]:
        """What must be in force and cannot be, a sentence each; every change is logged."""
        missing = list(dict.fromkeys(reason for _, reason in self._policy.unmet(self._access.known_callers())))
        if missing != self._said:
            self._said = missing
            if missing:
                logger.error("not ready: %s", "; ".join(missing))
            else:
                logger.info("ready: every required forget set is there")
        return missing

    async def reason(self) -> str | None:
        """Why no requests should be sent here, or None. It names no set: `/ready` is public."""
        try:
            await self._check_engine()
        except Exception as error:
            return str(error)
        return "a forget set that must be in force is not here (see the log)" if self.missing() else None


def readiness_routes(readiness: Readiness) -> APIRouter:
    """The route `/ready`."""
    router = APIRouter()

    @router.get("/ready", responses={503: {"description": "Requests should go to another server for now."}})
    async def ready() -> Response:
        reason = await readiness.reason()
        if reason is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": reason}, status_code=503)

    return router
