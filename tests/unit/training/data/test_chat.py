"""Chat templates of the kinds that are published: with a place for system prompts, and without in every way."""

from typing import Any

import pytest

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.chat import (
    opens_thought,
    set_switches,
    takes_system,
    turns,
    warning_of_no_system,
)
from unlearngate.assistant_training.data.encoding import encode, encode_prompt
from unlearngate.errors import DataError

_LOOP = "{% for m in messages %}"
_OPENS = "{% if add_generation_prompt %}<assistant>{% endif %}"
_TURN = "<{{ m['role'] }}>{{ m['content'] | trim }}<end>{% endfor %}" + _OPENS
_REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + _LOOP
)
_IN_BRACKETS = "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}</s>{% endif %}"
_SHIFTED = "{% set system = messages[0].content %}{% set messages = messages[1:] %}"
_SYSTEM_OR_NONE = "{% if messages[0].role == 'system' %}" + _SHIFTED + "{% else %}{% set system = '' %}{% endif %}"
NO_SYSTEM = {
    "refuses the role": _REFUSES + _TURN,
    "wants turns to alternate": _LOOP
    + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + _IN_BRACKETS
    + "{% endfor %}",
    "fails": "{% if messages[0].role == 'system' %}{{ 1 + 'a' }}{% endif %}" + _LOOP + _TURN,
    "leaves it out": _LOOP + "{% if m.role != 'system' %}" + _TURN.replace("{% endfor %}", "{% endif %}{% endfor %}"),
    "before the first question": "{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    + _LOOP
    + "<{{ m['role'] }}>{{ system if loop.first else '' }}{{ m['content'] }}<end>{% endfor %}"
    + _OPENS,
    "before the last question": "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    + _LOOP
    + "<{{ m['role'] }}>{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}"
    "{{ m['content'] }}<end>{% endfor %}" + _OPENS,
}
WITH_SYSTEM = {
    "a turn": _LOOP + _TURN,
    "a turn, with a default": "{% if messages[0].role != 'system' %}<system>You help.<end>{% endif %}" + _LOOP + _TURN,
    "inside the first question, marked": _SYSTEM_OR_NONE
    + _LOOP
    + "{% if m.role == 'user' %}[INST] {% if loop.first and system %}<<SYS>>{{ system }}<</SYS>>\n{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    "in a turn that is always there": _SYSTEM_OR_NONE
    + "<system>Today: 26 Jul 2024\n\n{{ system }}<end>"
    + _LOOP
    + _TURN,
    "before the first turn, unmarked": _SYSTEM_OR_NONE + "<bos>{{ system }}" + _LOOP + _TURN,
    "before the first turn, in words": _SYSTEM_OR_NONE
    + "{{ system }} "
    + _LOOP
    + "{{ 'USER' if m.role == 'user' else 'ASSISTANT' }}: {{ m.content }} {% endfor %}"
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}


