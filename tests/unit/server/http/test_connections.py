"""Heads and trailers that do not end, over real sockets to uvicorn with the smallest application there is."""

import asyncio
import socket
import threading

import pytest
import uvicorn

from support.attacks.raw_http import Connection, chunk, head
from unlearngate.server.http import connections
from unlearngate.server.http.connections import MAX_HEAD_BYTES, GuardedHttp


async def echo(scope, receive, send):
    if scope["path"] == "/refuse":
        refusal = [(b"connection", b"close"), (b"content-length", b"3")]
        await send({"type": "http.response.start", "status": 413, "headers": refusal})
        await send({"type": "http.response.body", "body": b"why"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.5)
    config = uvicorn.Config(echo, http=GuardedHttp, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_an_ordinary_request_is_answered(port):
    with Connection(port) as connection:
        connection.send(head(5) + b"hello")
        assert connection.answer() == (200, b"hello")


def test_many_requests_over_one_connection_are_answered(port):
    one = head(5).replace(b"connection: close\r\n", b"") + b"hello"
    with Connection(port) as connection:
        connection.send(one * 200 + head(3) + b"end")  # together more than one head may have
        received = connection.read_all()
    assert len(one) * 200 > MAX_HEAD_BYTES / 4
    assert received.count(b"200 OK") == 201 and received.endswith(b"end")


def test_a_large_head_is_answered_and_a_larger_one_refused(port):
    for size, status in ((MAX_HEAD_BYTES // 2, 200), (16 * MAX_HEAD_BYTES, 431)):
        with Connection(port) as connection:
            for piece in range(0, size, 1000):
                if not connection.send(b"GET / HTTP/1.1\r\n" if not piece else b"x-a: " + b"a" * 993 + b"\r\n"):
                    break
            connection.send(b"connection: close\r\n\r\n")
            assert connection.answer()[0] == status


def test_one_line_without_an_end_is_refused(port):
    with Connection(port) as connection:
        connection.send(b"GET / HTTP/1.1\r\nx-a: ")
        for _ in range(16):
            connection.send(b"a" * MAX_HEAD_BYTES)
        assert connection.answer()[0] == 431


def test_chunks_of_one_byte_are_a_body_like_any_other(port):
    with Connection(port) as connection:
        connection.send(head(None) + chunk(b"a") * MAX_HEAD_BYTES + chunk(b""))
        assert connection.answer() == (200, b"a" * MAX_HEAD_BYTES)


def test_trailers_and_chunk_extensions_without_an_end_close_the_connection(port):
    for endless in (b"0\r\n" + b"x-a: b\r\n" * MAX_HEAD_BYTES, b"1;" + b"a" * 2**20):
        with Connection(port) as connection:
            connection.send(head(None) + chunk(b"hello"))
            for start in range(0, len(endless), MAX_HEAD_BYTES):
                connection.send(endless[start : start + MAX_HEAD_BYTES])
            assert connection.read_all() == b""


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nx-a: b\r\n"])
def test_a_head_that_does_not_come_is_given_up_also_after_an_answer(port, begun):
    with Connection(port) as connection:
        connection.send(begun)
        assert connection.read_all() == b""
    with Connection(port) as connection:
        connection.send(head(2).replace(b"connection: close\r\n", b"") + b"ok" + begun)
        assert connection.read_all().endswith(b"ok")


def test_a_connection_without_a_request_is_kept_longer_than_a_head_may_take(port):
    kept = head(2).replace(b"connection: close\r\n", b"") + b"ok"
    with Connection(port) as connection:
        connection.send(kept)
        threading.Event().wait(1.5)  # uvicorn's keep-alive, 5 s here, is the limit
        connection.send(head(3) + b"end")
        assert connection.read_all().endswith(b"end")


def test_a_body_may_take_longer_than_a_head(port):
    with Connection(port) as connection:
        connection.send(head(10) + b"hello")
        threading.Event().wait(1)
        connection.send(b"hello")
        assert connection.answer() == (200, b"hellohello")


@pytest.mark.parametrize("length", [None, 64 * 2**20])
def test_a_client_that_is_still_sending_gets_the_answer_that_refuses_its_body(port, length):
    """A close would reset the connection, and take the answer away that was not read yet."""
    with Connection(port) as connection:
        connection.send(head(length, "/refuse"))
        threading.Event().wait(0.3)
        for _ in range(64):
            assert connection.send(b"a" * 2**20 if length else chunk(b"a" * 2**20))
        assert connection.answer() == (413, b"why")


def test_what_comes_behind_a_refusal_is_waited_for_a_while(port, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_S", 0.5)
    with Connection(port) as connection:
        connection.send(head(None, "/refuse"))
        assert connection.read_all().endswith(b"why")
        threading.Event().wait(1)
        while connection.send(chunk(b"a")):
            pass
