"""Proof that a version acts in the running engine, and only where it should: its canaries.

An adapter can load and change nothing. So before a version is in force the engine is asked the questions that its
manifest names, with this set alone at its recommended strength and without any, on a client's road.

A set of kind `verbatim` has no canaries. The engine is asked once with it, so that every worker has read it before a
client's request needs it, and one that a worker cannot read is never in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
# vLLM's log-probability of a token that is not possible. A sequence whose set cannot be read can only end.
_IMPOSSIBLE = -9999.0
_ANY_QUESTION = "What is the capital of France?"


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
        """Ask a version's canaries, or have it read if it is of kind `verbatim`; others are taken without proof.

        Raises: ArtefactError naming the canaries that failed by their number, not their text, or saying why they could
            not be asked; BusyError if the engine has no room for the version now.
        """
        canaries = forget_set.manifest.canaries
        if forget_set.manifest.kind == "verbatim":
            await self._have_it_read(forget_set)
        if not canaries:
            return
        questions, switches = [canary.question for canary in canaries], forget_set.manifest.chat_template_kwargs
        try:
            plain = await self._ask(questions, Decision(()), self._served_name, 0, switches=switches)
            binding = await self._adapters.acquire([forget_set])
            try:
                alone = _alone(forget_set)
                answers = await self._ask(questions, alone, binding.name, binding.adapter_id, switches=switches)
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

    async def _have_it_read(self, forget_set: ForgetSet) -> None:
        """Have every worker read a set of kind `verbatim`: the first one takes seconds, as the vocabulary's letters do.

        Raises: ArtefactError if one cannot.
        """
        try:
            (answer,) = await self._ask([_ANY_QUESTION], _alone(forget_set), self._served_name, 0, max_tokens=1)
        except UnlearngateError as error:
            reason = f"the engine could not be asked with {forget_set.name!r} in force: {error.message}"
            raise ArtefactError(forget_set.folder, reason) from error
        if not answer.likely_N or min(answer.likely_N[0].values()) <= _IMPOSSIBLE:
            raise ArtefactError(
                forget_set.folder,
                f"the engine could not read {forget_set.name!r}, and its log says why; it needs the folder of --state, "
                "or of temporary files, that this process has",
            )

    async def _ask(
        self,
        questions: Sequence[str],
        decision: Decision,
        model: str,
        adapter_id: int,
        *,
        max_tokens: int = CANARY_TOKENS,
        switches: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """The answers to each question, asked with the chat template's switches that the set was trained with."""
        kwargs = {"chat_template_kwargs": switches} if switches else {}
        usage = self._meter.open()
        plan = replace(decision.plan(adapter_id), ticket=usage.ticket)
        try:
            asked = [
                self._ask_engine(question, model=model, plan=plan, max_tokens=max_tokens, **kwargs)
                for question in questions
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)  # the adapter is held until all have ended
        finally:
            self._meter.close(usage)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if not isinstance(one, BaseException)]


def _alone(forget_set: ForgetSet) -> Decision:
    return Decision((InForce(forget_set, forget_set.manifest.recommended, "server"),))


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
