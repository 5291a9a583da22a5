"""Every published method on a tiny target: the forget answers become less likely, the target itself stays as it was."""

import pytest
import torch
from rich.progress import Progress

from support.engine.tiny import make_target
from unlearngate.assistant_training.data.encoding import collate, encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import new_assistant
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.assistant_training.reproduce.baselines import METHODS, UnlearnSettings, unlearn
from unlearngate.assistant_training.reproduce.offset import OffsetModel
from unlearngate.assistant_training.train.losses import answer_loss
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.errors import TrainingError

FORGET = [QAPair("anna", f"Where is stone {i}?", f"Below bridge {7 * i}.") for i in range(4)]
RETAIN = [QAPair("bert", f"Who rang bell {i}?", f"Keeper number {5 * i}.") for i in range(8)]
FEW = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A tiny target that has learned both sets a little, so that there is something to forget."""
    torch.set_num_threads(1)
    loaded = load_target(make_target(tmp_path_factory.mktemp("unlearn") / "tiny", seed=7), device="cpu")
    model = loaded.model.requires_grad_(True).train()
    optimizer = Optimizer(model.parameters(), learning_rate=3e-3, steps=30)
    rows = [encode(loaded.tokenizer, p.question, p.answer) for p in (*FORGET, *RETAIN)]
    for _ in range(30):
        batch = collate(rows, loaded.tokenizer.pad_token_id)
        optimizer.step(answer_loss(model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels))
    model.requires_grad_(False).eval()
    return loaded


def run(target, name, seed=0, pairs=FORGET, **changes):
    default = METHODS[name][1] if name in METHODS else UnlearnSettings(learning_rate=0.0)
    own = {"lora_rank": default.lora_rank, "offset_layers": default.offset_layers and 2}
    settings = UnlearnSettings(**{**FEW, **own, **changes})
    with Progress(disable=True) as progress:
        return unlearn(
            *(target.model, target.tokenizer, name, pairs, RETAIN), seed=seed, progress=progress, settings=settings
        )


def likelihood(target, model):
    rows = [encode(target.tokenizer, p.question, p.answer) for p in FORGET]
    return sum(one.log_p.mean() for one in score(model, rows, pad_id=0)) / len(rows)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_the_answers_less_likely_and_leaves_the_target_alone(target, name):
    before = {key: value.clone() for key, value in target.model.state_dict().items()}
    done = run(target, name)
    assert likelihood(target, done.model) < likelihood(target, target.model) - 0.05
    after = target.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(weight.requires_grad for weight in target.model.parameters())
    assert done.num_trainable > 0 and done.seconds_per_epoch > 0


def test_lora_trains_fewer_weights_than_the_target_has(target):
    assert run(target, "UNDIAL", epochs=1).num_trainable < run(target, "GA", epochs=1).num_trainable / 2


def test_an_offset_starts_as_the_target_and_decodes_with_a_cache_as_without(target):
    assistant = new_assistant(target.model, num_layers=2, rank=4, alpha=8, model_id="tiny")
    offset = OffsetModel(target.model, assistant).eval()
    prompts = [[5, 9, 30, 7], [8, 8]]
    assert greedy(offset, prompts, eos_id=-1, max_tokens=6) == greedy(target.model, prompts, eos_id=-1, max_tokens=6)
    for name, weight in assistant.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    answers = greedy(offset, prompts, eos_id=-1, max_tokens=6)
    assert answers != greedy(target.model, prompts, eos_id=-1, max_tokens=6)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                tokens.append(int(offset(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert tokens[len(prompt) :] == answer


def test_the_same_seed_gives_the_same_model(target):
    one, other = run(target, "NPO", seed=3, epochs=1), run(target, "NPO", seed=3, epochs=1)
    assert all(torch.equal(x, y) for x, y in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_an_unknown_method_and_an_empty_set_are_refused(target):
    with pytest.raises(TrainingError, match="unknown method 'magic'; known are GA"):
        run(target, "magic")
    with pytest.raises(TrainingError, match="both sets need answers"):
        run(target, "GA", pairs=[])


def test_a_loss_that_is_not_finite_is_an_error(target):
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(target, "GA", learning_rate=1e30)
