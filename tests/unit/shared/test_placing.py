"""Artefacts appear, are replaced and go as a whole."""

import ctypes
import errno
import os
import random
import shutil
import signal
import time

import pytest

from support.engine.tiny import make_forget_set, make_target
from unlearngate import placing
from unlearngate.artefact import ADAPTER_FILE, MANIFEST_FILE, load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.files import write_whole
from unlearngate.placing import copied, place, remove


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    root = tmp_path_factory.mktemp("placing")
    target = make_target(root / "target", seed=1)
    return [make_forget_set(root / f"v{i}", target, seed=i, rank=1, name="anna") for i in (1, 2)]


def test_a_copy_is_the_same_set_and_nothing_is_left_beside_it(versions, tmp_path):
    place(versions[0], tmp_path / "anna")
    assert load_forget_set(tmp_path / "anna").digest == versions[0].digest
    assert os.listdir(tmp_path) == ["anna"]


def test_a_set_that_is_there_is_replaced_only_if_asked_for(versions, tmp_path):
    place(versions[0], tmp_path / "anna")
    with pytest.raises(ArtefactError, match="is there already; --replace"):
        place(versions[1], tmp_path / "anna")
    assert load_forget_set(tmp_path / "anna").digest == versions[0].digest
    place(versions[1], tmp_path / "anna", replace=True)
    assert load_forget_set(tmp_path / "anna").digest == versions[1].digest
    assert os.listdir(tmp_path) == ["anna"]


@pytest.mark.parametrize("damage", ["append", "link", "gone"])
def test_a_set_that_changed_since_it_was_loaded_is_not_copied(versions, tmp_path, damage):
    shutil.copytree(versions[0].folder, tmp_path / "source")
    source = load_forget_set(tmp_path / "source")
    adapter = source.folder / ADAPTER_FILE
    if damage == "append":
        adapter.write_bytes(adapter.read_bytes() + b"x")
    else:
        adapter.unlink()
    if damage == "link":
        adapter.symlink_to(versions[0].folder / ADAPTER_FILE)
    (tmp_path / "sets").mkdir()
    with pytest.raises(ArtefactError, match="was changed while it was copied"):
        place(source, tmp_path / "sets" / "anna")
    assert os.listdir(tmp_path / "sets") == []


def test_a_file_system_that_cannot_exchange_is_named_and_the_old_version_stays(versions, tmp_path, monkeypatch):
    place(versions[0], tmp_path / "anna")

    class NoExchange:
        def __init__(self, *_, **__):
            pass

        def renameat2(self, *_):
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(placing.ctypes, "CDLL", NoExchange)
    with pytest.raises(ArtefactError, match="cannot be replaced at once on this file system"):
        place(versions[1], tmp_path / "anna", replace=True)
    assert load_forget_set(tmp_path / "anna").digest == versions[0].digest
    assert os.listdir(tmp_path) == ["anna"]


def test_a_removed_set_is_gone(versions, tmp_path):
    place(versions[0], tmp_path / "anna")
    remove(tmp_path / "anna")
    assert os.listdir(tmp_path) == []


def test_the_copy_can_be_read_by_others_as_its_surroundings_allow(versions, tmp_path):
    place(versions[0], tmp_path / "anna")
    (tmp_path / "made").mkdir()
    assert (tmp_path / "anna").stat().st_mode == (tmp_path / "made").stat().st_mode


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(placing.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_not_taken_of_a_copy_goes_away(versions, tmp_path):
    with copied(versions[0], tmp_path) as copy:
        assert (copy / MANIFEST_FILE).is_file()
    assert os.listdir(tmp_path) == []


def test_whenever_an_add_or_replace_is_killed_one_whole_version_is_there(versions, tmp_path, seed):
    """The folder of sets, as a server would read it: never half a set, and none is lost by being replaced."""
    rng = random.Random(seed)
    place(versions[0], tmp_path / "anna")
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            for index in range(100):
                place(versions[index % 2], tmp_path / "anna", replace=True)
            os._exit(0)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert load_forget_set(tmp_path / "anna").digest in {v.digest for v in versions}
        assert all(p.name.startswith(".") for p in tmp_path.iterdir() if p.name != "anna")
