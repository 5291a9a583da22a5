"""Accounts for every request: what was in force goes into the audit log before the engine is asked, how it ended after.

Two lines, because one that is written at the end is not there if the server is killed before: whatever the engine was
asked to do has its line `admitted`, and `ended` repeats it with what came out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request

from unlearngate.errors import AuditUnavailableError, InvalidRequestError
from unlearngate.server.audit.log import Audit
from unlearngate.server.engine.usage import Meter, Usage
from unlearngate.server.metrics import count_request
from unlearngate.server.sets.decision import Decision

_LONGEST_ID = 256
_SYNC_EVERY_S = 1.0

Finish = Literal["completed", "aborted", "error"]


class Accounting:
    """What the routes write down; without an audit log it only counts."""

    def __init__(self, meter: Meter, audit: Audit | None = None) -> None:
        self.meter = meter
        self._audit = audit

    def open(self, request_id: str, raw_request: Request) -> Account:
        """An account for a request.

        Args:
            request_id: the id of the response to come.
            raw_request: `state.caller`, where there is one, says whose it is.

        Raises: InvalidRequestError if the client's x-request-id, or its field `request_id`, is too long to be written
            down.
        """
        client_id = raw_request.headers.get("x-request-id")
        for what, given in (("x-request-id", client_id), ("request_id", request_id.partition("-")[2])):
            if given is not None and len(given) > _LONGEST_ID:
                raise InvalidRequestError(f"{what} may have at most {_LONGEST_ID} characters, got {len(given)}")
        caller = getattr(raw_request.state, "caller", None)
        who = {
            "request": request_id,
            "client_request": client_id,
            "route": raw_request.scope["path"],  # that of `url` depends on what the client says its host is
            "key": caller and caller.key_id,
            "tenant": caller and caller.tenant,
        }
        return Account(self, who)

    def check(self) -> None:
        """For /health.

        Raises: AuditUnavailableError if the audit log cannot be written.
        """
        if self._audit is not None:
            self._audit.check()

    async def keep_synced(self) -> None:
        """Bring the audit log to the disk once a second, until cancelled."""
        while self._audit is not None:
            await asyncio.sleep(_SYNC_EVERY_S)
            await asyncio.to_thread(self._audit.sync)

    def write(self, event: str, **fields: Any) -> None:
        """A line of the audit log, if there is one.

        Raises: AuditUnavailableError if it cannot be written.
        """
        if self._audit is not None:
            self._audit.append(event, **fields)


class Account:
    """One request's: `refuse`, or `admit` and, once, `end`."""

    def __init__(self, accounting: Accounting, who: dict[str, Any]) -> None:
        self._accounting = accounting
        self._who = who
        self._began = time.monotonic()
        self._decision: Decision | None = None
        self._usage: Usage | None = None

    @property
    def failed(self) -> bool:
        """Whether the engine failed under this request."""
        return self._usage is not None and self._usage.failed

    def refuse(self, status: int, code: str) -> None:
        """The request was refused before the engine was asked; that stands, whether or not it can be written down."""
        try:
            self._accounting.write("refused", **self._who, status=status, code=code)
        except AuditUnavailableError:
            pass  # it is counted, and nothing was served

    def admit(self, decision: Decision) -> int:
        """The engine is about to be asked under this decision; returns the ticket for its plan.

        Raises: AuditUnavailableError if that cannot be written down: it must not be asked.
        """
        self._accounting.write("admitted", **self._who, sets=decision.report())
        self._decision, self._usage = decision, self._accounting.meter.open()
        return self._usage.ticket

    def end(self, finish: Finish, status: int | None) -> None:
        """What was admitted has ended. Nothing happens if nothing was admitted, or it has ended already.

        Args:
            finish: how.
            status: the HTTP status, None if the client was gone before there was one.

        Raises: AuditUnavailableError if it cannot be written down.
        """
        if self._decision is None or self._usage is None:
            return
        decision, self._decision = self._decision, None
        tokens = self._accounting.meter.close(self._usage)
        gated = [s.name for s in decision.sets if s.manifest.kind == "uld"]  # in the order of their branches
        by_branch: Sequence[int | None] = tokens.open_by_branch or [None] * len(gated)
        open_tokens = {name: by_branch[branch] for branch, name in enumerate(gated)}
        count_request(decision.sets, finish, tokens.completion, open_tokens)
        self._accounting.write(
            "ended",
            **self._who,
            sets=decision.report(),
            finish=finish,
            status=status,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            open_tokens=open_tokens,
            duration_s=round(time.monotonic() - self._began, 3),
        )
