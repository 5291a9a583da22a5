"""The API keys in force: read from the keys file, and again whenever it changes.

A new file that cannot be used changes nothing: the last good one stays in force, so a typo never lifts a restriction.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

from prometheus_client import Gauge

from unlearngate.errors import KeysFileError
from unlearngate.files import file_state
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, read_keys

logger = logging.getLogger(__name__)

STALE = Gauge("unlearngate_keys_file_stale", "1 while the keys file cannot be used and the last good one is in force")


class Keyring:
    """Finds a request's key."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises: KeysFileError if it cannot be used.
        """
        self.path = path
        self.problem: str | None = None
        # The state is taken before the content is read: a change in between is then seen by the next refresh.
        self._state = file_state(path)
        self._keys: KeysFile = read_keys(path)

    def keys(self) -> tuple[ApiKey, ...]:
        """All keys in force."""
        self.refresh()
        return self._keys.keys

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, or None. The time taken does not tell which key matched, if any."""
        digest = hash_secret(secret)
        found = None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def refresh(self) -> None:
        """Read the file again if it changed; a broken one leaves the last good one in force and sets `problem`."""
        state = file_state(self.path)
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = read_keys(self.path)
            self.problem = None
            logger.info("keys file %s read again: %d keys", self.path, len(self._keys.keys))
        except KeysFileError as error:
            self.problem = error.message
            logger.error("the keys file changed and cannot be used, the last good one stays in force: %s", error)
        STALE.set(self.problem is not None)
