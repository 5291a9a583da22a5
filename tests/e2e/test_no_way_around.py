"""Ways around a required forget set at a running server, one row of docs/security.md's table each.

Every answer is judged by an oracle that knows the plain target from Hugging Face. What must be composed is also
compared with the reference, token for token. The rows are in support/attacks/leak_attempts.py, or in a docstring.
"""

import hashlib
import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from vllm.entrypoints.launchers.app import build_app
from vllm.tasks import FRONTEND_TASKS, GENERATION_TASKS

from support import preloaded
from support.attacks.leak_attempts import (
    BODIES,
    CHAT,
    COMPLETIONS,
    COMPOSED,
    EVERYTHING,
    FIELDS,
    HEADERS,
    PROMPT,
    PROMPTS,
    REFUSED,
    RESPONSES,
    RESPONSES_FIELDS,
    ROUTES,
    SERVED_PATHS,
    SIGNED_PLAIN,
    SPELLINGS,
    TEXT,
)
from support.attacks.leak_oracle import Oracle, logprob_error
from support.engine.reference import NOTHING, Reference, Steering, Term
from support.engine.scored import check_prompt, served_prompts
from support.engine.tiny import EOS, STRENGTH, VOCAB_SIZE, make_forget_set, make_target, make_tokenizer
from support.server import Server
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.engine.compat import parse_engine_arguments
from unlearngate.server.http.requests.responses import _OTHERS as NO_FIELDS
from unlearngate.server.launch import _as_words as as_words

pytestmark = pytest.mark.e2e

ANNA, BERT = Term("anna", 1.5, 0.0), Term("bert", 1.0, 0.0)
KEEP_RATIO = 0.2
heard: list[str] = []


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("around")
    seed = int(os.environ.get("UNLEARNGATE_SEED") or random.SystemRandom().randrange(1, 2**31))
    print(f"UNLEARNGATE_SEED={seed}")
    target = make_target(base / "tiny", seed=seed)
    for index, term in enumerate([ANNA, BERT, Term("cleo", 1.0, 0.0)]):
        strength = {**STRENGTH, "weight": term.weight, "keep_ratio": KEEP_RATIO if term is ANNA else 0.1}
        make_forget_set(base / "sets" / term.name, target, seed=seed + 1 + index, scale=0.3, recommended=strength)
    return base


@pytest.fixture(scope="module")
def reference(folders):
    return Reference(folders / "tiny", {name: folders / "sets" / name for name in ("anna", "bert", "cleo")})


@pytest.fixture(scope="module")
def exact(folders):
    return Reference(folders / "tiny", {"anna": folders / "sets" / "anna"}, dtype=torch.float64)


@pytest.fixture(scope="module")
def oracle(reference):
    return Oracle(reference, PROMPT)


@pytest.fixture(scope="module")
def server(folders):
    """Anna is required, and clients may measure all they can: what they measure must be the composition.

    Fewer combinations are kept than the tests use, so that adapters come and go.
    """
    engine = "--dtype float32 --max-model-len 512 --max-num-seqs 8 --enforce-eager --return-tokens-as-token-ids"
    options = [
        "--required-set",
        "anna",
        "--logprobs",
        "full",
        "--max-loaded",
        "2",
        "--max-known",
        "2",
        "--engine-args",
        engine,
    ]
    arguments = [folders / "tiny", "--forget-sets", folders / "sets", *options]
    with Server(arguments, folders / "log", env={"VLLM_LOGGING_LEVEL": "DEBUG"}, fresh=True) as running:
        yield running.wait_until_healthy()


