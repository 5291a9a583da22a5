"""Accounts for every request: the sets in force go into the audit log before the engine is asked, the outcome after.

A single line at the end would be missing if the server is killed before. So everything that the engine was asked to do
has its line `admitted`, and `ended` repeats it with the outcome.
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
    """Writes the routes' audit lines; without an audit log it only counts."""

    def __init__(self, meter: Meter, audit: Audit | None = None) -> None:
        self.meter = meter
        self._audit = audit

    def open(self, request_id: str, raw_request: Request) -> Account:
        """Open an account for a request.

        Args:
            request_id: the id of the response to come.
            raw_request: its `state.caller`, if any, is the caller.

        Raises: InvalidRequestError if the client's x-request-id, or its field `request_id`, is too long.
        """
        client_id = raw_request.headers.get("x-request-id")
        own_id = request_id.removeprefix("chatcmpl-").removeprefix("cmpl-")
        for what, given in (("x-request-id", client_id), ("request_id", own_id)):
            if given is not None and len(given) > _LONGEST_ID:
                raise InvalidRequestError(f"{what} may have at most {_LONGEST_ID} characters, got {len(given)}")
        caller = getattr(raw_request.state, "caller", None)
        who = {
            "request": request_id,
            "client_request": client_id,
            "route": raw_request.scope["path"],  # that of `url` depends on the Host header
            "key": caller and caller.key_id,
            "tenant": caller and caller.tenant,
        }
        return Account(self, who)

    def check(self) -> None:
        """Check the audit log, for /health.

        Raises: AuditUnavailableError if the audit log cannot be written.
        """
        if self._audit is not None:
            self._audit.check()

    async def keep_synced(self) -> None:
        """Sync the audit log to disk once a second, until cancelled."""
        while self._audit is not None:
            await asyncio.sleep(_SYNC_EVERY_S)
            await asyncio.to_thread(self._audit.sync)

    def write(self, event: str, **fields: Any) -> None:
        """Write a line to the audit log, if there is one.

        Raises: AuditUnavailableError if it cannot be written.
        """
        if self._audit is not None:
            self._audit.append(event, **fields)


class Account:
    """One request's account: call `refuse`, or `admit` and then, once, `end`."""

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
        """Log a request that was refused before the engine was asked; it stays refused if that fails."""
        try:
            self._accounting.write("refused", **self._who, status=status, code=code)
        except AuditUnavailableError:
            pass  # it is counted, and nothing was served

    def admit(self, decision: Decision) -> int:
        """Log the decision before the engine is asked; returns the ticket for its plan.

        Raises: AuditUnavailableError if it cannot be logged: the engine must not be asked.
        """
        self._accounting.write("admitted", **self._who, sets=decision.report())
        self._decision, self._usage = decision, self._accounting.meter.open()
        return self._usage.ticket

    def said(self) -> dict[str, bool | None]:
        """By the name of each set that says something instead: whether an answer so far was that; None if not known."""
        if self._decision is None or self._usage is None:
            return {}
        answers = self._by_name(self._decision, self._accounting.meter.said_by_branch(self._usage))
        return {name: None if (n := answers[name]) is None else n > 0 for name in self._decision.speaking}

    def end(self, finish: Finish, status: int | None) -> None:
        """Count and log the end of an admitted request; do nothing if none was admitted, or it has ended already.

        Args:
            finish: how.
            status: the HTTP status, None if the client was gone before there was one.

        Raises: AuditUnavailableError if it cannot be logged.
        """
        if self._decision is None or self._usage is None:
            return
        decision, self._decision = self._decision, None
        tokens = self._accounting.meter.close(self._usage)
        open_tokens = self._by_name(decision, tokens.open_by_branch)
        said = self._by_name(decision, tokens.said_by_branch)
        instead_answers = {name: said[name] for name in decision.speaking}
        count_request(decision.sets, finish, tokens.completion, open_tokens, instead_answers)
        self._accounting.write(
            "ended",
            **self._who,
            sets=decision.report(),
            finish=finish,
            status=status,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            open_tokens=open_tokens,
            instead_answers=instead_answers,
            duration_s=round(time.monotonic() - self._began, 3),
        )

    @staticmethod
    def _by_name(decision: Decision, by_branch: Sequence[int] | None) -> dict[str, int | None]:
        """A figure of each set with a branch; None if it is not known."""
        gated = [s.name for s in decision.sets if s.manifest.kind == "uld"]  # in the order of their branches
        return {name: by_branch[branch] if by_branch else None for branch, name in enumerate(gated)}
