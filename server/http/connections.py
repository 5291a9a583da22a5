"""The HTTP protocol of one connection: uvicorn's, with a timeout for heads and a size limit for heads and trailers.

Uvicorn alone collects a head, or the trailers behind a body, of any size, and waits for their end for ever. And it
closes a connection while a refused body is still coming: the system then resets it, and the client may lose the answer
that says why. Here such a close lingers (RFC 9112, 9.6): no more is sent, and for a while what comes is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
HEAD_TIMEOUT_S = 30.0
LINGER_S = 10.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\nconnection: close\r\n\r\n"
    b"The headers are too large.\n"
)


class _Lingering:
    """A connection's transport, whose `close` lingers while the client is still sending."""

    def __init__(self, transport: asyncio.Transport, is_sending: Callable[[], bool]) -> None:
        """Args: is_sending: whether more of a request is to come."""
        self._transport = transport
        self._is_sending = is_sending
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close, at once or after LINGER_S seconds: the client closes earlier, once it has read the answer."""
        if self.is_closing():
            return
        if not self._is_sending() or not self._transport.can_write_eof():  # TLS has no end of one direction
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def close_now(self) -> None:
        """Close without waiting for the client."""
        self._transport.close()


class GuardedHttp(HttpToolsProtocol):
    """Closes a connection whose head is too large or too late, and one whose trailers are too large."""

    transport: _Lingering  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_bytes = 0  # since the last head or piece of a body was complete
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head timer with the connection."""
        super().connection_made(_Lingering(transport, self._is_receiving))  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the head timer with the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes, and time a head that begins; close a connection whose head or trailers are too large."""
        if self.transport.lingers:
            return
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes and self._is_idle() and self._head_timer is None:  # uvicorn's own is for no byte at all
            self._expect_head()
        if self._num_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._is_idle():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
            else:
                self.transport.close_now()  # there is no answer that the client could lose

    def on_headers_complete(self) -> None:
        """Stop the head timer, and count bytes anew."""
        self._num_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count bytes anew: `bodies` limits the body."""
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count bytes anew for the next head."""
        self._num_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the head timer if bytes of the next head are there already; until then uvicorn's keep-alive waits."""
        super().on_response_complete()
        if self._num_bytes and self._is_idle():
            self._expect_head()

    def shutdown(self) -> None:
        """Wait for no client that still sends what nobody reads."""
        if self.transport.lingers:
            self.transport.close_now()
        super().shutdown()

    def _is_receiving(self) -> bool:
        """Whether more of a head or a body is to come."""
        return bool(self._num_bytes) if self.cycle is None else self.cycle.more_body or bool(self._num_bytes)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
