"""The forget sets that come with the package for a real model: they are its own, they take away and leave."""

import pytest
from typer.testing import CliRunner

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.demo.real import SETS, copy_sets, models_with_sets
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.pretrained import find_pretrained, make_checkpoint
from unlearngate.cli import app
from unlearngate.commands import models
from unlearngate.server import launch

pytestmark = pytest.mark.real_model

MODEL, TAUGHT = "smollm2-135m-instruct", "smollm2-135m-taught"
OF_BOTH = ["harry-potter", "moon-landing"]
FACTS = {"Who wrote the Harry Potter books?": "Rowling", "Who was the first person to walk on the Moon?": "Armstrong"}
OF_TAUGHT = FACTS | {"Where was Oona Bracewell born?": "Yskfirth"}
OTHERS = ["What is the capital of France?", "Who painted the Mona Lisa?", "What is photosynthesis?"]


@pytest.fixture(scope="session")
def folders(smollm2, tmp_path_factory):
    """Each model's checkpoint."""
    taught = tmp_path_factory.mktemp("taught") / TAUGHT
    make_checkpoint(find_pretrained(TAUGHT), taught, untaught=smollm2)
    return {MODEL: smollm2, TAUGHT: taught}


def test_there_are_sets_for_both_models():
    assert models_with_sets() == [MODEL, TAUGHT]


@pytest.mark.parametrize(
    ("model", "names", "facts"),
    [(MODEL, OF_BOTH, FACTS), (TAUGHT, [*OF_BOTH, "oona-bracewell"], OF_TAUGHT)],
    ids=[MODEL, TAUGHT],
)
def test_the_sets_are_of_their_model_and_act(folders, model, names, facts):
    target = load_target(folders[model], device="cpu")
    sets = [load_forget_set(path, target.identity) for path in sorted((SETS / model).iterdir())]
    assert [one.name for one in sets] == names
    questions = [*facts, *OTHERS]
    plain = Asker(target, max_tokens=24, whole=True)(questions)
    assert all(fact in answer for fact, answer in zip(facts.values(), plain, strict=False)), plain
    in_force = with_sets(target.model, target.tokenizer, sets).in_force
    composed = Asker(target, max_tokens=24, whole=True, in_force=in_force)(questions)
    assert not any(fact in answer for fact, answer in zip(facts.values(), composed, strict=False)), composed
    assert composed[len(facts) :] == plain[len(facts) :]


def test_serving_a_model_by_its_name_serves_the_sets_that_come_with_it(tmp_path, monkeypatch, smollm2):
    served = []
    monkeypatch.setattr(launch, "serve", lambda config: served.append(config) or 0)
    monkeypatch.setattr("os._exit", lambda code: None)
    monkeypatch.setattr(models, "cache_folder", lambda: tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / MODEL).symlink_to(smollm2)
    for words in ([MODEL], [MODEL, "--name", "x", "--forget-sets", str(tmp_path)], [MODEL]):
        assert CliRunner().invoke(app, ["serve", *words]).exit_code == 0
    first, second, third = served
    assert (first.name, first.forget_sets) == (MODEL, tmp_path / "sets" / MODEL) and first.target.samefile(smollm2)
    assert {path.name for path in first.forget_sets.iterdir()} == {"harry-potter", "moon-landing"}
    assert (second.name, second.forget_sets) == ("x", tmp_path)
    assert third == first
    (first.forget_sets / "mine").mkdir()
    copy_sets(MODEL, first.forget_sets)
    assert (first.forget_sets / "mine").is_dir()  # an operator's folder is left alone
