"""Which requests ask for log-probabilities of their prompt: those for which vLLM's own parameters do."""

from itertools import product

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from unlearngate.server.http.scoring import scoring_field

ROUTES = {
    "chat": (ChatCompletionRequest, {"messages": [{"role": "user", "content": "hello"}]}, [None, False, True]),
    "completions": (CompletionRequest, {"prompt": "hello"}, [None, 0, 3]),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_asks_if_vllms_parameters_have_them(route):
    kind, body, logprobs = ROUTES[route]
    asked = 0
    for prompt_logprobs, echo, value in product([None, 0, 3], [False, True], logprobs):
        request = kind(**body, prompt_logprobs=prompt_logprobs, echo=echo, logprobs=value)
        field = scoring_field(request)
        assert (field is not None) == (request.to_sampling_params(16, {}).prompt_logprobs is not None)
        assert field in (None, "prompt_logprobs" if prompt_logprobs is not None else "echo")
        asked += field is not None
    assert 0 < asked < 18
