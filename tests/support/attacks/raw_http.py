"""HTTP by hand over a socket, for what no well-behaved client sends."""

from __future__ import annotations

import json
import select
import socket
import struct
from types import TracebackType

TIMEOUT_S = 60
CHAT = "/v1/chat/completions"


def head(
    length: int | None,
    path: str = CHAT,
    *,
    method: str = "POST",
    content_type: str = "application/json",
    more: str = "",
) -> bytes:
    """A request's head; of a body in chunks for None. `more` holds whole lines."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n{framing}\r\n{more}"
        "connection: close\r\n\r\n"
    ).encode()


def chunk(data: bytes) -> bytes:
    """A piece of a body in chunks; the last one for no data."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def request(body: dict[str, object], path: str = CHAT) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode()
    return head(len(content), path) + content


class Connection:
    """A TCP connection to a server; leaving its `with` block closes it."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT_S)
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.connect(("127.0.0.1", port))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether the server took all of it before it closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def is_readable(self) -> bool:
        """Whether the server has said something, or has closed the connection."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def abort(self) -> None:
        """Close with a reset, as a process that is killed or a network that breaks does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read_all(self) -> bytes:
        """Everything until the server closes the connection."""
        received = b""
        while data := self._read():
            received += data
        return received

    def answer(self) -> tuple[int, bytes]:
        """Status and body, as sent, of a response after which the server closes."""
        received = self.read_all()
        start, _, body = received.partition(b"\r\n\r\n")
        return int(start.split()[1]), body

    def _read(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""
