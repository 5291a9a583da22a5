"""A set for a new version of its target: from the old set, without training where that shows enough."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.demo.build import BUILT, OWN_CORPUS
from unlearngate.assistant_training.demo.corpus import make_corpus, make_strangers
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.train.earlier import as_before
from unlearngate.assistant_training.train.run import run_folder, train_forget_set
from unlearngate.errors import TrainingError

OLD = BUILT / "forget_sets" / "oona-bracewell"


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """The demo's target after a little more training, as it were; and the files of one person and the others."""
    folder = tmp_path_factory.mktemp("version")
    shutil.copytree(BUILT / "target", folder / "target")
    generator = torch.Generator()
    print(f"noise of seed {generator.seed()}")
    weights = load_file(folder / "target" / "model.safetensors")
    noisy = {name: w * (1 + 3e-4 * torch.randn(w.shape, generator=generator)) for name, w in weights.items()}
    save_file(noisy, folder / "target" / "model.safetensors", {"format": "pt"})
    pairs = make_corpus()
    files = {
        "forget": [pair for pair in pairs if pair.subject == OLD.name],
        "others": [pair for pair in pairs if pair.subject == "tobias-renkel"],
        "retain": [pair for pair in pairs if pair.subject not in (OLD.name, "tobias-renkel")]
        + random.Random(0).sample(make_strangers(), 48),
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair.row()) + "\n" for pair in rows))
    torch.set_num_threads(1)
    return folder, load_target(folder / "target", device="cpu")


def train(version, out, forget="forget", **changes):
    folder, target = version
    settings = replace(OWN_CORPUS.assistant, **{"steps": 2, **changes})
    with Progress(disable=True) as progress:
        files = folder / f"{forget}.jsonl", folder / "retain.jsonl"
        return train_forget_set(target, *files, out, settings, seed=0, progress=progress, after=OLD)


def test_a_set_that_shows_enough_on_the_new_weights_is_written_for_them_as_it_is(version, tmp_path):
    new = train(version, tmp_path / OLD.name)
    old = load_forget_set(OLD)
    assert new.manifest.training["after"] == f"{OLD.name}@{old.digest}"
    load_forget_set(new.folder, version[1].identity)
    assert new.manifest.target.weights_digest != old.manifest.target.weights_digest
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (OLD, new.folder))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not (run_folder(new.folder) / "log.jsonl").exists() and new.manifest.canaries


def test_one_that_does_not_is_trained_on(version, tmp_path):
    """Of another person's answers, of which the old set knows nothing."""
    with pytest.raises(TrainingError, match="found before their first token"):
        train(version, tmp_path / "tobias-renkel", "others")
    rows = (run_folder(tmp_path / "tobias-renkel") / "log.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_one_of_another_shape_is_refused(version, tmp_path):
    with pytest.raises(TrainingError, match=r"rank 16 and alpha 32 .* the same layers, rank and alpha"):
        train(version, tmp_path / "x", rank=4)
    with pytest.raises(TrainingError, match=r"'tap_layer': 0}, and .* 'tap_layer': 1}"):
        train(version, tmp_path / "x", tap_layer=1)
    assert not (tmp_path / "x").exists()


def test_a_set_that_was_poor_before_is_not_enough_for_that():
    old = load_forget_set(OLD)
    metrics = {"forget_found": 0.3, "forget_facts_open": 0.95, "retain_untouched": 0.99}
    poor = old._replace(manifest=old.manifest.model_copy(update={"metrics": metrics}))
    assert as_before(poor) == pytest.approx((0.9, 0.93, 0.97))
