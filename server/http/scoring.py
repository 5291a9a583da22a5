"""Log-probabilities of the prompt: who asks for them, and where they are not defined.

They are composed as a sampled position's are, but in scoring mode (docs/composition.md): a token that is not kept has a
finite one. Each answer with them says so.
"""

from __future__ import annotations

from typing import Any

from unlearngate.errors import InvalidRequestError
from unlearngate.server.sets.decision import Decision

MODE_FIELD = "prompt_logprobs_mode"
MODE_HEADER = "x-prompt-logprobs-mode"
MODE = "scoring"


def scoring_field(request: Any) -> str | None:
    """The field by which one of vLLM's requests asks for log-probabilities of its prompt; None if it does not.

    In chat vLLM takes `echo` alone for such a wish, in text completions only with `logprobs`; `/v1/responses` has none.
    """
    fields = type(request).model_fields  # a field of another route is an attribute too, but not read
    if "prompt_logprobs" not in fields:
        return None
    if request.prompt_logprobs is not None:
        return "prompt_logprobs"
    return "echo" if request.echo and ("messages" in fields or request.logprobs is not None) else None


def refuse_unscorable(request: Any, decision: Decision) -> None:
    """Refuse to score with a set of kind `verbatim`.

    It forbids the token that would complete a run. Nothing of it would be left in scoring mode, where a token that
    sampling would never say has the target's logit.

    Raises: InvalidRequestError that names the sets.
    """
    field = scoring_field(request)
    names = [forget_set.name for forget_set in decision.sets if forget_set.manifest.kind == "verbatim"]
    if field and names:
        raise InvalidRequestError(
            f"{field} is not served while a forget set of kind verbatim is in force ({', '.join(names)}): it only "
            f"forbids tokens, so log-probabilities of a prompt would be those without it; leave {field} out",
            param=field,
        )
