"""What a running server says of its forget sets, for commands that put sets into the folder that it watches."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from unlearngate.artefact import ForgetSet
from unlearngate.errors import UnlearngateError
from unlearngate.target import TargetIdentity

API_KEY_VARIABLE = "UNLEARNGATE_API_KEY"
_EVERY_S = 0.5


class ServedSets:
    """A server's answer to `GET /v1/forget_sets`, with the API key of the environment variable, if it is set."""

    def __init__(self, url: str) -> None:
        """Args: url: such as http://127.0.0.1:8000."""
        self.url = url.rstrip("/")

    def cards(self) -> list[dict[str, Any]]:
        """The sets that the key may see, one JSON object each.

        Raises: UnlearngateError if the server does not answer.
        """
        cards: list[dict[str, Any]] = self._answer()["data"]
        return cards

    def refuse_other_target(self, identity: TargetIdentity) -> None:
        """Raises: UnlearngateError if the server serves another target than this."""
        target = self._answer().get("target") or {}
        if target.get("weights_digest") != identity.weights_digest:
            raise UnlearngateError(
                f"{self.url} serves another target ({target.get('model_id', 'it does not say which')}, weights "
                f"{target.get('weights_digest', '?')[:12]}) than {identity.model_id}, weights "
                f"{identity.weights_digest[:12]}: give --target the folder that it serves"
            )

    def wait_for(self, forget_set: ForgetSet, *, most_s: float) -> float:
        """Wait until a set is in force there; the seconds that it took.

        Raises: UnlearngateError after `most_s` seconds.
        """
        started = time.monotonic()
        while True:
            waited = time.monotonic() - started
            if any(forget_set.digest == digest for card in self.cards() for digest in _digests(card)):
                return waited
            if waited > most_s:
                raise UnlearngateError(
                    f"{self.url} does not have {forget_set.reference} after {most_s:.0f} s: it watches another "
                    f"--forget-sets folder than this, it refused the set (its log says why), or the key in "
                    f"{API_KEY_VARIABLE} may not see it (an admin's may)"
                )
            time.sleep(_EVERY_S)

    def _answer(self) -> dict[str, Any]:
        key = os.environ.get(API_KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            request = urllib.request.Request(f"{self.url}/v1/forget_sets", headers=headers)
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
                if not isinstance(answer["data"], list):
                    raise ValueError("'data' is no list")
                return answer
        except urllib.error.HTTPError as error:
            hint = f"; set {API_KEY_VARIABLE} to an API key of that server" if error.code in (401, 403) else ""
            raise UnlearngateError(f"{self.url} answers {error.code} {error.reason}{hint}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnlearngateError(f"{self.url} does not answer as an unlearngate server would: {error}") from error


def _digests(card: dict[str, Any]) -> list[str]:
    """Of a set's versions; a key that is no admin's sees the current one."""
    return [card["digest"], *(version["digest"] for version in card.get("versions", []))]
