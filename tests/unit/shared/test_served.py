"""What a command hears of a running server's sets: in force, another target, no server, no key."""

import json
from types import SimpleNamespace

import pytest
from fastapi import Request, Response

from support.chat_endpoint import Played
from unlearngate.errors import UnlearngateError
from unlearngate.served import API_KEY_VARIABLE, ServedSets

OURS = SimpleNamespace(model_id="mine", weights_digest="a" * 64)


@pytest.fixture
def broken():
    """Which of the endpoint's answers are broken off."""
    return []


@pytest.fixture
def endpoint(monkeypatch, broken):
    """Lists sets to whom has the key `k`; from its third answer on the set with digest d2 is current."""
    monkeypatch.setenv(API_KEY_VARIABLE, "k")
    seen = []

    async def forget_sets(request: Request):
        seen.append(request.headers.get("authorization"))
        if seen[-1] != "Bearer k":
            return Response("{}", 401)
        if len(seen) in broken:
            return Response("[", media_type="application/json")
        versions = [{"digest": "d1"}, {"digest": "d2", "current": len(seen) > 2}]
        target = {"model_id": "theirs", "weights_digest": "a" * 64}
        engine = {"assistant_tap": 27, "assistant_layers": 3 * (len(seen) < 5), "max_rank": 16}
        return {"data": [{"digest": "d1", "versions": versions}], "target": target, "engine": engine}

    with Played() as played:
        played.server.config.app.get("/v1/forget_sets")(forget_sets)
        yield played.url.removesuffix("/v1")


def test_a_set_is_waited_for_until_it_is_current_also_over_a_restart(endpoint, broken):
    broken.append(2)
    served = ServedSets(f"{endpoint}/")
    assert served.wait_for(SimpleNamespace(digest="d2", reference="a@d2"), most_s=30) > 0
    with pytest.raises(UnlearngateError, match=r"does not have a@d3 in force after 0 s.*: it watches another"):
        served.wait_for(SimpleNamespace(digest="d3", reference="a@d3"), most_s=0)


def test_another_target_is_refused(endpoint):
    ServedSets(endpoint).refuse_other_target(OURS)
    with pytest.raises(UnlearngateError, match=r"serves another target .theirs, weights aaaaaaaaaaaa. than mine"):
        ServedSets(endpoint).refuse_other_target(SimpleNamespace(model_id="mine", weights_digest="b" * 64))


def test_a_set_that_the_engine_could_not_take_is_refused_before_it_is_trained(endpoint):
    served = ServedSets(endpoint)
    served.refuse_unfit(tap_layer=27, num_layers=3, rank=16)
    advice = "restart it with --assistant-layers 3 --assistant-tap 27 --max-rank 32"
    was = "it was started for 3 layers from layer 27 on and a rank of at most 16, and the set will have 3 from 27 on"
    with pytest.raises(UnlearngateError, match=f"{was} and rank 32; {advice}"):
        served.refuse_unfit(tap_layer=27, num_layers=3, rank=32)
    for tap_layer, num_layers in ((0, 3), (27, 1)):
        with pytest.raises(UnlearngateError, match=f"--assistant-layers {num_layers} --assistant-tap {tap_layer} "):
            served.refuse_unfit(tap_layer=tap_layer, num_layers=num_layers, rank=8)
    with pytest.raises(UnlearngateError, match="started for no assistants at all"):
        served.refuse_unfit(tap_layer=27, num_layers=3, rank=16)


def test_no_key_and_no_server_are_sentences(endpoint, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE)
    with pytest.raises(UnlearngateError, match=f"answers 401 .*; set {API_KEY_VARIABLE} to an API key"):
        ServedSets(endpoint).cards()
    for url in ("http://127.0.0.1:9", "nowhere", "http://localhost:abc"):
        with pytest.raises(UnlearngateError, match=f"{url} does not answer as an unlearngate server would"):
            ServedSets(url).cards()


def test_the_key_is_neither_shown_nor_sent_elsewhere(endpoint, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "k\n")
    assert ServedSets(endpoint).cards()  # as `cat key.txt` gives it
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-secret\nx")
    with pytest.raises(UnlearngateError, match="holds no API key") as refused:
        ServedSets(endpoint).cards()
    assert "secret" not in str(refused.value)
    monkeypatch.setenv(API_KEY_VARIABLE, "k")
    heard = []
    with Played() as elsewhere, Played() as redirecting:
        elsewhere.server.config.app.get("/v1/forget_sets")(lambda: heard.append(1))
        to = f"{elsewhere.url}/forget_sets"
        redirecting.server.config.app.get("/v1/forget_sets")(lambda: Response("", 302, {"location": to}))
        with pytest.raises(UnlearngateError, match=f"answers 302 Found to {to}; give that address"):
            ServedSets(redirecting.url.removesuffix("/v1")).cards()
    assert not heard


def test_a_purge_is_noted_or_the_servers_sentence_said(endpoint, monkeypatch):
    heard = []

    async def change(request: Request):
        heard.append(await request.json())
        if request.headers["authorization"] != "Bearer k":
            return Response(json.dumps({"error": {"message": "an admin's key is needed"}}), 403)
        return {}

    with Played() as played:
        played.server.config.app.post("/v1/forget_sets")(change)
        served = ServedSets(played.url.removesuffix("/v1"))
        served.note_purge("ada", "5e" * 32)
        assert heard == [{"action": "purged", "name": "ada", "case": "5e" * 32}]
        monkeypatch.setenv(API_KEY_VARIABLE, "other")
        with pytest.raises(UnlearngateError, match=f"answers 403 .*: an admin's key is needed; set {API_KEY_VARIABLE}"):
            served.note_purge("ada", "5e" * 32)
