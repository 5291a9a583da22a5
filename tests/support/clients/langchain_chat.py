"""Ask through LangChain and print what came back as JSON. Usage: python langchain_chat.py URL QUESTION SET"""

import json
import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """Somebody whom a question is about."""

    name: Literal["Tobias Renkel", "Imke Verhoeven"]
    alive: bool


def main(url: str, question: str, forget_set: str) -> dict[str, Any]:
    """The same question in every way that LangChain has of naming a set, and of taking an answer."""
    forgetting = {"forget_sets": [forget_set]}

    def model(name: str = "demo", **more: Any) -> ChatOpenAI:
        more = {"temperature": 0, "max_retries": 0, "include_response_headers": True, "stream_usage": True, **more}
        return ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=name, **more)

    # This target has never seen JSON: without the penalty it might prefer white space for ever.
    steady = model(extra_body=forgetting, frequency_penalty=2)
    calling = steady.bind_tools([Person], tool_choice="Person", strict=True, parallel_tool_calls=False)
    return {
        "plain": _told(model().invoke(question)),
        "plain streamed": _joined(list(model().stream(question))),
        "by the model": _told(model(extra_body=forgetting).invoke(question)),
        "by the model, streamed": _joined(list(model(extra_body=forgetting).stream(question))),
        "by the request": _told(model().invoke(question, extra_body=forgetting)),
        "by the name": _told(model(f"demo:forget={forget_set}").invoke(question)),
        "structured": steady.with_structured_output(Person, method="json_schema").invoke(question).model_dump(),
        "tool calls": [{"name": c["name"], "args": c["args"]} for c in calling.invoke(question).tool_calls],
        "batch": [answer.text for answer in model(extra_body=forgetting).batch([question, question])],
    }


def _told(message: AIMessage) -> dict[str, Any]:
    headers = message.response_metadata["headers"]
    return {"text": message.text, "usage": message.usage_metadata, "in force": headers["x-forget-sets"]}


def _joined(chunks: list[AIMessageChunk]) -> dict[str, Any]:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {**_told(whole), "pieces": sum(bool(chunk.text) for chunk in chunks)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
