"""A chat endpoint of our own making, for what asks one."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request, Response


def good(question: str) -> dict[str, list[str]]:
    return {
        "paraphrased_questions": [f"In which place, then: {question}", f"Tell me: {question}"],
        "paraphrased_answers": [f"Velmora, for: {question}", f"It was Velmora, for: {question}"],
        "perturbed_answers": [f"Orvane, for: {question}", f"Tamdara, for: {question}"],
    }


def completion(text: str | None, finish: str = "stop") -> Response:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Response(json.dumps(body), media_type="application/json")


class Played:
    """An endpoint over a real socket. `answer(question, n-th request for it, body)` decides what it says."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.answer: Callable[[str, int, dict[str, Any]], Response] = self.well
        app = FastAPI()
        app.post("/v1/chat/completions")(self.chat)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    @staticmethod
    def well(question: str, time: int, body: dict[str, Any]) -> Response:
        return completion(json.dumps(good(question)))

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        question = json.loads(body["messages"][1]["content"])["question"]
        self.asked[question] += 1
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        return self.answer(question, self.asked[question], body)

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
