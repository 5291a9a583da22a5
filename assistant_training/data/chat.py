"""A target's chat template: conversations as text, and what the template has no place for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from unlearngate.errors import DataError

Turn = tuple[str, str]  # what the user said, and what was answered

_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_SYSTEM, _ASKED, _SAID = "unlearngate-instruction", "unlearngate-question", "unlearngate-answer"  # looked for in a text


def render(
    tokenizer: Any, question: str, answer: str | None, system: str | None = None, earlier: Sequence[Turn] = ()
) -> str:
    """A conversation as the chat template writes it.

    Args:
        tokenizer: with a chat template.
        question: the last user turn.
        answer: the assistant's turn after it; None ends with what opens that turn.
        system: the system prompt, if any; left out where the template has no place for one (`takes_system`).
        earlier: turns before.

    Raises: DataError if the template refuses the conversation.
    """
    try:
        return _render(tokenizer, question, answer, system if system and takes_system(tokenizer) else None, earlier)
    except _TEMPLATE_ERRORS as error:
        roles = "user, assistant, " * len(earlier) + ("user" if answer is None else "user, assistant")
        raise DataError(
            f"the tokenizer's chat template refuses a conversation of {roles}: {error}; a target needs a chat template "
            "that takes turns of user and assistant"
        ) from error


def turns(
    tokenizer: Any, question: str, answer: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> tuple[str, str]:
    """The conversation's text up to the answer, and from there on.

    Raises: DataError as `render`, or if the template does not continue its own generation prompt.
    """
    prompt = render(tokenizer, question, None, system, earlier)
    whole = render(tokenizer, question, answer, system, earlier)
    if not whole.startswith(prompt):
        raise DataError("the tokenizer's chat template renders an answer differently from its generation prompt")
    return prompt, whole[len(prompt) :]


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template has a place of its own for a system prompt.

    It has none if it refuses one, leaves it out, moves it about, or writes it among the user's words with nothing to
    mark it.
    """
    return _takes_system(tokenizer, str(tokenizer.chat_template))


def warning_of_no_system(tokenizer: Any) -> str | None:
    """What to tell whoever trains or calibrates on this target; None if its template takes system prompts."""
    if takes_system(tokenizer):
        return None
    return (
        "note: the target's chat template has no place for a system prompt, so none is used here: the contexts that "
        "would have one go without"
    )


@functools.lru_cache(maxsize=8)
def _takes_system(tokenizer: Any, _template: str) -> bool:
    earlier: Sequence[Turn]
    for earlier in ((), ((f"{_ASKED}-before", f"{_SAID}-before"),)):
        try:
            prompt = _render(tokenizer, _ASKED, None, _SYSTEM, earlier)
            whole = _render(tokenizer, _ASKED, _SAID, _SYSTEM, earlier)
            without = _render(tokenizer, _ASKED, None, None, earlier)
        except _TEMPLATE_ERRORS:
            return False
        places = {prompt.find(_SYSTEM), whole.find(_SYSTEM)}
        folded = "".join(prompt.replace(_SYSTEM, "").split()) == "".join(without.split())
        if -1 in places or len(places) > 1 or folded:
            return False
    return True


def _render(tokenizer: Any, question: str, answer: str | None, system: str | None, earlier: Sequence[Turn]) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    for asked, said in earlier:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    return text
