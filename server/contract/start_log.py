"""The log of a start: what the engine's processes say until the server is up, in a file that a failed start leaves."""

from __future__ import annotations

import logging
from pathlib import Path


class StartLog(logging.FileHandler):
    """Writes to a file that is there, and makes none: when the server is up it deletes the file, and this is silent."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, mode="a", encoding="utf-8", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, if the file is still there."""
        if Path(self.baseFilename).exists():
            super().emit(record)
        else:
            self.close()
