"""Change what is in force, at random, on a running server."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from soak.server import REQUIRABLE, VERSIONS, World, call

from support.server import Server
from unlearngate.placing import place, remove

_NOTICED_WITHIN_S = 60


class Changes:
    """Each method is one change; it returns when the server has it. `done` counts them."""

    def __init__(self, world: World, server: Server, rng: random.Random) -> None:
        self._world, self._server, self._rng = world, server, rng
        self._ways: list[Callable[[], str]] = [self._replace, self._pin, self._come_or_go, self._folder, self._file]
        self._ways += [self._required]
        self.done: Counter[str] = Counter()

    def one(self) -> None:
        """Some change.

        Raises: RuntimeError if the server refuses it or does not notice it.
        """
        self.done[self._rng.choice(self._ways)()] += 1

    def _replace(self) -> str:
        version = self._other("anna")
        with self._world.sets["anna"].change(self._world.versions["anna", version].reference):
            self._admin("replace", "anna", path=f"anna-{version}")
        return "replaced by an admin"

    def _pin(self) -> str:
        self._admin("pin", "anna")
        digest = str(self._world.sets["anna"].now()).partition("@")[2]
        self._replace()
        self._admin("unpin", "anna", digest=digest)
        return "replaced while pinned"

    def _come_or_go(self) -> str:
        if self._world.sets["dora"].now() is None:
            version = self._rng.choice("12")
            with self._world.sets["dora"].change(self._world.versions["dora", version].reference):
                self._admin("register", "dora", path=f"dora-{version}")
            return "registered by an admin"
        with self._world.sets["dora"].change(None):
            self._admin("retire", "dora")
        return "retired by an admin"

    def _folder(self) -> str:
        if self._world.sets["cleo"].now() is None:
            self._place("cleo", self._rng.choice("12"))
            return "added to the folder"
        with self._world.sets["cleo"].change(None):
            remove(self._world.folder / "cleo")
            self._wait("cleo", None)
        return "removed from the folder"

    def _file(self) -> str:
        self._place("bert", self._other("bert"))
        return "replaced in the folder"

    def _required(self) -> str:
        required = self._rng.choice([(), *((name,) for name in REQUIRABLE)])  # with a request's own, at most two
        with self._world.required.change(required):
            self._world.write_keys(required)
            call(self._server, "GET", "/v1/models")  # read again at the next request
        return "required for a tenant"

    def _other(self, name: str) -> str:
        now = self._world.sets[name].now()
        versions = [str(v) for v in range(1, VERSIONS[name] + 1)]
        return self._rng.choice([v for v in versions if self._world.versions[name, v].reference != now])

    def _place(self, name: str, version: str) -> None:
        chosen = self._world.versions[name, version]
        with self._world.sets[name].change(chosen.reference):
            place(chosen, self._world.folder / name, replace=True)
            self._wait(name, version)

    def _wait(self, name: str, version: str | None) -> None:
        deadline = time.monotonic() + _NOTICED_WITHIN_S
        while time.monotonic() < deadline:
            cards = {card["id"]: card for card in call(self._server, "GET", "/v1/forget_sets").json()["data"]}
            current = [v["version"] for v in cards.get(name, {"versions": []})["versions"] if v["current"]]
            if current == ([] if version is None else [version]):
                return
            time.sleep(0.1)
        raise RuntimeError(f"{name}: version {version} was not noticed in {_NOTICED_WITHIN_S} s")

    def _admin(self, action: str, name: str, **more: str) -> None:
        answer = call(self._server, "POST", "/v1/forget_sets", {"action": action, "name": name, **more})
        if answer.status_code != 200:
            raise RuntimeError(f"{action} {name} {more}: {answer.status_code} {answer.text}")
