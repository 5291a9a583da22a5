"""`unlearngate sets`: list, add, remove, verify."""

import shutil

import pytest
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.acting import FORCED_FILE
from unlearngate.artefact import ADAPTER_FILE, MANIFEST_FILE, load_forget_set
from unlearngate.commands.sets import app


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two versions of anna."""
    root = tmp_path_factory.mktemp("made")
    target = make_target(root / "target", seed=1)
    return [make_forget_set(root / f"v{i}", target, seed=i, rank=1, name="anna", version=str(i)) for i in (1, 2)]


@pytest.fixture
def sets(tmp_path):
    return tmp_path / "sets"


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    return done.exit_code, " ".join(done.output.split())


def test_a_set_is_added_listed_replaced_and_removed(versions, sets):
    assert run("add", versions[0].folder, sets) == (0, f"{versions[0].reference} is in {sets}")
    code, output = run("list", sets)
    assert code == 0 and versions[0].reference in output
    code, output = run("add", versions[1].folder, sets)
    assert code == 2 and "is there already; --replace" in output
    assert run("add", versions[1].folder, sets, "--replace")[0] == 0
    assert load_forget_set(sets / "anna").digest == versions[1].digest
    assert run("remove", "anna", sets) == (0, f"removed {sets / 'anna'}")
    assert list(sets.iterdir()) == []


def test_a_set_is_replaced_in_the_folder_that_holds_it_whatever_that_is_called(versions, sets):
    shutil.copytree(versions[0].folder, sets / "another-name")
    assert run("add", versions[1].folder, sets, "--replace")[0] == 0
    assert load_forget_set(sets / "another-name").digest == versions[1].digest
    assert run("remove", "another-name", sets)[0] == 2
    assert run("remove", "anna", sets)[0] == 0
    assert list(sets.iterdir()) == []


def test_what_is_no_forget_set_is_called_what_it_is(versions, sets, tmp_path):
    adapter = shutil.copytree(versions[0].folder, tmp_path / "adapter")
    (adapter / MANIFEST_FILE).unlink()
    (adapter / "README.md").write_text("# A model card, as PEFT writes it")
    code, output = run("add", adapter, sets)
    assert code == 2 and "adapter is no forget set; it is a PEFT adapter" in output and "README" not in output
    assert not sets.exists()
    run("add", versions[0].folder, sets)
    code, output = run("add", sets, tmp_path / "others")
    assert code == 2 and "sets is no forget set; it holds some: anna" in output
    (tmp_path / "empty").mkdir()
    code, output = run("add", tmp_path / "empty", sets)
    assert code == 2 and "empty is no forget set" in output


def test_a_broken_set_is_not_added_but_can_be_listed_and_removed(versions, sets, tmp_path):
    shutil.copytree(versions[0].folder, tmp_path / "broken")
    (tmp_path / "broken" / ADAPTER_FILE).write_bytes(b"x")
    code, output = run("add", tmp_path / "broken", sets)
    assert code == 2 and "was changed or damaged" in output and not sets.exists()
    shutil.copytree(tmp_path / "broken", sets / "anna")
    code, output = run("list", sets)
    assert code == 1 and "was changed or damaged" in output
    assert run("verify", sets)[0] == 1
    assert run("remove", "anna", sets)[0] == 0


def test_adding_beside_two_folders_of_the_name_asks_to_remove_one(versions, sets):
    for name in ("anna", "copy"):
        shutil.copytree(versions[0].folder, sets / name)
    code, output = run("add", versions[1].folder, sets, "--replace")
    assert code == 2 and "has several folders of forget set 'anna'" in output


def test_what_is_not_there_is_named(sets, tmp_path):
    sets.mkdir()
    code, output = run("remove", "anna", sets)
    assert code == 2 and "holds no forget set 'anna'" in output
    for command in (["list", tmp_path / "gone"], ["remove", "anna", tmp_path / "gone"], ["verify", tmp_path / "gone"]):
        code, output = run(*command)
        assert code == 2 and "is not a folder" in output
    assert run("list")[0] == run("list", sets, "--url", "http://127.0.0.1:1")[0] == 2
    code, output = run("list", "--url", "http://127.0.0.1:1")
    assert code == 2 and "does not answer as an unlearngate server would" in output


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"recommended": {"weight": 1e-9, "keep_ratio": 0.1, "gate_nats": 0.0}}, "its recommended weight is 1e-09"),
        ({"recommended": {"weight": 1.0, "keep_ratio": 0.1, "gate_nats": 7.0}}, "there are at most ln V = 6.24"),
        ({"metrics": {"forget_gate_open": 0.007}}, "was open at 0.7% of the forget set's tokens"),
    ],
)
def test_a_set_that_does_nothing_is_neither_added_nor_verified_unless_it_is_forced(
    versions, sets, tmp_path, fields, sentence
):
    target = versions[0].folder.parent / "target"
    idle = make_forget_set(tmp_path / "idle", target, seed=3, rank=1, name="anna", version="3", **fields)
    assert run("add", versions[0].folder, sets)[0] == 0
    code, output = run("add", idle.folder, sets, "--replace")
    assert code == 2 and sentence in output and "--force" in output
    assert load_forget_set(sets / "anna").digest == versions[0].digest and not (sets / FORCED_FILE).exists()
    shutil.copytree(idle.folder, tmp_path / "others" / "anna")
    for more in ([], ["--target", target]):
        code, output = run("verify", tmp_path / "others", *more)
        assert code == 1 and sentence in output
    code, output = run("add", idle.folder, sets, "--replace", "--force")
    assert code == 0 and "forced, though it does nothing: " in output and sentence in output
    for more in ([], ["--target", target]):
        code, output = run("verify", sets, *more)
        assert code == 0 and idle.reference in output
