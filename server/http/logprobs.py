"""Fields that tell a client how likely a token is, which tells what is suppressed: refused where a set is required.

Logprobs say it outright. A bias, a choice of tokens or an argument of an extension makes the answers say it: the bias
at which another token wins is a difference of two logprobs.
"""

from __future__ import annotations

from pydantic import BaseModel

from unlearngate.errors import ForbiddenError
from unlearngate.server.http.scoring import scoring_field
from unlearngate.server.sets.caller import Logprobs
from unlearngate.server.sets.strength import REQUIRED_CODE

_LOGPROBS = "logprobs show what is suppressed"
_STEERED = "with it, answers measure logprobs, which show what is suppressed"
_MEASURING = {
    "logprobs": _LOGPROBS,
    "top_logprobs": _LOGPROBS,
    "prompt_logprobs": _LOGPROBS,
    "logprob_token_ids": _LOGPROBS,
    "logit_bias": _STEERED,
    "allowed_token_ids": _STEERED,
    "bad_words": _STEERED,
    "vllm_xargs": "what an extension of vLLM does with it is not known here",
}


def refuse_measuring(request: BaseModel, allowed: Logprobs) -> None:
    """Refuse a field that shows or measures logprobs, unless the caller may have them.

    Args:
        request: one of vLLM's requests, as the client sent it.
        allowed: what the caller may have.

    Raises: ForbiddenError naming the field and what to do.
    """
    if allowed == "full":
        return
    if field := next((field for field in _MEASURING if _is_set(request, field)), _wish(request)):
        raise ForbiddenError(
            f"{field} is not allowed in requests with a required forget set: {_MEASURING.get(field, _LOGPROBS)}; leave "
            "it out, or have the operator allow it (`unlearngate keys add --logprobs full`, or serve --logprobs full)",
            param=field,
            code=REQUIRED_CODE,
        )


def _wish(request: BaseModel) -> str | None:
    """The field in which a request asks for logprobs among other things."""
    included = getattr(request, "include", None) or ()
    return "include" if any("logprobs" in item for item in included) else scoring_field(request)


def _is_set(request: BaseModel, field: str) -> bool:
    """Whether the field is there with a value that asks for something. In text completions `logprobs` 0 does."""
    info = type(request).model_fields.get(field)
    value = getattr(request, field, None)
    if info is None or value is None or value in ([], {}):
        return False
    return bool(value != info.get_default(call_default_factory=True))
