"""Ask the running engine a question ourselves, on a client's road: vLLM's chat handler, and a signed plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from unlearngate.errors import UnlearngateError
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, sign

_TOKEN_ID = "token_id:"


class Answer(NamedTuple):
    """A greedy answer: its N tokens, and of each position the log-probabilities (nats) of the two likeliest tokens."""

    tokens: list[int]
    likely_N: list[dict[int, float]]


async def ask(
    state: Any,
    question: str,
    *,
    model: str,
    plan: Plan,
    max_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Answer:
    """One user turn, decoded greedily.

    Args:
        state: carries vLLM's handlers.
        question: the turn.
        model: the adapter's name, or the served name.
        plan: for that adapter; its ticket is open in the meter.
        max_tokens: the answer is cut here.
        chat_template_kwargs: switches of the chat template; None: as the server is started with.

    Raises: UnlearngateError if the engine does not answer.
    """
    from unlearngate.server.engine import compat  # vLLM: takes seconds

    try:
        request = compat.ChatCompletionRequest(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0.0,
            repetition_penalty=1.0,  # not the checkpoint's default: greedy means the likeliest token
            max_tokens=max_tokens,
            chat_template_kwargs=dict(chat_template_kwargs) if chat_template_kwargs else None,
            logprobs=True,
            top_logprobs=2,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
            vllm_xargs={TOKEN_FIELD: sign(plan)},
        )
        answer = (await state.openai_serving_chat.create_chat_completion(request)).model_dump()
    except Exception as error:
        raise UnlearngateError(compat.describe_error(error)[1]) from error
    if "error" in answer:
        raise UnlearngateError(answer["error"]["message"])
    (choice,) = answer["choices"]
    if choice["finish_reason"] == "error":
        raise UnlearngateError("the engine failed at it")
    return Answer(
        choice["token_ids"],
        [
            {int(one["token"].removeprefix(_TOKEN_ID)): one["logprob"] for one in (at, *at["top_logprobs"])}
            for at in choice["logprobs"]["content"]
        ],
    )
