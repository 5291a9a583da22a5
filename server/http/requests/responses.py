"""What `/v1/responses` takes of OpenAI's body: what can be answered from the body alone, with nothing kept.

vLLM's handler reads the first part of an assistant's message or of a thought, and drops the others. It passes over
fields of other routes, and over some of OpenAI's. Here the parts are joined, and such fields are refused.
"""

from __future__ import annotations

from typing import Any

from unlearngate.server.http.requests.shapes import read_part, wrong

_NOT_KEPT = "nothing is kept here between requests"
# OpenAI's fields that ask for what this server does not do, unless they are null or what is named here, and why.
_NOT_DONE: dict[str, tuple[Any, str]] = {
    "store": (False, f"{_NOT_KEPT}: leave it out, or send false"),
    "background": (False, f"{_NOT_KEPT}, so an answer is given to its request: leave it out, or send false"),
    "background_options": (None, f"{_NOT_KEPT}, so an answer is given to its request: leave it out"),
    "previous_response_id": (None, f"{_NOT_KEPT}: send the earlier turns in input"),
    "conversation": (None, f"{_NOT_KEPT}: send the earlier turns in input"),
    "previous_input_messages": ([], "vLLM reads it for gpt-oss alone: send the earlier turns in input"),
    "prompt": (None, f"{_NOT_KEPT}, so there are no prompt templates: send instructions and input"),
    "context_management": ([], "turns are not compacted here: send fewer of them in input"),
    "access_programs": (None, "this server has none: leave it out"),
    "image": (None, "this server makes no images: leave it out"),
    "moderation": (None, "this server moderates nothing: leave it out"),
}
# Fields of chat and text completions that vLLM would pass over, and what takes their place.
_OTHERS: dict[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": 'top_logprobs, with include ["message.output_text.logprobs"]',
    "truncate_prompt_tokens": 'truncation "auto"',
    "return_token_ids": "enable_response_messages",
    **dict.fromkeys(
        (
            *("add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "best_of"),
            *("chat_template", "continue_final_message", "documents", "echo", "functions", "function_call"),
            *("length_penalty", "logprob_token_ids", "min_tokens", "n", "prompt_embeds", "prompt_logprobs"),
            *("repetition_detection", "return_prompt_text", "return_token_offsets", "return_tokens_as_token_ids"),
            *("routed_experts_prompt_start", "spaces_between_special_tokens", "stream_interval", "suffix"),
            *("thinking_token_budget", "truncation_side", "use_beam_search"),
        ),
        "",
    ),
}
_ROLES = ("user", "assistant", "system", "developer")
_KINDS = ("message", "function_call", "function_call_output", "reasoning")
_PARTS = {"summary": "summary_text", "content": "reasoning_text"}  # of a thought
_MESSAGE = '{"role": "user", "content": "..."}'
_CALL = '{"type": "function_call", "call_id": "...", "name": "...", "arguments": "{}"}'
_TOOL = '{"type": "function", "name": "...", "parameters": {}}'


def check_response_body(body: Any) -> None:
    """Refuse what is not done, and give the items of `input` a form of which vLLM reads every part.

    Raises: InvalidRequestError that names the field or place, and what belongs there.
    """
    if not isinstance(body, dict):
        return
    for field, (harmless, why) in _NOT_DONE.items():
        if field in body and body[field] is not None and body[field] != harmless:
            raise wrong(field, f"is not served: {why}")
    for field, instead in _OTHERS.items():
        if body.get(field) is not None and body[field] is not False:
            raise wrong(field, f"is no field of /v1/responses: {f'send {instead}' if instead else 'leave it out'}")
    most = body.get("max_output_tokens")
    if isinstance(most, int) and most < 1:
        raise wrong("max_output_tokens", "must be at least 1", most)
    _check_tools(body.get("tools"), body.get("tool_choice"))
    items = body.get("input")
    if isinstance(items, list):
        body["input"] = [_read_item(f"input[{i}]", item) for i, item in enumerate(items)]
        if not items and not body.get("instructions"):
            raise wrong("input", f"must have a message, for example [{_MESSAGE}]", items)


def _check_tools(tools: Any, choice: Any) -> None:
    if tools is not None and not isinstance(tools, list):
        raise wrong("tools", f"must be a list, for example [{_TOOL}]", tools)
    for i, tool in enumerate(tools or ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            why = "the client runs its functions, and this server runs no tools"
            raise wrong(f"tools[{i}].type", f"must be 'function', as in {_TOOL}: {why}", kind)
        if not isinstance(tool.get("name"), str):
            raise wrong(f"tools[{i}].name", f"must be a string, as in {_TOOL}", tool.get("name"))
        tool.setdefault("strict", False)  # both are required of a body, though OpenAI's API takes it without them
        tool.setdefault("parameters", {"type": "object", "properties": {}})
    if isinstance(choice, dict) and choice.get("type") != "function":
        raise wrong("tool_choice", 'must be "none", "auto", "required" or {"type": "function", "name": "..."}', choice)


def _read_item(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise wrong(where, f"must be an object, for example {_MESSAGE}", item)
    kind = item.get("type") or "message"
    if kind not in _KINDS:
        why = f"the items that this server reads are {', '.join(_KINDS)}"
        raise wrong(f"{where}.type", f"is not served: {why}", kind)
    if kind == "message":
        return _read_message(where, item)
    if kind == "reasoning":
        return _read_thought(where, item)
    for field in ("call_id", *(("name", "arguments") if kind == "function_call" else ())):
        if not isinstance(item.get(field), str):
            raise wrong(f"{where}.{field}", f"must be a string, as in {_CALL}", item.get(field))
    return item if kind == "function_call" else {**item, "output": _text_of(f"{where}.output", item.get("output"))}


def _read_message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}, as in {_MESSAGE}", role)
    if isinstance(content, str):
        return item
    if role == "assistant":
        text = {"type": "output_text", "text": _text_of(f"{where}.content", content), "annotations": []}
        return {**item, "type": "message", "content": [text]}
    return {**item, "content": [{**p, "type": "input_text"} for p in _parts_of(f"{where}.content", content)]}


def _read_thought(where: str, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("encrypted_content"):
        raise wrong(f"{where}.encrypted_content", "is not served: send the thought as text, in content")
    read = {**item, "summary": item.get("summary") or []}
    for field, kind in _PARTS.items():
        parts = read.get(field)
        if parts is not None and not isinstance(parts, list):
            raise wrong(f"{where}.{field}", f'must be a list of {{"type": "{kind}", "text": "..."}}', parts)
        for j, part in enumerate(parts or ()):
            if not isinstance(part, dict) or part.get("type") != kind or not isinstance(part.get("text"), str):
                raise wrong(f"{where}.{field}[{j}]", f'must be {{"type": "{kind}", "text": "..."}}', part)
        if parts:
            read[field] = [{"type": kind, "text": "\n".join(part["text"] for part in parts)}]
    return read


def _text_of(where: str, content: Any) -> str:
    """The text of a content that vLLM would read only the first part of; lines between parts, as its templates do."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in _parts_of(where, content))


def _parts_of(where: str, content: Any) -> list[dict[str, str]]:
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list", content)
    return [read_part(f"{where}[{j}]", part) for j, part in enumerate(content)]
