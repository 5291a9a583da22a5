"""A token that a request excludes was sampled because nothing was left; others never are refused."""

import random
from types import SimpleNamespace

import pytest

from unlearngate.server.engine.constraints import Constraints


def params(**given):
    fields = {"structured_outputs": None, "allowed_token_ids": None, "bad_words": [], "bad_words_token_ids": None,
              "min_tokens": 0, "all_stop_token_ids": {1}, "thinking_token_budget": None}  # fmt: skip
    return SimpleNamespace(**fields | given)


@pytest.mark.parametrize(
    "given, tokens, at, fields",
    [
        ({}, [0, 1, 2], None, ""),
        ({"allowed_token_ids": [5, 6]}, [5, 6, 5], None, ""),
        ({"allowed_token_ids": [5, 6]}, [5, 7], 1, "allowed_token_ids cannot be kept to"),
        ({"min_tokens": 2}, [5, 6, 1], None, ""),
        ({"min_tokens": 3, "allowed_token_ids": [1]}, [1], 0, "allowed_token_ids and min_tokens contradict each other"),
        ({"bad_words": ["x"], "bad_words_token_ids": [[5], [6, 7]]}, [6, 8, 7], None, ""),
        ({"bad_words": ["x"], "bad_words_token_ids": [[5], [6, 7]]}, [8, 6, 7], 2, "bad_words"),
        ({"bad_words": ["x"], "bad_words_token_ids": [[5]]}, [5], 0, "bad_words"),
        ({"min_tokens": 3, "structured_outputs": "g"}, [5, 1], None, ""),
        ({"allowed_token_ids": [5], "thinking_token_budget": 3}, [7], None, ""),
    ],
)
def test_the_first_excluded_token_is_the_contradiction(given, tokens, at, fields):
    together, one_by_one = Constraints(params(**given)), Constraints(params(**given))
    reason = together.contradiction(tokens)
    assert (reason is None) == (at is None)
    for i, token in enumerate(tokens):
        assert one_by_one.contradiction([token]) == (reason if i == at else None)
    if reason:
        assert reason.startswith(fields) and f"after {at} of" in reason


def test_a_list_of_all_tokens_so_far_is_read_on_from_where_it_was(seed):
    rng = random.Random(seed)
    for _ in range(200):
        words = [[rng.randrange(4) for _ in range(rng.randint(1, 3))] for _ in range(2)]
        tokens = [rng.randrange(4) for _ in range(12)]
        # The reference: vLLM's own rule, over the whole list.
        bad = [i for i in range(12) if any(tokens[: i + 1][-len(w) :] == w for w in words)]
        follower = Constraints(params(bad_words=["x"], bad_words_token_ids=words))
        found = None
        for end in range(3, 13, 3):
            found = found or follower.contradiction(tokens[:end], cumulative=True)
        assert (found is not None) == bool(bad)
        assert not bad or f"after {bad[0]} of" in found


def test_a_grammar_that_breaks_off_is_named_and_without_one_the_request_is_not_to_blame():
    both = Constraints(params(structured_outputs="g", allowed_token_ids=[5]))
    assert both.contradiction([5, 5, 5]) is None
    assert "after 2 of" in both.broken_off()
    assert both.broken_off().startswith("allowed_token_ids and the structured output contradict each other")
    assert (
        Constraints(params(structured_outputs="g")).broken_off().startswith("the structured output cannot be kept to")
    )
    assert Constraints(params(allowed_token_ids=[5])).broken_off() is None