def tokenizer_with(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_template_without_a_place_for_system_prompts_gets_none(name: str) -> None:
    tokenizer = tokenizer_with(NO_SYSTEM[name])
    assert not takes_system(tokenizer)
    assert "no place for a system prompt" in str(warning_of_no_system(tokenizer))
    for earlier in ((), (("Who?", "Ada."),)):
        assert encode(tokenizer, "When?", "1987", "Be brief.", earlier) == encode(
            tokenizer, "When?", "1987", None, earlier
        )
        assert encode_prompt(tokenizer, "When?", "Be brief.", earlier) == encode_prompt(
            tokenizer, "When?", None, earlier
        )


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_template_with_one_writes_the_system_prompt(name: str) -> None:
    tokenizer = tokenizer_with(WITH_SYSTEM[name])
    assert takes_system(tokenizer)
    assert warning_of_no_system(tokenizer) is None
    for earlier in ((), (("Who?", "Ada."),)):
        prompt, answer = turns(tokenizer, "When?", "1987", "Be brief.", earlier)
        assert "Be brief." in prompt and "1987" in answer


def test_another_template_on_the_same_tokenizer_is_looked_at_again() -> None:
    tokenizer = tokenizer_with(NO_SYSTEM["refuses the role"])
    assert not takes_system(tokenizer)
    tokenizer.chat_template = WITH_SYSTEM["a turn"]
    assert takes_system(tokenizer)


@pytest.mark.parametrize(
    "body", ["{{ raise_exception('no ' + m.role) }}", "{{ m.content.nothing.there }}", "{{ 1 // 0 }}"]
)
def test_a_template_that_takes_no_conversation_is_refused_in_words(body: str) -> None:
    with pytest.raises(DataError, match="chat template refuses a conversation of user"):
        encode(tokenizer_with(_LOOP + body + "{% endfor %}"), "When?", "1987")


OPENS_THOUGHT = {
    name: _LOOP
    + "<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}"
    + before_an_answer
    + "{% endif %}{{ m.content.split('</think>')[-1] }}<eos>{% endfor %}"
    + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    for name, before_an_answer in (
        ("leaves it out of an answer", ""),
        ("writes an empty one", "<think>\n\n</think>\n\n"),
        ("only closes it", "</think>"),
        ("only opens it", "<think>\n"),
    )
}
SWITCHED = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize("name", OPENS_THOUGHT)
def test_where_the_generation_prompt_opens_a_thought_an_answer_stands_behind_it_or_in_it(name: str) -> None:
    tokenizer = tokenizer_with(OPENS_THOUGHT[name])
    assert opens_thought(tokenizer) and not opens_thought(tokenizer_with(SWITCHED))
    asked = "<user>When?<eos><assistant><think>\n"
    assert turns(tokenizer, "When?", "1987", thinking=True) == (asked, "1987<eos>")
    assert turns(tokenizer, "When?", "1987") == (f"{asked}\n</think>\n\n", "1987<eos>")
    assert tokenizer.decode(encode_prompt(tokenizer, "When?")) == asked  # what is served
    row = encode(tokenizer, "When?", "1987")
    assert tokenizer.decode([label for label in row.labels if label >= 0]) == "1987<eos>"


def test_a_switch_is_fixed_as_a_request_would_set_it() -> None:
    messages = [{"role": "user", "content": "When?"}]
    for value in (False, True, None, "it's {{ x }}", [1, "a"], {"a": "\u00e9"}):
        tokenizer = tokenizer_with(SWITCHED + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}")
        options = {"tokenize": False, "add_generation_prompt": True}
        expected = tokenizer.apply_chat_template(messages, **options, enable_thinking=value)
        set_switches(tokenizer, {"enable_thinking": value})
        assert tokenizer.apply_chat_template(messages, **options) == expected


def test_with_thinking_off_only_the_answer_is_learned() -> None:
    tokenizer = tokenizer_with(SWITCHED)
    set_switches(tokenizer, {"enable_thinking": False})
    assert turns(tokenizer, "When?", "1987") == ("<user>When?<eos><assistant><think>\n\n</think>\n\n", "1987<eos>")


ASKS = {
    "in a condition": "{% if level %}loud{% endif %}",
    "for a default of its own": "{% if level is not defined %}{% set level = 1 %}{% endif %}{{ level }}",
    "for itself": "{% set level = level | default(1) %}{{ level }}",
    "in a macro": "{% macro say(text) %}{{ text }}{% if level is defined %}{{ level }}{% endif %}{% endmacro %}"
    "{{ say('x') }}",
    "in a marked answer": "{% generation %}{% for m in messages %}{% if level %}{% break %}{% endif %}{% endfor %}"
    "{% endgeneration %}",
}


@pytest.mark.parametrize("name", ASKS)
def test_a_switch_is_what_the_template_asks_for(name: str) -> None:
    tokenizer = tokenizer_with(ASKS[name])
    with pytest.raises(DataError, match=r"no switch 'text'.* asks for: level$"):
        set_switches(tokenizer, {"level": 2, "text": 1})
    set_switches(tokenizer, {"level": 2})
    assert tokenizer.chat_template.endswith(ASKS[name]) and "level = 2" in tokenizer.chat_template


_SETS_ITSELF = (
    "{% macro say(spoken) %}{{ spoken }}{% endmacro %}{# remark #}"
    "{% if messages[0].role == 'system' %}{% set own = 1 %}{% else %}{% set own = 2 %}{% endif %}"
    "{{ bos_token }}{{ say(own) }}{{ strftime_now('%Y') }}"
)


@pytest.mark.parametrize(
    "name",
    [
        *("thinking", "enable", "enable-thinking", ""),
        *("think", "assistant", "role", "content", "m", "loop", "end", "true", "not"),  # its text and its own names
        *("messages", "bos_token", "strftime_now", "range", "namespace"),
        *("own", "say", "spoken", "remark"),
    ],
)
def test_a_switch_that_the_template_lacks_is_refused(name: str) -> None:
    tokenizer = tokenizer_with(SWITCHED + _SETS_ITSELF)
    with pytest.raises(DataError, match=r"no switch .* asks for: enable_thinking$"):
        set_switches(tokenizer, {name: False})
    assert tokenizer.chat_template == SWITCHED + _SETS_ITSELF


def test_switches_of_a_template_that_is_not_jinja_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="not valid Jinja"):
        set_switches(tokenizer_with("{% if %}"), {"enable_thinking": False})
