"""What a command hears of a running server's sets: in force, another target, no server, no key."""

from types import SimpleNamespace

import pytest
from fastapi import Request, Response

from support.chat_endpoint import Played
from unlearngate.errors import UnlearngateError
from unlearngate.served import API_KEY_VARIABLE, ServedSets

OURS = SimpleNamespace(model_id="mine", weights_digest="a" * 64)


@pytest.fixture
def endpoint(monkeypatch):
    """Lists sets to whom has the key `k`; its third answer has the set with digest d2."""
    monkeypatch.setenv(API_KEY_VARIABLE, "k")
    seen = []

    async def forget_sets(request: Request):
        seen.append(request.headers.get("authorization"))
        if seen[-1] != "Bearer k":
            return Response("{}", 401)
        versions = [{"digest": "d1"}, *([{"digest": "d2"}] if len(seen) > 2 else [])]
        target = {"model_id": "theirs", "weights_digest": "a" * 64}
        return {"data": [{"digest": "d1", "versions": versions}], "target": target}

    with Played() as played:
        played.server.config.app.get("/v1/forget_sets")(forget_sets)
        yield played.url.removesuffix("/v1")


def test_a_set_is_waited_for_until_one_of_its_versions_is_there(endpoint):
    served = ServedSets(f"{endpoint}/")
    assert served.wait_for(SimpleNamespace(digest="d2", reference="a@d2"), most_s=30) > 0
    with pytest.raises(UnlearngateError, match=r"does not have a@d3 after 0 s: it watches another --forget-sets"):
        served.wait_for(SimpleNamespace(digest="d3", reference="a@d3"), most_s=0)


def test_another_target_is_refused(endpoint):
    ServedSets(endpoint).refuse_other_target(OURS)
    with pytest.raises(UnlearngateError, match=r"serves another target .theirs, weights aaaaaaaaaaaa. than mine"):
        ServedSets(endpoint).refuse_other_target(SimpleNamespace(model_id="mine", weights_digest="b" * 64))


def test_no_key_and_no_server_are_sentences(endpoint, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE)
    with pytest.raises(UnlearngateError, match=f"answers 401 .*; set {API_KEY_VARIABLE} to an API key"):
        ServedSets(endpoint).cards()
    for url in ("http://127.0.0.1:9", "nowhere"):
        with pytest.raises(UnlearngateError, match=f"{url} does not answer as an unlearngate server would"):
            ServedSets(url).cards()
