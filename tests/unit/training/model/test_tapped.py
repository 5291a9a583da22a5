"""A tapped assistant is the target's later layers: exactly, with and without what it keeps."""

from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress
from transformers import AttentionInterface, AutoModelForCausalLM

from support.engine.tiny import FAMILY_NAMES, make_target
from unlearngate.assistant_training.data.encoding import Encoded, collate, encode, predicting
from unlearngate.assistant_training.model.assistant import adapter_tensors, head, last_hidden, new_assistant
from unlearngate.assistant_training.model.attention import GROUPED
from unlearngate.assistant_training.model.decoding import _SHARED, greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.tapped import beginning_of_most
from unlearngate.errors import TrainingError
from unlearngate.manifest import Strength

PROMPTS = [[5, 9, 30, 7], [8, 8]]


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def target(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = make_target(tmp_path_factory.mktemp("tapped") / "tiny", request.param, seed=9)
    return load_target(folder, device="cpu")


def tapped(target, tap_layer, num_layers):
    return new_assistant(
        target.model, num_layers=num_layers, rank=4, alpha=8, model_id="tiny", tap_layer=tap_layer
    ).eval()


def disturb(assistant):
    """Make the adapter do something."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in assistant.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return assistant


@pytest.fixture
def batch(target):
    rows = [encode(target.tokenizer, f"question {i}?", "a" * (3 * i + 1)) for i in range(3)]
    return collate(rows, target.tokenizer.pad_token_id)


@pytest.mark.parametrize("tap_layer", [1, 2, 3])
def test_untrained_it_ends_as_the_target_does(target, batch, tap_layer):
    assistant = tapped(target, tap_layer, 4 - tap_layer)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        expected, found = target.model(**inputs).logits, assistant(**inputs).logits
    inside = batch.attention_mask.bool()
    assert torch.equal(found[inside], expected[inside])


def logits_of(assistant, input_ids, attention_mask):
    """As training reads them."""
    return head(assistant).logits(last_hidden(assistant, input_ids, attention_mask))


def test_logits_are_hugging_faces_own(target, batch):
    """In float64, where nothing is left out: of torch's attention, for one, Gemma 2's cap is."""
    exact = AutoModelForCausalLM.from_pretrained(
        target.folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    whole = new_assistant(target.model, num_layers=4, rank=4, alpha=8, model_id="tiny").eval()
    with torch.no_grad():
        expected, found = exact(**inputs).logits, logits_of(whole, **inputs)
    inside = batch.attention_mask.bool()
    assert torch.allclose(found[inside].double(), expected[inside], atol=2e-4)


def test_what_is_kept_is_what_would_be_computed(target, batch):
    assistant = disturb(tapped(target, 2, 2))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        expected = assistant(**inputs).logits
        assistant.train()
        first, again = logits_of(assistant, **inputs), logits_of(assistant, **inputs)
        order = [2, 0]
        mixed = logits_of(assistant, batch.input_ids[order], batch.attention_mask[order])
    inside = batch.attention_mask.bool()
    assert torch.allclose(first[inside], expected[inside], atol=1e-5)
    assert torch.equal(first[inside], again[inside])
    assert torch.allclose(mixed[0][inside[2]], expected[2][inside[2]], atol=1e-5)


def test_what_was_kept_beforehand_is_not_computed_again(target, monkeypatch):
    assistant = disturb(tapped(target, 2, 2))
    rows = [encode(target.tokenizer, f"question {i}?", "a" * (5 * i + 1)) for i in range(4)]
    batch = collate(rows, target.tokenizer.pad_token_id)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad(), Progress(disable=True) as progress:
        expected = assistant(**inputs).logits
        monkeypatch.setattr("unlearngate.assistant_training.model.tapped._ROWS", 3)
        assistant.train().keep([row.input_ids for row in (*rows, *rows)], progress)
        monkeypatch.delattr(type(assistant), "_run")
        found = logits_of(assistant, **inputs)
    inside = batch.attention_mask.bool()
    assert torch.allclose(found[inside], expected[inside], atol=1e-4)


def test_what_most_conversations_begin_with_is_computed_once(target, monkeypatch):
    """Also longer than a layer's window; beside a conversation that is only that, and one that begins otherwise."""
    assistant = disturb(tapped(target, 2, 2))
    system = "You answer briefly. " * 3
    rows = [encode(target.tokenizer, f"{i} question?", "a" * (5 * i + 1), system) for i in range(6)]
    rows += [encode(target.tokenizer, "another", "b"), encode(target.tokenizer, "and another", "b", "Be brief.")]
    conversations = [row.input_ids for row in rows]
    shared = beginning_of_most([tuple(ids) for ids in conversations])
    batch = collate([*rows, Encoded(list(shared), list(shared))], target.tokenizer.pad_token_id)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    fed = []
    run = type(assistant)._run

    def counted(self, input_ids, *others, **more):
        fed.append(input_ids.numel())
        return run(self, input_ids, *others, **more)

    with torch.no_grad(), Progress(disable=True) as progress:
        expected = assistant(**inputs).logits
        monkeypatch.setattr("unlearngate.assistant_training.model.tapped._ROWS", 3)
        monkeypatch.setattr(type(assistant), "_run", counted)
        assistant.train().keep([*conversations, list(shared)], progress)
        monkeypatch.delattr(type(assistant), "_run")
        found = logits_of(assistant, **inputs)
    inside = batch.attention_mask.bool()
    assert len(shared) > len(target.tokenizer.encode(system)) and sum(fed) < int(inside.sum()) - 2 * len(shared)
    assert torch.allclose(found[inside], expected[inside], atol=1e-4)


def test_the_beginning_of_most():
    assert beginning_of_most([(1, 2, 3), (1, 2, 4), (5,)]) == (1, 2)
    assert beginning_of_most([(1, 2), (1, 2), (1, 2)]) == (1,)  # they go on from it
    assert beginning_of_most([(1, 2), (3, 4), (5, 6)]) == beginning_of_most([]) == ()


def test_what_a_check_reads_in_a_run_is_kept_too_and_can_be_trained_on(target, batch, monkeypatch):
    assistant = disturb(tapped(target, 2, 2))
    inputs = (batch.input_ids, batch.attention_mask)
    with Progress(disable=True) as progress:
        assistant.train().keep([], progress)
    with torch.inference_mode():
        first = logits_of(assistant.eval(), *(tensor.clone() for tensor in inputs))
        monkeypatch.delattr(type(assistant), "_run")
        assert torch.equal(logits_of(assistant, *inputs), first)
    logits_of(assistant.train(), *inputs).square().mean().backward()


def test_hidden_states_that_are_wanted_and_their_gradients_are_those_of_all_at_once(target, monkeypatch):
    assistant = disturb(tapped(target, 2, 2)).train()
    rows = [encode(target.tokenizer, f"question {i}?", "a" * (7 * i + 1)) for i in range(6)]
    batch = collate(rows, target.tokenizer.pad_token_id)
    read_BT = predicting(batch.labels)
    weights = [weight for weight in assistant.parameters() if weight.requires_grad]

    def computed(*read):
        hidden_NH = last_hidden(assistant, batch.input_ids, batch.attention_mask, *read)[read_BT]
        return hidden_NH, torch.autograd.grad(hidden_NH.square().mean(), weights)

    few, few_gradients = computed(read_BT)
    monkeypatch.setattr("unlearngate.assistant_training.model.assistant._ROWS_ON_CPU", 6)
    all_at_once, gradients = computed()
    assert torch.allclose(few, all_at_once, atol=1e-4)
    for found, expected in zip(few_gradients, gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_only_the_adapter_is_trained_and_saved(target, batch):
    assistant = disturb(tapped(target, 2, 2)).train()
    loss = logits_of(assistant, batch.input_ids, batch.attention_mask).square().mean()
    loss.backward()
    trained = {name for name, weight in assistant.named_parameters() if weight.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    assert not any(weight.grad is not None for weight in target.model.parameters())
    names = adapter_tensors(assistant).keys()
    assert {name.split(".")[4] for name in names} == {"0", "1"}


def test_it_decodes_with_a_cache_as_without(target):
    assistant = disturb(tapped(target, 1, 2))
    answers = greedy(assistant, PROMPTS, eos_id=-1, max_tokens=6)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            ids = torch.tensor([tokens])
            with torch.no_grad():
                tokens.append(int(assistant(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax()))
        assert tokens[len(prompt) :] == answer


def test_more_layers_than_the_target_has_are_refused(target):
    with pytest.raises(TrainingError, match="3 layers after layer 2 was asked for, the target has 4"):
        tapped(target, 2, 3)


def test_prompts_that_begin_alike_are_decoded_as_each_alone_without_a_cache(target):
    """Also longer than a layer's window; under Hugging Face's own attention each prompt is computed anew each time."""
    beginning = list(range(5, 5 + 2 * _SHARED))
    prompts = [[*beginning, 9], [*beginning, 30, 7, 9, 11], [*beginning, 8, 8]]
    strength = Strength(weight=1.0, keep_ratio=0.05, gate_nats=0.0)
    in_force = [LoadedSet(disturb(tapped(target, 2, 2)), strength)]
    plain = greedy(target.model, prompts, eos_id=-1, max_tokens=6)
    composed = greedy(target.model, prompts, eos_id=-1, max_tokens=6, in_force=in_force)
    for prompt, own, mixed in zip(prompts, plain, composed, strict=True):
        assert [mixed] == greedy(target.model, [prompt], eos_id=-1, max_tokens=6, in_force=in_force)
        config = target.model.config
        grouped, config._attn_implementation = config._attn_implementation, "eager"
        try:
            for token in own:
                with torch.no_grad():
                    logits_V = target.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
                assert logits_V[token] >= logits_V.max() - 1e-4
                prompt = [*prompt, token]
        finally:
            config._attn_implementation = grouped


def test_a_decoding_batch_repeats_no_keys(target):
    assert target.model.config._attn_implementation == (
        "eager" if target.model.config.architectures[0].startswith("Gemma2") else GROUPED
    )
    query, key, value = (torch.randn(3, heads, tokens, 8) for heads, tokens in ((6, 1), (2, 5), (2, 5)))
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[0, ..., :3] = False
    module = SimpleNamespace(num_key_value_groups=3)
    expected, _ = AttentionInterface()["sdpa"](module, query, key, value, mask, scaling=0.3)
    found, _ = AttentionInterface()[GROUPED](module, query, key, value, mask, scaling=0.3)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)
