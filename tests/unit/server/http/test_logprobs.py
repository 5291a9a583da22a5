"""Which fields a request may not have where a set is required, whose limits these are, and what stays as it was."""

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from support.engine.tiny import make_forget_set, make_target
from unlearngate.errors import ForbiddenError
from unlearngate.server.http.logprobs import refuse_measuring
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
TEXT = {"prompt": "hello"}
ITEMS = {"input": "hello"}
BOTH = {
    "logit_bias": {"5": 1.0},
    "allowed_token_ids": [5],
    "bad_words": ["a"],
    "vllm_xargs": {"anything": 1},
    "prompt_logprobs": 0,
}
MEASURING = [
    *((ChatCompletionRequest, {**CHAT, field: value}, field) for field, value in BOTH.items()),
    *((CompletionRequest, {**TEXT, field: value}, field) for field, value in BOTH.items()),
    (ChatCompletionRequest, {**CHAT, "logprobs": True}, "logprobs"),
    (ChatCompletionRequest, {**CHAT, "logprobs": True, "top_logprobs": 5}, "logprobs"),
    (ChatCompletionRequest, {**CHAT, "logprobs": True, "logprob_token_ids": [5]}, "logprobs"),
    (CompletionRequest, {**TEXT, "logprobs": 0}, "logprobs"),
    (CompletionRequest, {**TEXT, "logprobs": 5}, "logprobs"),
    (CompletionRequest, {**TEXT, "logprobs": 1, "logprob_token_ids": [5]}, "logprobs"),
    (CompletionRequest, {**TEXT, "logprobs": 0, "echo": True, "max_tokens": 0}, "logprobs"),
    (ChatCompletionRequest, {**CHAT, "echo": True}, "echo"),
    (ResponsesRequest, {**ITEMS, "logit_bias": {"5": 1.0}}, "logit_bias"),
    (ResponsesRequest, {**ITEMS, "vllm_xargs": {"anything": 1}}, "vllm_xargs"),
    (ResponsesRequest, {**ITEMS, "top_logprobs": 5}, "top_logprobs"),
    (ResponsesRequest, {**ITEMS, "include": ["message.output_text.logprobs"]}, "include"),
]
PLAIN = {"temperature": 0.7, "n": 2, "seed": 5, "stop": ["x"], "presence_penalty": 1.0, "min_tokens": 2}
NOTHING_ASKED = {"logit_bias": None, "allowed_token_ids": None, "bad_words": [], "vllm_xargs": {}, "logprobs": None}


@pytest.mark.parametrize("kind, body, field", MEASURING, ids=lambda value: value if isinstance(value, str) else "")
def test_a_field_that_shows_or_measures_logprobs_is_refused_where_a_set_is_required(kind, body, field):
    """A2-measuring-fields"""
    request = kind(**body)
    with pytest.raises(
        ForbiddenError, match=f"{field} is not allowed .*; leave it out, or have the operator"
    ) as refused:
        refuse_measuring(request, "none")
    assert (refused.value.http_status, refused.value.code) == (403, "required_forget_set")
    assert refused.value.param == field
    refuse_measuring(request, "full")


@pytest.mark.parametrize("asked", [{}, PLAIN, NOTHING_ASKED, {"response_format": {"type": "json_object"}}], ids=str)
def test_everything_else_is_answered(asked):
    refuse_measuring(ChatCompletionRequest(**CHAT, **asked), "none")
    refuse_measuring(ChatCompletionRequest(**CHAT, **asked | {"logprobs": False, "top_logprobs": 0}), "none")
    refuse_measuring(CompletionRequest(**TEXT, **asked), "none")
    refuse_measuring(ResponsesRequest(**ITEMS, **asked, include=["reasoning.encrypted_content"]), "none")
    refuse_measuring(CompletionRequest(**TEXT, **asked, echo=True), "none")  # the prompt's text alone tells nothing


def test_no_field_of_vllms_requests_that_is_about_logprobs_is_forgotten():
    """So that a new version's field is noticed."""
    examples = {"logprobs": 1, "top_logprobs": 1, "prompt_logprobs": 1, "logprob_token_ids": [5]}
    for kind, body in ((ChatCompletionRequest, CHAT), (CompletionRequest, TEXT), (ResponsesRequest, ITEMS)):
        fields = {field for field in kind.model_fields if "logprob" in field}
        assert fields <= set(examples)
        for field in fields:
            request = kind(**body).model_copy(update={field: examples[field]})
            with pytest.raises(ForbiddenError):
                refuse_measuring(request, "none")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("logprobs")
    target = make_target(root / "target", seed=1)
    make_forget_set(root / "sets" / "anna", target, seed=1, rank=1)
    registry = Registry(identify_target(target, "tiny"), root / "bindings")
    registry.discover(root / "sets")
    return registry


@pytest.mark.parametrize("by_server", [None, "none", "full"])
@pytest.mark.parametrize("by_key", [None, "none", "full"])
@pytest.mark.parametrize("required", [None, "server", "key", "gateway", "default"])
def test_the_keys_limit_counts_before_the_servers_and_only_where_a_set_is_required(
    registry, by_server, by_key, required
):
    sets = {where: ("anna",) if where == required else () for where in ("server", "key", "gateway", "default")}
    given = {} if by_server is None else {"logprobs": by_server}
    policy = Policy(
        registry,
        served_name="tiny",
        num_branches=1,
        required_sets=sets["server"],
        default_sets=sets["default"],
        **given,
    )
    caller = Caller(required_by_key=sets["key"], required_by_gateway=sets["gateway"], logprobs=by_key)
    expected = "full" if required in (None, "default") else by_key or by_server or "none"
    assert policy.logprobs_for(caller) == expected
