"""Bodies that are too large, too late or no JSON, over the routes as FastAPI has them and no socket."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from unlearngate.server.http import bodies
from unlearngate.server.http.bodies import StrictRoute, read_json, stop_at_first_problem


class Asked(BaseModel):
    items: list[int]
    by_name: dict[str, int] = {}


@pytest.fixture
def app():
    app = FastAPI()
    app.router.route_class = StrictRoute
    app.state.max_body_bytes = 100

    @app.post("/")
    async def total(asked: Asked) -> int:
        return sum(asked.items)

    return app


def post(app, pieces, headers=(), hold=False):
    """Send the body in pieces; with `hold` its end never comes. Returns status, headers and the JSON of the answer."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        if hold:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), *headers], "http_version": "1.1", "scheme": "http",
        "server": ("x", 80), "client": ("y", 1), "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    answer = json.loads(b"".join(m.get("body", b"") for m in sent[1:]))
    return sent[0]["status"], dict(sent[0]["headers"]), answer, messages


def test_a_body_of_the_largest_size_is_read(app):
    body = b'{"items": [1, 2]}'
    assert post(app, [body.ljust(100)])[:3:2] == (200, 3)
    assert post(app, [body[:5], body[5:]])[:3:2] == (200, 3)


def test_a_larger_body_is_refused_and_not_read_on(app):
    status, headers, _, left = post(app, [b" " * 60, b" " * 60, b"{}", b"{}"])
    assert (status, headers[b"connection"], len(left)) == (413, b"close", 2)
    status, headers, _, left = post(app, [b"{}"], headers=[(b"content-length", b"101")])
    assert (status, headers[b"connection"], len(left)) == (413, b"close", 1)


def test_a_body_that_does_not_come_is_given_up(app, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.01)
    status, headers, _, _ = post(app, [b'{"items"'], hold=True)
    assert (status, headers[b"connection"]) == (408, b"close")


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"{", "Expecting property name"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "1e999 is larger"),
        (b"9" * 5000, "4300 digits"),
        (b"[" * 100_000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'"\xff"', "not UTF-8 (byte 1)"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b'"\\ude00\\ud83d"', "half of a surrogate pair"),
    ],
)
def test_what_is_not_json_is_refused_with_a_reason(body, reason):
    with pytest.raises(json.JSONDecodeError) as refused:
        read_json(body)
    assert reason in refused.value.msg


def test_json_is_read_as_it_is(seed):
    value = {"a": [1, -2.5, 1e-3, True, None, "\U0001f600 \u00e9 \x7f"], "": {"b": 12345678901234567890}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        assert read_json(text.encode()) == value
    assert read_json(b'{"a": 1, "a": 2}') == {"a": 2}


def test_validation_ends_at_the_first_wrong_item():
    class Model(BaseModel):
        items: list[int] | list[list[int]] | str = ""
        by_name: dict[str, int] = {}
        type: str = ""

    stop_at_first_problem(Model)
    assert Model.model_validate({"items": [1, 2], "by_name": {"a": 1}}).items == [1, 2]
    for wrong in ({"items": ["a"] * 1000}, {"by_name": dict.fromkeys(map(str, range(1000)), "a")}):
        with pytest.raises(ValidationError) as refused:
            Model.model_validate(wrong)
        assert refused.value.error_count() <= 3
