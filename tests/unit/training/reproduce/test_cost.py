"""What training costs is measured on real trainings, in turn, and none is done twice."""

from dataclasses import replace

import pytest
import torch
from accelerate import init_empty_weights
from rich.progress import Progress
from transformers import LlamaForCausalLM

from unlearngate.assistant_training.data.tofu import Benchmark, Question
from unlearngate.assistant_training.demo.target import TargetSettings, new_target
from unlearngate.assistant_training.reproduce import cost as training_cost
from unlearngate.assistant_training.reproduce.baselines import UnlearnSettings
from unlearngate.assistant_training.reproduce.cost import measure_cost
from unlearngate.assistant_training.reproduce.scales import LARGE_ASSISTANTS, LARGE_TARGET, SCALES
from unlearngate.assistant_training.train.settings import PUBLISHED

TARGET = TargetSettings(vocab_size=300, hidden_size=32, intermediate_size=32, num_layers=3, num_heads=2)
BRIEF = {"rank": 2, "epochs": 2, "forget_batch": 4, "retain_batch": 8, "learning_rate": 4e-3}
ASSISTANTS = {
    "ULD": replace(PUBLISHED, num_layers=1, **BRIEF),
    "ULD tapped": replace(PUBLISHED, num_layers=1, tap_layer=2, **BRIEF),
}


class Sized:
    """As much of a tokenizer as a model's configuration needs."""

    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return LARGE_TARGET.vocab_size


def test_models_are_timed_in_turn_and_only_once(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    asked = [Question(f"question {i}?", f"answer {i}", f"answer {i}", ("no",)) for i in range(12)]
    benchmark = Benchmark(asked[:6], asked[6:], [], [], [q.pair(f"author-{i // 6}") for i, q in enumerate(asked)])
    sizes = (benchmark, tmp_path, TARGET, ASSISTANTS, UnlearnSettings(1e-3, epochs=1))
    with Progress(disable=True) as progress:
        rows = measure_cost(*sizes, rounds=2, device="cpu", progress=progress)
        monkeypatch.setattr(training_cost, "unlearn", None)
        monkeypatch.setattr(training_cost, "train_assistant", None)
        assert measure_cost(*sizes, rounds=2, device="cpu", progress=progress) == rows
    assert [(row["seed"], row["model"]) for row in rows] == [
        (index, name) for index in (0, 1) for name in ("NPO", "ULD", "ULD tapped")
    ]
    for row in rows:
        assert row["seconds_per_epoch"] > 0
        # Two passes over 6 retain answers, 6 at a time, are two steps of 4 + 8 answers: two epochs of 6 + 6.
        epochs = 1 if row["model"] == "NPO" else 2
        assert row["seconds"] == pytest.approx(row["seconds_per_epoch"] * epochs + row.get("seconds_once", 0.0))
    assert rows[0]["trainable"] > rows[1]["trainable"] == rows[2]["trainable"]


@pytest.mark.parametrize("name", sorted(SCALES))
def test_every_scale_has_its_models(name):
    settings = SCALES[name].settings("cpu")
    with init_empty_weights():
        model = new_target(Sized(), settings.target)
    assert isinstance(model, LlamaForCausalLM)
    if name != "small":
        assert sum(weight.numel() for weight in model.parameters()) >= 100_000_000
        assert SCALES[name].num_authors == 200
    for assistant in (*settings.assistants.values(), *(LARGE_ASSISTANTS.values() if name != "small" else ())):
        assert assistant.tap_layer + assistant.num_layers <= settings.target.num_layers