@pytest.fixture
def post(server, oracle):
    """Send a request; whatever comes back, it must not hold the plain target."""

    def post(path, body, headers=None, method="POST"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        response = httpx.request(method, f"{server.url}{path}", content=content, headers=headers, timeout=120)
        heard.append(response.text)
        assert oracle.leaks(response.text) == []
        return response

    return post


def answers(response):
    """The token ids of every choice, streamed or not."""
    assert response.status_code == 200, response.text
    if not response.text.startswith(("data: ", "event: ")):
        body = response.json()
        if body["object"] == "response":
            return [message["tokens"] for message in body["output_messages"]]
        return [choice["token_ids"] for choice in body["choices"]]
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    if response.text.startswith("event: "):
        return [message["tokens"] for message in events[-1]["response"]["output_messages"]]
    return [[token for e in events for choice in e["choices"] for token in choice.get("token_ids") or []]]


def assert_composed(response, reference, terms=(ANNA,), keep_ratio=KEEP_RATIO, steering=NOTHING):
    assert "anna@" in response.headers["x-forget-sets"]
    for answer in answers(response):
        assert len(answer) == 12
        assert reference.check(PROMPT, answer, list(terms), keep_ratio, 2e-3, steering=steering).wrong == []


# The oracle itself


def test_the_oracle_finds_the_plain_target_in_every_form(post, oracle):
    """And not in the answer that the forms are taken from."""
    chat, text, told = (post(path, body).json() for path, body in BODIES.items())
    plain = {f"token_id:{t}": oracle.rows[len(PROMPT) - 1][t] for t in range(2, 7)}

    def forged(body, path, value):
        body = json.loads(json.dumps(body))
        *owners, last = path
        owner = body["choices"][0]
        for key in owners:
            owner = owner[key]
        owner[last] = value
        return json.dumps(body)

    entries = [{"token": t, "logprob": p, "bytes": []} for t, p in plain.items()]
    prompt = [None, {str(PROMPT[1]): {"logprob": oracle.rows[0][PROMPT[1]]}, "7": {"logprob": oracle.rows[0][7]}}]
    echoed = [None, *(oracle.rows[i][t] for i, t in enumerate(PROMPT[1:]))]
    echo = {"tokens": [f"token_id:{t}" for t in PROMPT], "token_logprobs": echoed, "top_logprobs": [None]}
    entry = {"token": "token_id:1", "logprob": -1.0, "bytes": [], "top_logprobs": entries}
    item = {"type": "message", "content": [{"type": "output_text", "text": "", "logprobs": [entry]}]}
    raw = [{"type": "raw_message_tokens", "message": "", "tokens": oracle.answer}]
    forms = [
        json.dumps({**told, "output": [item], "output_messages": []}),
        json.dumps({**told, "output_messages": raw}),
        f"event: response.completed\ndata: {json.dumps({'response': {**told, 'output_messages': raw}})}\n\n",
        forged(text, ["token_ids"], [9, *oracle.answer]),
        forged(chat, ["logprobs", "content", 0, "top_logprobs"], entries),
        forged(chat, ["logprobs", "content", 0], {**entries[0], "top_logprobs": []}),
        forged(text, ["logprobs", "top_logprobs", 0], plain),
        forged(text, ["prompt_logprobs"], prompt),
        forged(text, ["logprobs"], echo),
        "".join(f"data: {json.dumps({'choices': [{'token_ids': [t]}]})}\n\n" for t in oracle.answer),
    ]
    if oracle.is_readable:
        words = make_tokenizer().decode(oracle.answer)
        forms += [forged(chat, ["message", "content"], "so " + words), forged(text, ["text"], words)]
        halves = [words[: len(words) // 2], words[len(words) // 2 :]]
        forms += ["".join(f"event: a\ndata: {json.dumps({'delta': half})}\n\n" for half in halves)]
    for said in forms:
        assert oracle.leaks(said) != [], said


# A3: what a client may send


def rows(table):
    return pytest.mark.parametrize("sent, outcome", table.values(), ids=table)


on_every_route = pytest.mark.parametrize("path", BODIES, ids=["chat", "completions", "responses"])


def judge(response, outcome, reference, steering=NOTHING):
    if outcome == COMPOSED:
        assert_composed(response, reference, steering=steering)
    elif outcome == REFUSED:
        assert response.status_code in (400, 403, 404), response.text
        assert set(response.json()) == {"error"}
    else:
        assert response.status_code in (200, 400), response.text
        assert response.status_code == 400 or "anna@" in response.headers["x-forget-sets"]


@on_every_route
@rows(FIELDS)
def test_no_field_reaches_the_plain_target(post, reference, path, sent, outcome):
    body = {**BODIES[path], **sent}
    if path == CHAT and "logprobs" in sent:
        body["logprobs"] = True
    if path == RESPONSES and set(sent) & set(NO_FIELDS):
        outcome = REFUSED
    steering = Steering(min_tokens=sent.get("min_tokens", 0), end_ids=[EOS])
    judge(post(path, body), outcome, reference, steering)


@rows(RESPONSES_FIELDS)
def test_no_field_of_responses_reaches_the_plain_target(post, reference, sent, outcome):
    for more in ({}, {"stream": True}):
        judge(post(RESPONSES, {**BODIES[RESPONSES], **sent, **more}), outcome, reference)


@rows(PROMPTS)
def test_no_form_of_prompt_reaches_the_plain_target(post, reference, sent, outcome):
    judge(post(COMPLETIONS, {**BODIES[COMPLETIONS], "prompt": sent}), outcome, reference)


@on_every_route
@rows(SPELLINGS)
def test_no_spelling_of_a_body_reaches_the_plain_target(post, reference, path, sent, outcome):
    judge(post(path, b"{" + sent.encode() + json.dumps(BODIES[path]).encode()[1:]), outcome, reference)


@on_every_route
@rows(HEADERS)
def test_no_header_reaches_the_plain_target(post, reference, path, sent, outcome):
    judge(post(path, BODIES[path], sent), outcome, reference)


@pytest.mark.parametrize("prompt", [PROMPT, TEXT, [PROMPT, PROMPT[:9], PROMPT]], ids=["ids", "text", "several"])
@pytest.mark.parametrize(
    "asked", [{"prompt_logprobs": 5}, {"echo": True}, {"echo": True, "max_tokens": 0}, {"echo": True, "n": 2}], ids=str
)
def test_logprobs_of_the_prompt_are_composed(post, exact, asked, prompt):
    """A2-prompt-logprobs: at every position; no bias, temperature or penalty of the client's is in them."""
    steering = {"logit_bias": {"7": 50}, "repetition_penalty": 1.5, "temperature": 0.3, "seed": 1}
    response = post(COMPLETIONS, {**BODIES[COMPLETIONS], **steering, "prompt": prompt, **asked})
    assert response.headers["x-prompt-logprobs-mode"] == response.json()["prompt_logprobs_mode"] == "scoring"
    prompts = prompt if prompt[0] == PROMPT else [PROMPT]
    scored = served_prompts(response.json())
    assert len(scored) == len(prompts) * asked.get("n", 1)
    for number, served in enumerate(scored):
        verdict = check_prompt(exact, prompts[number // asked.get("n", 1)], served, 5, [ANNA], KEEP_RATIO, (1e-4, 1e-3))
        assert verdict.wrong == []
        assert verdict.composed == verdict.positions > verdict.undecided


def test_more_sets_never_replace_the_required_one(post, reference):
    """A3-other-sets"""
    response = post(COMPLETIONS, {**BODIES[COMPLETIONS], "forget_sets": ["bert"]})
    assert_composed(response, reference, [ANNA, BERT])


def adapter_name(server, *names):
    """VLLM's name for the adapter, which no client is told: made from the sets' digests."""
    known = {s["id"]: s["digest"] for s in httpx.get(f"{server.url}/v1/forget_sets").json()["data"]}
    return f"unlearngate/{hashlib.sha256(chr(10).join(known[n] for n in names).encode()).hexdigest()[:32]}"


def test_an_adapters_own_name_is_no_model(server, post, reference):
    """A3-model-adapter-name, while the adapter is loaded."""
    assert_composed(post(CHAT, BODIES[CHAT]), reference)
    for path, body in BODIES.items():
        assert post(path, {**body, "model": adapter_name(server, "anna")}).status_code == 404


def test_a_content_part_cannot_choose_an_adapter(server, post, reference):
    """A3-content-part-type: vLLM takes an adapter by that name for a modality's."""
    for part in (adapter_name(server, "anna"), adapter_name(server, "anna", "bert"), "unlearngate"):
        content = [{"type": part, "text": "hello"}]
        assert post(CHAT, {**BODIES[CHAT], "messages": [{"role": "user", "content": content}]}).status_code == 400


def test_what_is_served_is_the_composition_and_nothing_else(post, oracle, seed):
    """A2-processed-logprobs, A2-order: client's bias, then the composition, then penalties, as the formula says."""
    rng = random.Random(seed)
    for _ in range(5):
        bias = {rng.randrange(2, VOCAB_SIZE): rng.uniform(-10, 10) for _ in range(5)}
        repetition = rng.uniform(0.5, 2)
        steering = {"logit_bias": {str(t): b for t, b in bias.items()}, "repetition_penalty": repetition}
        body = {**BODIES[CHAT], "top_logprobs": 20, "max_tokens": 1, **steering}
        top = post(CHAT, body).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        served = {int(t["token"].removeprefix("token_id:")): t["logprob"] for t in top}
        assert len(served) == 20
        assert logprob_error(oracle.composed([ANNA], KEEP_RATIO, bias, repetition), served) < 5e-3, f"seed {seed}"


def test_adapters_that_come_and_go_stay_their_own(post, reference):
    """P7-eviction: three combinations where two are kept, their ids and the prefix cache's blocks used again."""
    cleo = Term("cleo", 1.0, 0.0)
    for sets, terms in [(["bert"], [ANNA, BERT]), (["cleo"], [ANNA, cleo]), (None, [ANNA])] * 3:
        response = post(COMPLETIONS, {**BODIES[COMPLETIONS], "forget_sets": sets})
        assert_composed(response, reference, terms)


def test_requests_of_one_id_stay_their_own(post, reference):
    """A3-request-id-shared: at the same time, with different sets in force."""
    body = {**BODIES[COMPLETIONS], "request_id": "one"}
    with ThreadPoolExecutor(8) as pool:
        bodies = [{**body, "forget_sets": [["bert"], None][i % 2]} for i in range(16)]
        several = list(pool.map(lambda sent: post(COMPLETIONS, sent), bodies))
    for index, response in enumerate(several):
        assert_composed(response, reference, [[ANNA, BERT], [ANNA]][index % 2])


# A4: routes


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_no_other_route_exists(post, routes):
    for route in routes:
        method, path = route.split()
        assert post(path, EVERYTHING, method=method).status_code in (404, 405), route


def test_no_route_that_vllm_could_register_exists(post, folders, monkeypatch):
    """A4-every-route: read from vLLM's own application, made with everything switched on."""
    for variable in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API"):
        monkeypatch.setenv(variable, "1")
    args = parse_engine_arguments(["--model", str(folders / "tiny")])
    args.tokens_only = args.enable_scale_out = args.enable_fault_tolerance = True
    routes = [r for r in build_app(args, (*GENERATION_TASKS, *FRONTEND_TASKS)).routes if r.path not in SERVED_PATHS]
    assert len(routes) > 50
    for route in routes:
        for method in getattr(route, "methods", None) or ["GET"]:
            assert post(route.path, EVERYTHING, method=method).status_code in (404, 405), route.path


def test_vllms_own_programs_over_our_model_class_answer_nothing(folders, reference):
    """A4-run-batch: our options and even our key, but not our HTTP layer."""
    branches = BranchOptions("LlamaForCausalLM", 0, 2, num_branches=1)
    options = engine_options(branches, max_rank=8, max_loaded=1, max_known=1)
    requests = [{"url": CHAT, "body": BODIES[CHAT]}, {"url": CHAT, "body": {**BODIES[CHAT], "use_beam_search": True}}]
    lines = [json.dumps({"custom_id": str(i), "method": "POST", **r}) for i, r in enumerate(requests)]
    (folders / "in.jsonl").write_text("\n".join(lines))
    words = ["-i", folders / "in.jsonl", "-o", folders / "out.jsonl", "--model", folders / "tiny"]
    words += ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
    for name, value in options.items():
        words += as_words("--" + name.replace("_", "-"), value)
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    run = preloaded.run("vllm.entrypoints.launchers.run_batch", words, folders / "batch.log", env)
    assert run.wait(timeout=180) == 0, (folders / "batch.log").read_text()[-3000:]
    answers = [json.loads(line) for line in (folders / "out.jsonl").read_text().splitlines()]
    assert len(answers) == 2
    assert all("composition token" in json.dumps(a) for a in answers)
    assert Oracle(reference, PROMPT).leaks((folders / "out.jsonl").read_text()) == []


# A1: what was shown


def test_no_token_and_no_adapter_name_was_ever_shown(server):
    """A1-token-shown: in nothing that the tests above were answered, and in no line of the most talkative log."""
    token = re.compile(r"[\w=-]{16,}\.[0-9a-f]{64}")
    assert token.search(SIGNED_PLAIN)
    assert len(heard) > 50 and "DEBUG" in server.log
    assert [said for said in heard if token.search(said) and SIGNED_PLAIN not in said] == []
    assert token.search(server.log) is None
    assert not any(adapter_name(server, "anna") in said for said in heard if '"choices"' in said)
