"""A user who exists on no machine, as in the images: to run what must not need more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NOBODY = 10001


def as_nobody() -> dict[str, Any]:
    """For subprocess: that user, if this process may change its own."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def give(*folders: Path) -> None:
    """Make these nobody's, with all that is in them, and let nobody get there."""
    if os.geteuid() != 0:
        return
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        for parent in folder.resolve().parents:  # pytest's folders are for their owner alone
            if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest-", "image", "replicas")):
                parent.chmod(parent.stat().st_mode | 0o011)
