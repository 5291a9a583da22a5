"""How the V1 sampler counts the rank of a token's log-probability on a CPU."""

import torch
from vllm.v1.sample.sampler import Sampler

from unlearngate.server.worker.compat import count_ranks_at_once


def test_a_tokens_rank_is_how_many_are_at_least_as_likely_and_nothing_is_compiled(seed):
    count_ranks_at_once()
    rng = torch.Generator().manual_seed(seed)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for num_rows, vocab_size in ((1, 7), (5, 1000)):
        logprobs_RV = torch.randint(-9, 0, (num_rows, vocab_size), generator=rng).float()  # many are alike
        token_R = torch.randint(vocab_size, (num_rows,), generator=rng)
        found = Sampler.gather_logprobs(logprobs_RV, 2, token_R)
        expected = [int((row_V >= row_V[token]).sum()) for row_V, token in zip(logprobs_RV, token_R, strict=True)]
        assert found.selected_token_ranks.tolist() == expected, f"seed {seed}"
        assert found.selected_token_ranks.dtype == torch.int64
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
