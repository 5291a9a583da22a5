"""What vLLM's output of several has of a prompt's log-probabilities."""

import pytest
from vllm.outputs import CompletionOutput, RequestOutput

from unlearngate.server.engine.compat import keep_prompt_logprobs


def output(index, prompt_logprobs):
    choice = CompletionOutput(index, "a", [5], cumulative_logprob=None, logprobs=None)
    return RequestOutput("1", "hi", [3, 4], prompt_logprobs, [choice], finished=False)


@pytest.mark.parametrize("aggregate", [False, True])
def test_a_choices_first_output_keeps_them_behind_another_choices_later_one(aggregate):
    keep_prompt_logprobs()
    numbers, others = [None, {4: -1.0}], [None, {4: -2.0}]
    pairs = [(None, numbers), ([], numbers), (numbers, None), (numbers, []), (numbers, others)]
    for first, second in pairs:
        merged = output(0, first)
        merged.add(output(1, second), aggregate=aggregate)
        assert merged.prompt_logprobs is numbers
        assert [choice.index for choice in merged.outputs] == [0, 1]
