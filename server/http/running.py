"""How many requests of one caller the server works on at a time: the engine serves all callers from one queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from unlearngate.errors import TooManyRequestsError


class Running:
    """Requests that are being answered, by API key."""

    def __init__(self, most_per_key: int) -> None:
        """Allow so many at a time for each key, and for all requests without one together; 0: any number."""
        self._most = most_per_key
        self._running: Counter[str | None] = Counter()

    @contextmanager
    def one_of(self, key_id: str | None) -> Iterator[None]:
        """Count a request of this key inside.

        Raises: TooManyRequestsError if the key has as many as it may.
        """
        if self._most and self._running[key_id] >= self._most:
            raise TooManyRequestsError(
                f"this API key has {self._most} requests running, as many as this server takes at a time "
                "(--max-running-per-key): wait for one to end"
            )
        self._running[key_id] += 1
        try:
            yield
        finally:
            self._running[key_id] -= 1
            if not self._running[key_id]:
                del self._running[key_id]
