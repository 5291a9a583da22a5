"""Proof that a version acts in the running engine, and only where it should: its canaries.

An adapter can load and change nothing. So before a version is in force the engine is asked the questions that its
manifest names, with this set alone at its recommended strength and without any, on a client's road.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unlearngate.artefact import ForgetSet
from unlearngate.errors import ArtefactError, BusyError, UnlearngateError
from unlearngate.manifest import CANARY_TOKENS, Canary
from unlearngate.server.sets.decision import Decision, InForce

if TYPE_CHECKING:
    from unlearngate.server.engine.adapters import Adapters
    from unlearngate.server.engine.asking import Answer
    from unlearngate.server.engine.usage import Meter

# A row is rounded otherwise in another batch: where the target holds two tokens this close, either may come first.
TIE_NATS = 0.5


class Canaries:
    """Asks one engine the canaries of versions."""

    def __init__(
        self, adapters: Adapters, meter: Meter, ask: Callable[..., Awaitable[Answer]], *, served_name: str
    ) -> None:
        """Ask nothing yet.

        Args:
            adapters: loads a version into the engine.
            meter: has an open ticket for whatever the engine is asked.
            ask: `asking.ask` for this engine.
            served_name: the plain target's.
        """
        self._adapters = adapters
        self._meter = meter
        self._ask_engine = ask
        self._served_name = served_name

    async def prove(self, forget_set: ForgetSet) -> None:
        """Ask a version's canaries; one without canaries is taken without proof.

        Raises: ArtefactError naming the canaries that failed by their number, not their text, or saying why they could
            not be asked; BusyError if the engine has no room for the version now.
        """
        canaries = forget_set.manifest.canaries
        if not canaries:
            return
        alone = Decision((InForce(forget_set, forget_set.manifest.recommended, "server"),))
        try:
            plain = await self._ask(forget_set, Decision(()), self._served_name, 0)
            binding = await self._adapters.acquire([forget_set])
            try:
                answers = await self._ask(forget_set, alone, binding.name, binding.adapter_id)
            finally:
                self._adapters.release(binding)
        except BusyError:
            raise
        except UnlearngateError as error:
            raise ArtefactError(
                forget_set.folder, f"the canaries of {forget_set.name!r} could not be asked: {error.message}"
            ) from error
        if wrong := failures(canaries, plain, answers):
            raise ArtefactError(
                forget_set.folder,
                f"{forget_set.name!r} failed {len(wrong)} of its {len(canaries)} canaries in the running engine: "
                f"{'; '.join(wrong)}. Train it anew on what is served, or force it (`unlearngate sets add --force`, or "
                "POST /v1/forget_sets?force=true)",
            )

    async def _ask(self, forget_set: ForgetSet, decision: Decision, model: str, adapter_id: int) -> list[Answer]:
        """The canaries' answers, asked with the chat template's switches that the set was trained with."""
        manifest = forget_set.manifest
        switches = {"chat_template_kwargs": manifest.chat_template_kwargs} if manifest.chat_template_kwargs else {}
        usage = self._meter.open()
        plan = replace(decision.plan(adapter_id), ticket=usage.ticket)
        try:
            asked = [
                self._ask_engine(canary.question, model=model, plan=plan, max_tokens=CANARY_TOKENS, **switches)
                for canary in manifest.canaries
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)  # the adapter is held until all have ended
        finally:
            self._meter.close(usage)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if not isinstance(one, BaseException)]


def failures(canaries: Sequence[Canary], plain: Sequence[Answer], with_set: Sequence[Answer]) -> list[str]:
    """What did not come as claimed, by the canaries' numbers from 0.

    Args:
        canaries: the questions.
        plain: the target's answer to each.
        with_set: the answer to each with the set in force.
    """
    wrong = []
    for index, (canary, before, after) in enumerate(zip(canaries, plain, with_set, strict=True)):
        if canary.changes and before.tokens == after.tokens:
            wrong.append(f"canaries[{index}] must change and did not")
        if not canary.changes and _differs_for_sure(before, after):
            wrong.append(f"canaries[{index}] must stay and changed")
    return wrong


def _differs_for_sure(before: Answer, after: Answer) -> bool:
    """Whether the answers differ, and not first where the target held both tokens nearly equally likely."""
    if before.tokens == after.tokens:
        return False
    for old, new, likely in zip(before.tokens, after.tokens, before.likely_N, strict=False):
        if old != new:
            return new not in likely or likely[old] - likely[new] > TIE_NATS
    return True  # one goes on where the other ends
