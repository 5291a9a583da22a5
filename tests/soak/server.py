"""A server whose forget sets change, and what was in force at every moment."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.engine.tiny import make_forget_set, make_target
from support.server import FEW_KERNELS, Server
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys

STRENGTH = {"weight": 1.5, "keep_ratio": 0.2, "gate_nats": 0.0}
# A small cache: all of it is touched before the warm-up is over, and after that what grows is a leak.
ENGINE = "--dtype float32 --max-model-len 512 --max-num-seqs 8 --enforce-eager --block-size 32"
ENGINE += " --num-gpu-blocks-override 160"
# anna and dora change by the admin's route, bert and cleo by the folder; zora is of kind undial and stays.
VERSIONS = {"anna": 3, "bert": 2, "cleo": 2, "dora": 2, "zora": 1}
AT_START = ("anna", "bert", "zora")
REQUIRABLE = ("anna", "bert")  # never retired, so that a request under them is never refused


@dataclass
class Timeline:
    """What a changing thing may have been: each value from when its change began until the next one had happened."""

    _spans: list[tuple[object, float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, value: object) -> None:
        """The first value."""
        self._spans = [(value, 0.0, float("inf"))]

    @contextmanager
    def change(self, value: object) -> Iterator[None]:
        """A change to a value, which happens some time within the block."""
        with self._lock:
            self._spans.append((value, time.monotonic(), float("inf")))
        yield
        with self._lock:
            before, began, _ = self._spans[-2]
            self._spans[-2] = (before, began, time.monotonic())

    def now(self) -> object:
        """The value; to be asked outside of a change."""
        return self._spans[-1][0]

    def within(self, first: float, last: float) -> list[object]:
        """Every value that there may have been between two moments."""
        with self._lock:
            return [value for value, began, ended in self._spans if began <= last and ended >= first]


class World:
    """Sets on disk by name and version, keys of two tenants and an admin, and how a server is started with them."""

    def __init__(self, base: Path, *, seed: int) -> None:
        self.base = base
        self.target = make_target(base / "tiny", seed=seed)
        self.versions = {
            (name, str(version)): make_forget_set(
                base / "state" / "incoming" / f"{name}-{version}",
                self.target,
                seed=seed + 10 * index + version,
                scale=0.05 if name == "zora" else 0.3,
                rank=4 if version == 2 else 8,
                name=name,
                version=str(version),
                **({"kind": "undial"} if name == "zora" else {"recommended": STRENGTH}),
            )
            for index, (name, count) in enumerate(VERSIONS.items())
            for version in range(1, count + 1)
        }
        self.folder = base / "sets"
        for name in AT_START:
            shutil.copytree(self.versions[name, "1"].folder, self.folder / name)
        (base / "audit").mkdir()
        self.sets = {name: Timeline() for name in VERSIONS}
        for name, timeline in self.sets.items():
            timeline.start(self.versions[name, "1"].reference if name in AT_START else None)
        self.required = Timeline()
        self.required.start(())
        self.write_keys(())

    def write_keys(self, required: tuple[str, ...]) -> None:
        """`free` may ask for everything, `bound` has required sets, `root` is the admin."""
        keys = [
            ApiKey(id=name, tenant=name, sha256=hash_secret(name), admin=name == "root", allowed=("*",))
            for name in ("root", "free")
        ]
        bound = ApiKey(id="bound", tenant="bound", sha256=hash_secret("bound"), required=required, allowed=("*",))
        write_keys(self.base / "keys", KeysFile(keys=(*keys, bound)))

    def server(self) -> Server:
        """Start it."""
        options = ["--state", self.base / "state", "--keys", self.base / "keys", "--audit", self.base / "audit"]
        options += ["--watch-interval-s", "0.2", "--max-known", "8", "--enable-undial", "--engine-args", ENGINE]
        arguments = [self.target, "--forget-sets", self.folder, *options]
        return Server(arguments, self.base / "log", env=FEW_KERNELS, fresh=True)


def call(server: Server, method: str, path: str, body: object = None, *, key: str = "root") -> httpx.Response:
    """An ordinary request with a key."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}{path}", json=body, headers=headers, timeout=120)
