"""Requests made from the server's own description of its API: each is answered, and as the description says."""

import random

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.demo import MODEL, QUESTION, assert_serves, serve_demo
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys

pytestmark = pytest.mark.e2e

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
LABELS = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/forget_sets",
    "POST /v1/forget_sets",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]
FITTING, NOT_FITTING = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# What has no body has nothing that could not fit.
CASES = [(label, FITTING) for label in LABELS] + [(label, NOT_FITTING) for label in LABELS if "POST" in label]
PROMPTS = {
    "POST /v1/chat/completions": ("messages", [{"role": "user", "content": QUESTION}]),
    "POST /v1/completions": ("prompt", QUESTION),
    "POST /v1/responses": ("input", QUESTION),
}
NO_HANG_S = 60
ADMIN = {"Authorization": "Bearer root"}
seen: set[tuple[str, int]] = set()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The demo, for an admin, who may use every route."""
    base = tmp_path_factory.mktemp("fuzz")
    key = ApiKey(id="root", tenant="t", sha256=hash_secret("root"), admin=True)
    write_keys(base / "keys", KeysFile(keys=(key,)))
    with serve_demo(base, "--keys", str(base / "keys")) as running:
        yield running
        assert_serves(running, ADMIN)


@pytest.fixture(scope="module")
def operations(server):
    """What /openapi.json describes, by method and path."""
    config = schemathesis.Config.from_dict({"cache": {"enabled": False}})
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    return {operation.label: operation for operation in (result.ok() for result in api.get_all_operations())}


def name_the_model(fields):
    """Other models are only so often of interest."""
    if "model" not in fields or len(str(fields["model"])) % 4:
        fields["model"] = MODEL


def make_plausible(body, prompt_field, prompt):
    """A few of the fields that there are, for few tokens, and mostly after a good prompt: or all would be refused."""
    rng = random.Random(str(body))
    for field in rng.sample(sorted(body), max(0, len(body) - rng.choice([0, 0, 1, 2, 4, 6]))):
        if field != prompt_field:
            del body[field]
    name_the_model(body)
    if rng.random() < 0.75:
        body[prompt_field] = prompt
    for field, most in (
        ("max_tokens", 4),
        ("max_completion_tokens", 4),
        ("max_output_tokens", 4),
        ("n", 2),
        ("best_of", 2),
    ):
        if isinstance(body.get(field), int) and body[field] > most:
            body[field] = most
    limit = "max_output_tokens" if prompt_field == "input" else "max_tokens"
    if body.get(limit) is None:
        body[limit] = 4


@pytest.mark.parametrize("label, mode", CASES)
def test_every_request_is_answered_as_described(operations, label, mode, seed):
    """Those that fit the description, and those that do not."""

    @hypothesis.seed(seed)
    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[label].as_strategy(mode))
    def check(case):
        if "{model}" in label and case.path_parameters:
            name_the_model(case.path_parameters)
        if isinstance(case.body, dict) and label in PROMPTS:
            make_plausible(case.body, *PROMPTS[label])
        response = case.call(headers=ADMIN, timeout=NO_HANG_S)
        seen.add((label, response.status_code))
        case.validate_response(response, checks=CHECKS)

    check()


def test_the_description_has_every_route_and_requests_that_fit_were_among_them(operations, print_figures):
    assert sorted(operations) == sorted(LABELS)
    print_figures("fuzz: " + ", ".join(f"{label} {status}" for label, status in sorted(seen)))
    assert {label for label, status in seen if status == 200} >= {*LABELS} - {"POST /v1/forget_sets"}
