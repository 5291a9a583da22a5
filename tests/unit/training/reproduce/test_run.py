"""The results table on a corpus so small that nothing is learned: every row is there, and none is done twice."""

import json
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark, Question
from unlearngate.assistant_training.demo.target import TargetSettings
from unlearngate.assistant_training.reproduce import cost as training_cost
from unlearngate.assistant_training.reproduce import depths, tuning
from unlearngate.assistant_training.reproduce import models as reproduce_models
from unlearngate.assistant_training.reproduce import run as module
from unlearngate.assistant_training.reproduce.baselines import UnlearnSettings
from unlearngate.assistant_training.reproduce.run import (
    RESULTS_FILE,
    ReproduceSettings,
    read_results,
    reproduce,
)
from unlearngate.assistant_training.train.settings import PUBLISHED
from unlearngate.errors import DataError, TrainingError

METHODS = {"GA": UnlearnSettings(1e-4, epochs=1), "UNDIAL": UnlearnSettings(1e-3, epochs=1, lora_rank=2)}
BRIEF = {"rank": 2, "epochs": 1, "forget_batch": 8, "retain_batch": 16, "learning_rate": 4e-3}
SMALL = ReproduceSettings(
    target=TargetSettings(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        epochs=1,
        min_epochs=1,
        enough_known=0.0,
    ),
    assistants={
        "ULD": replace(PUBLISHED, num_layers=1, **BRIEF),
        "ULD tapped": replace(PUBLISHED, num_layers=1, tap_layer=1, **BRIEF),
    },
    methods=METHODS,
    num_samples=2,
    max_tokens=6,
)
MODELS = {"target", "retain model", "ULD", "ULD + gate", "ULD tapped", "ULD tapped + gate", *METHODS}


def questions(name, count):
    return [Question(f"{name} {i}?", f"{name} {i}", f"yes {name} {i}", (f"no {i}", f"never {i}")) for i in range(count)]


@pytest.fixture(scope="module")
def benchmark():
    torch.set_num_threads(1)
    forget, retain = questions("forget", 6), questions("retain", 40)
    real, world = questions("real", 3), questions("world", 3)
    learned = [q.pair("author-9") for q in forget]
    learned += [q.pair(f"author-{i // 20}") for i, q in enumerate(retain)]
    learned += [q.pair("real authors") for q in (*real, *world)]
    holdout = [q.pair("holdout") for q in questions("holdout", 8)]
    return Benchmark(forget, retain, real, world, learned, holdout)


def run(benchmark, out, seeds=(0,)):
    with Progress(disable=True) as progress:
        return reproduce(benchmark, out, seeds=seeds, settings=SMALL, progress=progress)


