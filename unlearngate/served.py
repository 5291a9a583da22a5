"""What a running server says of its forget sets, for commands that put sets into the folder that it watches."""

from __future__ import annotations

import http.client
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
_WHY_NOT = (
    "it watches another --forget-sets folder, it refused the set (its log says why), or the key in "
    f"{API_KEY_VARIABLE} may not see it (an admin's may)"
)


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

    def refuse_unfit(self, *, tap_layer: int, num_layers: int, rank: int) -> None:
        """Find out before a set of kind `uld` is trained whether the server could take it.

        Raises: UnlearngateError if its engine was started for other layers, or for lower ranks.
        """
        engine = self._answer().get("engine")
        if engine is None:  # a server that does not say
            return
        has = engine["assistant_layers"], engine["assistant_tap"]
        if has != (num_layers, tap_layer) or engine["max_rank"] < rank:
            takes = f"{has[0]} layers from layer {has[1]} on and a rank of at most {engine['max_rank']}"
            raise UnlearngateError(
                f"{self.url} could not take the set: it was started for "
                f"{takes if has[0] else 'no assistants at all'}, and the set will have {num_layers} from {tap_layer} "
                f"on and rank {rank}; restart it with --assistant-layers {num_layers} --assistant-tap {tap_layer} "
                f"--max-rank {rank}"
            )

    def wait_for(self, forget_set: ForgetSet, *, most_s: float) -> float:
        """Wait until a set is in force there; the seconds that it took. A server that does not answer may restart.

        Raises: UnlearngateError after `most_s` seconds.
        """
        started, silent = time.monotonic(), None
        while True:
            waited = time.monotonic() - started
            try:
                if any(forget_set.digest in _current(card) for card in self.cards()):
                    return waited
                silent = None
            except UnlearngateError as error:
                silent = error
            if waited > most_s:
                raise UnlearngateError(
                    f"{self.url} does not have {forget_set.reference} in force after {most_s:.0f} s, though it is in "
                    f"the folder: {silent or _WHY_NOT}"
                )
            time.sleep(_EVERY_S)

    def note_purge(self, name: str, case: str) -> None:
        """Have the audit log there say that the data behind a set were deleted; the key must be an admin's.

        Args:
            name: the set's.
            case: SHA-256 of the record that stays of them.

        Raises: UnlearngateError if it is not noted.
        """
        self._send({"action": "purged", "name": name, "case": case})

    def _answer(self) -> dict[str, Any]:
        answer = self._send()
        try:
            if not all(isinstance(card["digest"], str) for card in answer["data"]):
                raise ValueError("a set without a digest")
        except (ValueError, KeyError, TypeError) as error:
            raise UnlearngateError(f"{self.url} does not answer as an unlearngate server would: {error}") from error
        return answer

    def _send(self, change: dict[str, str] | None = None) -> dict[str, Any]:
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        if not all(33 <= ord(character) < 127 for character in key):
            raise UnlearngateError(f"{API_KEY_VARIABLE} holds no API key: keys are letters, digits and signs of ASCII")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            body = json.dumps(change).encode() if change else None
            headers |= {"Content-Type": "application/json"} if body else {}
            request = urllib.request.Request(f"{self.url}/v1/forget_sets", body, headers)
            with _OPENER.open(request, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            hint = f"; set {API_KEY_VARIABLE} to an API key of that server" if error.code in (401, 403) else ""
            hint = f" to {error.headers.get('location')}; give that address" if error.code in range(300, 400) else hint
            raise UnlearngateError(f"{self.url} answers {error.code} {error.reason}{_said_in(error)}{hint}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnlearngateError(f"{self.url} does not answer as an unlearngate server would: {error}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: another host must not get the API key."""

    def redirect_request(self, *_: Any) -> None:
        """None: it is not followed."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _said_in(error: urllib.error.HTTPError) -> str:
    """The sentence in an OpenAI error body; nothing if there is none."""
    try:
        return f": {json.load(error)['error']['message']}"
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return ""


def _current(card: dict[str, Any]) -> list[str]:
    """The digests of a set that requests get which name no version."""
    return [card["digest"], *(version["digest"] for version in card.get("versions", []) if version.get("current"))]
