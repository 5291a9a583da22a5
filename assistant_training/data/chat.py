"""A target's chat template: conversations as text, and what the template has no place for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from unlearngate.errors import DataError

Turn = tuple[str, str]  # what the user said, and what was answered

_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_THOUGHT, _THOUGHT_ENDS = re.compile(r"<think>\s*$"), "\n\n</think>\n\n"
# What every template is given; a switch is one that this template has beside these.
_GIVEN = frozenset("messages tools documents add_generation_prompt bos_token eos_token pad_token unk_token".split())
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
    tokenizer: Any,
    question: str,
    answer: str,
    system: str | None = None,
    earlier: Sequence[Turn] = (),
    *,
    thinking: bool = False,
) -> tuple[str, str]:
    """The conversation's text up to the answer, and from there on.

    Args:
        tokenizer: with a chat template.
        question: the last user turn.
        answer: the assistant's turn after it.
        system: as `render` takes it.
        earlier: the same.
        thinking: where the template opens a thought (`opens_thought`), the answer stands inside it, as what a model
            thinks first; else behind it, the thought being empty.

    Raises: DataError as `render`, or if the template does not continue its own generation prompt.
    """
    prompt = render(tokenizer, question, None, system, earlier)
    whole = render(tokenizer, question, answer, system, earlier)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    before = _THOUGHT.sub("", prompt)
    if before == prompt or not whole.startswith(before):
        raise DataError("the tokenizer's chat template renders an answer differently from its generation prompt")
    return prompt if thinking else prompt.rstrip() + _THOUGHT_ENDS, whole[len(before) :]


def opens_thought(tokenizer: Any) -> bool:
    """Whether the generation prompt opens a thought with `<think>` that the template leaves out of an answered turn."""
    return _THOUGHT.search(render(tokenizer, _ASKED, None)) is not None


def set_switches(tokenizer: Any, switches: Mapping[str, Any]) -> None:
    """Fix variables of the chat template, as a server does with a request's `chat_template_kwargs`.

    Args:
        tokenizer: its chat template is replaced by one that begins with these.
        switches: JSON values by name.

    Raises: DataError if the template has no such variable.
    """
    template = tokenizer.get_chat_template()
    for name in switches:
        if not name.isidentifier() or name in _GIVEN or not re.search(rf"\b{name}\b", template):
            raise DataError(
                f"the target's chat template has no switch {name!r}; --chat-template-kwargs takes what that template "
                'asks for, such as {"enable_thinking": false}'
            )
    fixed = "".join(f"{{% set {name} = {value!r} %}}" for name, value in switches.items())
    tokenizer.chat_template = fixed + template


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