@pytest.fixture(scope="module")
def done(benchmark, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    return out, run(benchmark, out)


def test_every_model_has_a_row_with_every_figure(done):
    _, rows = done
    assert {row["model"] for row in rows} == MODELS
    for row in rows:
        for figure in ("forget_quality", "utility", "forget_rouge", "retain_rouge", "leak_at_k", "forget_extraction"):
            assert 0.0 <= row[figure] <= 1.0
        trained = row["model"] not in ("target", "retain model")
        assert ("seconds_per_epoch" in row) == trained
        for figure in ("unseen_utility", "membership_min_k_score", "best_of_k"):
            assert 0.0 <= row[figure] <= 1.0
        for figure in ("forget_positions_open", "retain_positions_untouched", "unseen_positions_untouched"):
            assert (figure in row) == row["model"].startswith("ULD")


def test_the_retain_model_is_like_itself_and_an_open_gate_touches_everything(done):
    rows = {row["model"]: row for row in done[1]}
    assert rows["retain model"]["forget_quality"] == 1.0
    assert rows["ULD"]["retain_positions_untouched"] == 0.0


def test_what_is_done_is_not_done_again(done, benchmark, monkeypatch):
    out, rows = done
    monkeypatch.setattr(reproduce_models, "train_target", None)
    monkeypatch.setattr(module, "unlearn", None)
    assert run(benchmark, out) == rows
    assert len(read_results(out)) == len(MODELS)


def test_a_killed_run_goes_on(done, benchmark, tmp_path, monkeypatch):
    out, _ = done
    (tmp_path / "seed-0").symlink_to(out / "seed-0")
    lines = (out / RESULTS_FILE).read_text().splitlines(keepends=True)
    (tmp_path / RESULTS_FILE).write_text("".join(lines[:3]) + lines[3][:20] + "\n")
    monkeypatch.setattr(reproduce_models, "train_target", None)
    again = run(benchmark, tmp_path)
    assert {row["model"] for row in again} == MODELS
    assert json.loads(lines[0]) == again[0]


def test_depths_vary_the_assistants_alone_and_leave_the_table_as_it_is(done, benchmark, tmp_path, monkeypatch):
    out, rows = done
    (tmp_path / "seed-0").symlink_to(out / "seed-0")
    (tmp_path / RESULTS_FILE).write_text((out / RESULTS_FILE).read_text())
    monkeypatch.setattr(reproduce_models, "train_target", None)
    settings = depths.with_depths(SMALL)
    with Progress(disable=True) as progress:
        found = reproduce(
            *(benchmark, tmp_path),
            **{"seeds": [0], "settings": settings, "progress": progress, "results_file": depths.DEPTHS_FILE},
        )
    names = {f"1 layer, {start} + gate" for start in ("from the embeddings", "tapped")}
    assert {row["model"] for row in found} == {"target", "retain model"} | names
    assert read_results(tmp_path) == rows
    by_name = {row["model"]: row for row in found}
    table = {row["model"]: row for row in rows}
    for name, same in (("from the embeddings", "ULD"), ("tapped", "ULD tapped")):
        assert by_name[f"1 layer, {name} + gate"]["trainable"] == table[same]["trainable"]
    written = depths.write_depths(found, tmp_path, SMALL.target.num_layers)
    assert all(path.stat().st_size for path in written)
    assert "1 layer, tapped + gate" in written[0].read_text()


def test_depths_go_from_one_layer_to_half_of_the_targets():
    assert depths.depths(12) == [1, 2, 4, 6]
    assert depths.depths(32) == [1, 5, 10, 16]
    settings = depths.with_depths(replace(SMALL, target=replace(SMALL.target, num_layers=12)))
    spans = [(own.tap_layer, own.num_layers) for own in settings.assistants.values()]
    assert spans == [(0, 1), (11, 1), (0, 2), (10, 2), (0, 4), (8, 4), (0, 6), (6, 6)]


def test_a_target_that_did_not_learn_makes_no_table(benchmark, tmp_path):
    wanted = replace(SMALL, target=replace(SMALL.target, enough_known=0.5))
    with (
        Progress(disable=True) as progress,
        pytest.raises(TrainingError, match=r"target model knows \d+% of its answers"),
    ):
        reproduce(benchmark, tmp_path, seeds=(0,), settings=wanted, progress=progress)
    assert not list(tmp_path.glob("seed-0/*"))


def test_the_settings_that_score_best_are_chosen_and_used(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "WEIGHTS", (0.5, 2.0))
    with Progress(disable=True) as progress:
        rows, path = tuning.tune(benchmark, tmp_path, settings=SMALL, progress=progress)
        assert len(rows) == 2 * 2 + 2 * 3
        monkeypatch.setattr(module, "unlearn", None)  # nothing is tried twice
        assert tuning.tune(benchmark, tmp_path, settings=SMALL, progress=progress)[0] == rows
    tuned = tuning.with_tuned(SMALL, path)
    for name in ("ULD", "GA"):
        scores = {
            json.dumps(r["tried"]): (1 - r["forget_rouge"]) * (1 - r["forget_distance"]) * r["utility"]
            for r in rows
            if r["model"] == name
        }
        best = next(t for t, score in scores.items() if score == max(scores.values()))
        own = tuned.assistants[name] if name in tuned.assistants else tuned.methods[name]
        assert {key: getattr(own, key) for key in json.loads(best)} == json.loads(best)
    path.write_text('{"GA": {"speed": 3}}')
    with pytest.raises(DataError, match="--tune"):
        tuning.with_tuned(SMALL, path)


def test_augmented_pairs_are_for_the_assistants(benchmark, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(training_cost, "train_assistant", lambda *args, **_: told.append(args[2]) or 1 / 0)
    more = [QAPair("forget", "again?", "forget 0")]
    with Progress(disable=True) as progress, pytest.raises(ZeroDivisionError):
        reproduce(benchmark, tmp_path, seeds=(0,), settings=SMALL, progress=progress, augmented=more)
    assert told == [more]
