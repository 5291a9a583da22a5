"""Fluency by hand-computed perplexities, and under a target against its own logits in float64."""

import math

import numpy as np
import pytest
import torch

from support.engine.tiny import make_target
from unlearngate.assistant_training.evaluate.fluency import fluency_ratio, mean_log_p
from unlearngate.assistant_training.model.loaded_target import load_target


def test_the_ratio_is_the_geometric_mean_of_the_perplexities_ratios():
    # Perplexities 8 and 2 of what is said, 2 and 4 of what is usual: ratios 4 and 1/2, whose geometric mean is sqrt(2).
    said, usual = [-math.log(8), -math.log(2)], [-math.log(2), -math.log(4)]
    assert fluency_ratio(said, usual) == pytest.approx(math.sqrt(2))
    assert fluency_ratio(usual, usual) == 1.0
    # Tokens of probabilities 1/2 and 1/8 have the perplexity 4; twice 1/2 has 2.
    assert fluency_ratio([(math.log(1 / 2) + math.log(1 / 8)) / 2], [math.log(1 / 2)]) == pytest.approx(2.0)


@pytest.mark.parametrize("said", [[-1.0], [-1.0, -math.inf], [-1.0, 0.5], []])
def test_what_cannot_be_compared_is_refused(said):
    with pytest.raises(ValueError, match="must be"):
        fluency_ratio(said, [-1.0, -2.0])


def test_an_answers_mean_is_that_of_its_own_tokens_after_its_prompt(seed, tmp_path):
    torch.set_num_threads(1)
    target = load_target(make_target(tmp_path / "target", seed=seed), device="cpu")
    torch.manual_seed(seed)
    prompts, answers = (
        [torch.randint(2, 200, (length,)).tolist() for length in lengths] for lengths in ((5, 9, 3), (4, 1, 12))
    )
    found = mean_log_p(target.model, prompts, answers, pad_id=0, batch_size=2)
    for prompt, answer, mean in zip(prompts, answers, found, strict=True):
        with torch.inference_mode():
            logits_TV = target.model(torch.tensor([prompt + answer])).logits[0].double()
        log_p = [logits_TV[len(prompt) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(answer)]
        assert mean == pytest.approx(np.mean(log_p), rel=1e-4)
