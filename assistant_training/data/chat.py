"""A target's chat template: conversations as text, and what the template has no place for."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from unlearngate.errors import DataError

Turn = tuple[str, str]  # what the user said, and what was answered

_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_THOUGHT, _THOUGHT_ENDS = re.compile(r"<think>\s*$"), "\n\n</think>\n\n"
_NO_THOUGHT = re.compile(r"(<think>\s*)?(</think>\s*)?")  # what a template writes itself before an answer
# What every template is given; a switch is what this template asks for beside these.
_GIVEN = DEFAULT_NAMESPACE.keys() | set(
    "messages tools documents add_generation_prompt continue_final_message raise_exception strftime_now "
    "bos_token eos_token pad_token unk_token sep_token cls_token mask_token".split()
)
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
    before = _THOUGHT.sub("", prompt)
    if not whole.startswith(before):
        raise DataError("the tokenizer's chat template renders an answer differently from its generation prompt")
    said = whole[len(before) :]
    if before == prompt:
        return prompt, said
    return prompt if thinking else prompt.rstrip() + _THOUGHT_ENDS, _NO_THOUGHT.sub("", said, count=1)


def refuse_lost_text(tokenizer: Any) -> None:
    """Refuse a chat template that has no place for the text of a question or of its answer.

    Raises: DataError then, and as `render`.
    """
    text = render(tokenizer, _ASKED, _SAID)
    if lost := [name for name, said in (("question", _ASKED), ("answer", _SAID)) if said not in text]:
        raise DataError(
            f"the tokenizer's chat template loses the {' and the '.join(lost)} of a conversation; a target needs a "
            "chat template that takes turns whose content is plain text, not a list of parts"
        )


def opens_thought(tokenizer: Any) -> bool:
    """Whether the generation prompt opens a thought with `<think>`, for the model to go on with."""
    return _THOUGHT.search(render(tokenizer, _ASKED, None)) is not None


def set_switches(tokenizer: Any, switches: Mapping[str, Any]) -> None:
    """Fix variables of the chat template, as a server does with a request's `chat_template_kwargs`.

    Args:
        tokenizer: its chat template is replaced by one that begins with these.
        switches: JSON values by name.

    Raises: DataError if the template has no such variable.
    """
    if not switches:
        return
    template = tokenizer.get_chat_template()
    asked_for = _asked_for(template)
    for name in switches:
        if name not in asked_for:
            raise DataError(
                f"the target's chat template has no switch {name!r}; --chat-template-kwargs takes what that template "
                f"asks for: {', '.join(sorted(asked_for)) or 'nothing'}"
            )
    fixed = "".join(f"{{% set {name} = {value!r} %}}" for name, value in switches.items())
    tokenizer.chat_template = fixed + template


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template has a place of its own for a system prompt.

    It has none if it refuses one, leaves it out, moves it about, or writes it before the user's words with nothing but
    white space between them.
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


class _Generation(Extension):
    """The tag {% generation %}, which transformers adds to Jinja; here only so that it can be parsed."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _asked_for(template: str) -> set[str]:
    """The variables, beside those always given, that a template reads before it sets them, if it ever does.

    Raises: DataError if it is not valid Jinja.
    """
    try:
        tree = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"]).parse(template)
        undeclared = find_undeclared_variables(tree)
    except TemplateError as error:
        raise DataError(f"the target's chat template is not valid Jinja: {error}") from error
    set_first: dict[str, bool] = {}
    for name in _mentioned(tree):  # Jinja calls undeclared, too, what both branches of an `if` set
        set_first.setdefault(name.name, name.ctx == "store")
    return {name for name in undeclared - _GIVEN if not set_first[name]}


def _mentioned(node: nodes.Node) -> Iterator[nodes.Name]:
    """All mentions of variables in the order of the template, without a macro's own arguments."""
    if isinstance(node, nodes.Name):
        yield node
    parts = list(node.iter_child_nodes())
    own = {part.name for part in parts if isinstance(part, nodes.Name) and part.ctx == "param"}
    for part in reversed(parts) if isinstance(node, nodes.Assign) else parts:  # a value is read before it is set
        yield from (name for name in _mentioned(part) if name.name not in own)


@functools.lru_cache(maxsize=8)
def _takes_system(tokenizer: Any, _template: str) -> bool:
    earlier: Sequence[Turn]
    for earlier in ((), ((f"{_ASKED}-before", f"{_SAID}-before"),)):
        try:
            prompt = _render(tokenizer, _ASKED, None, _SYSTEM, earlier)
            whole = _render(tokenizer, _ASKED, _SAID, _SYSTEM, earlier)
        except _TEMPLATE_ERRORS:
            return False
        places = {prompt.find(_SYSTEM), whole.find(_SYSTEM)}
        mark = prompt[prompt.find(_SYSTEM) + len(_SYSTEM) : prompt.find(_ASKED)].strip()
        if -1 in places or len(places) > 1 or not mark:
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
