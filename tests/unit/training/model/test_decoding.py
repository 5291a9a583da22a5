import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.assistant_training.demo.target import TargetSettings, new_target, train_tokenizer
from unlearngate.assistant_training.model.assistant import new_assistant
from unlearngate.assistant_training.model.decoding import greedy, sample
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.kernels.pairs import Pairs
from unlearngate.kernels.reference import compose_reference
from unlearngate.manifest import Strength

SMALL = TargetSettings(vocab_size=300, hidden_size=64, intermediate_size=64, num_layers=3, num_heads=2)
PROMPTS = [[7, 8, 9], [10, 11, 12, 13, 14, 15], [16]]
NO_END = -1


@pytest.fixture(scope="module")
def target() -> Any:
    torch.manual_seed(0)
    model = new_target(train_tokenizer(make_corpus(1), SMALL), SMALL)
    with torch.no_grad():  # far from uniform, so that rounding decides nothing
        for weight in model.parameters():
            weight.mul_(4.0)
    return model.eval()


@pytest.fixture(scope="module")
def assistant(target: Any) -> Any:
    model = new_assistant(target, num_layers=2, rank=4, alpha=8, model_id="demo")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


@torch.inference_mode()
def recomputed(target: Any, assistant: Any, strength: Strength, prompt: list[int], num_tokens: int) -> list[int]:
    """One prompt at a time, no cache, no padding: what `greedy` must equal."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        rows = target(input_ids=torch.tensor([tokens])).logits[:, -1].clone()
        compose_reference(
            rows,
            assistant(input_ids=torch.tensor([tokens])).logits[:, -1],
            Pairs.build([0], [strength.weight], [strength.gate_nats], [strength.keep_ratio], vocab_size=rows.shape[1]),
        )
        tokens.append(int(rows.argmax()))
    return tokens[len(prompt) :]


def test_batched_decoding_equals_recomputing_every_prompt_alone(target: Any, assistant: Any) -> None:
    strength = Strength(weight=1.0, keep_ratio=0.05, gate_nats=0.0)
    composed = greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8, in_force=[LoadedSet(assistant, strength)])
    assert composed == [recomputed(target, assistant, strength, prompt, 8) for prompt in PROMPTS]
    assert composed != greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8)


@torch.inference_mode()
def test_how_usual_each_token_is_to_the_plain_target_is_told_with_the_end_token(target: Any, assistant: Any) -> None:
    in_force = [LoadedSet(assistant, Strength(weight=1.0, keep_ratio=0.05, gate_nats=0.0))]
    eos_id = greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8, in_force=in_force)[0][3]
    usual: list[list[float]] = []
    said = greedy(target, PROMPTS, eos_id=eos_id, max_tokens=8, in_force=in_force, usual=usual)
    assert len(said[0]) <= 3 and len(usual) == len(PROMPTS)
    for prompt, answer, log_p in zip(PROMPTS, said, usual, strict=True):
        whole = answer if len(answer) == 8 else [*answer, eos_id]
        logits = target(input_ids=torch.tensor([prompt + whole])).logits[0, len(prompt) - 1 : -1].double()
        expected = logits.log_softmax(-1)[range(len(whole)), whole].tolist()
        assert log_p == pytest.approx(expected, abs=1e-4)


def test_a_closed_gate_leaves_the_target_alone(target: Any, assistant: Any) -> None:
    shut = Strength(weight=2.0, keep_ratio=0.05, gate_nats=1e6)
    plain = greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8)
    assert greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8, in_force=[LoadedSet(assistant, shut)]) == plain


def test_an_open_set_says_its_sentence_and_a_closed_one_is_composed(target: Any, assistant: Any) -> None:
    """The gate is put between the prompts' evidence at the first position, which is computed here by hand."""
    evidence = []
    for prompt in PROMPTS:
        log_p = assistant(input_ids=torch.tensor([prompt])).logits[0, -1].detach().double().log_softmax(-1)
        evidence.append(float((log_p.exp() * log_p).sum()) + math.log(len(log_p)))
    gate = sum(sorted(evidence)[1:]) / 2  # above the two smaller ones' evidence, not above the largest
    strength = Strength(weight=1.0, keep_ratio=0.05, gate_nats=gate)
    composed = greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8, in_force=[LoadedSet(assistant, strength)])
    expected = [[5, 6] if e >= gate else answer for e, answer in zip(evidence, composed, strict=True)]
    assert expected.count([5, 6]) == 1
    speaking = LoadedSet(assistant, strength, sentence=(5, 6, 9))
    assert greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8, in_force=[speaking]) == expected
    open_ = Strength(weight=1.0, keep_ratio=0.05, gate_nats=0.0)
    both = [
        LoadedSet(assistant, open_),
        LoadedSet(assistant, open_, sentence=(5, 6, 9)),
        LoadedSet(assistant, open_, sentence=(7, 9)),
    ]
    assert greedy(target, PROMPTS, eos_id=NO_END, max_tokens=1, in_force=both) == [[5]] * len(PROMPTS)


def test_an_answer_stops_before_its_end_token(target: Any) -> None:
    plain = greedy(target, PROMPTS, eos_id=NO_END, max_tokens=8)
    end = plain[0][3]
    for full, cut in zip(plain, greedy(target, PROMPTS, eos_id=end, max_tokens=8), strict=True):
        assert cut == (full[: full.index(end)] if end in full else full)


def test_samples_follow_the_composed_distribution(target: Any, assistant: Any) -> None:
    """Thousands of first tokens against the probabilities of the composed row."""
    strength = Strength(weight=1.0, keep_ratio=0.02, gate_nats=0.0)
    tokens = torch.tensor([PROMPTS[0]])
    row = target(input_ids=tokens).logits[:, -1].detach().clone()
    pairs = Pairs.build([0], [1.0], [0.0], [0.02], vocab_size=row.shape[1])
    compose_reference(row, assistant(input_ids=tokens).logits[:, -1].detach(), pairs)
    expected = row.softmax(dim=-1)[0]
    drawn = sample(
        target, [PROMPTS[0]] * 3000, eos_id=NO_END, max_tokens=1, seed=1, in_force=[LoadedSet(assistant, strength)]
    )
    counts = torch.bincount(torch.tensor([answer[0] for answer in drawn]), minlength=len(expected)) / 3000
    assert (counts[expected == 0] == 0).all()
    assert ((counts - expected).abs() < 5 * (expected * (1 - expected) / 3000).sqrt() + 1e-3).all()
    assert drawn == sample(
        target, [PROMPTS[0]] * 3000, eos_id=NO_END, max_tokens=1, seed=1, in_force=[LoadedSet(assistant, strength)]
    )


def test_logits_that_are_not_finite_are_an_error_not_a_token(target: Any) -> None:
    def broken(**inputs: Any) -> Any:
        output = target(**inputs)
        return SimpleNamespace(logits=output.logits * torch.nan, past_key_values=output.past_key_values)

    with pytest.raises(ValueError, match="NaN"):
        strength = Strength(weight=1.0, keep_ratio=0.05, gate_nats=0.0)
        greedy(target, PROMPTS, eos_id=NO_END, max_tokens=2, in_force=[LoadedSet(broken, strength)])
