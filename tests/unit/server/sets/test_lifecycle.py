"""Versions of forget sets that come, change and go: by the watched folder, by an admin, and across kill -9."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from support.engine.tiny import make_forget_set, make_target
from unlearngate.acting import FORCED_FILE, force
from unlearngate.artefact import ADAPTER_FILE, MANIFEST_FILE, load_forget_set
from unlearngate.errors import ArtefactError, ConflictError, UnknownForgetSetError
from unlearngate.placing import place, remove
from unlearngate.server.sets.lifecycle import Lifecycle
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.store import RECORD_FILE, Store
from unlearngate.target import identify_target


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture(scope="module")
def identity(target):
    return identify_target(target)


@pytest.fixture(scope="module")
def made(target, tmp_path_factory):
    """Versions by name and number: made["anna", 1]."""
    folder = tmp_path_factory.mktemp("versions")
    return {
        (name, number): make_forget_set(folder / f"{name}-{number}", target, seed=number, rank=1, name=name)
        for name in ("anna", "bert")
        for number in (1, 2, 3)
    }


@pytest.fixture
def sets(made, tmp_path):
    """The watched folder: the first versions of anna and bert."""
    for name in ("anna", "bert"):
        shutil.copytree(made[name, 1].folder, tmp_path / "sets" / name)
    return tmp_path / "sets"


@pytest.fixture
def open_lifecycle(identity, sets, tmp_path):
    """Start on the state of the test, as the server does; again and again, as after a kill."""
    stores = []

    def open_it(state="state", **options):
        for store in stores:
            store.close()
        stores.append(Store(tmp_path / state))
        lifecycle = Lifecycle(Registry(identity, stores[-1].bindings), sets, stores[-1])
        lifecycle.start(**options)
        return lifecycle

    yield open_it
    for store in stores:
        store.close()


def look(lifecycle):
    """Long enough for a change to be acted upon."""
    lifecycle.look()
    lifecycle.look()
    lifecycle.publish()


def in_force(lifecycle, publish=True):
    """Every version that a request may have, by its short digest; the current one is marked."""
    if publish:
        lifecycle.publish()
    registry = lifecycle.registry
    return {
        version.reference: version == registry.sets.get(name)
        for name in {*registry.sets, *registry.pinned}
        for version in registry.versions(name)
    }


def expected(*current, pinned=()):
    return {version.reference: version in current for version in (*current, *pinned)}


def put(folder, forget_set):
    """Put a version into the watched folder, as `unlearngate sets add --replace` does."""
    place(forget_set, folder, replace=True)


# Versions


def test_what_the_folder_holds_is_in_force_from_a_copy_of_the_servers_own(open_lifecycle, made, sets, tmp_path):
    lifecycle = open_lifecycle()
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    anna = lifecycle.registry.get("anna")
    assert anna.folder == tmp_path / "state" / "sets" / made["anna", 1].digest
    shutil.rmtree(sets / "anna")
    assert load_forget_set(anna.folder).digest == anna.digest


def test_a_request_keeps_its_version_through_replacement_and_retirement(open_lifecycle, made):
    lifecycle = open_lifecycle()
    first = lifecycle.registry.get("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    assert lifecycle.registry.get("anna") is first  # nothing half: requests see a change when it is published
    lifecycle.publish()
    second = lifecycle.registry.get("anna")
    assert second.digest == made["anna", 2].digest
    lifecycle.retire("anna")
    lifecycle.publish()
    with pytest.raises(UnknownForgetSetError, match="'anna' is not on this server"):
        lifecycle.registry.get("anna")
    bindings = [lifecycle.registry.bindings.bind([version]) for version in (first, second)]
    assert len({b.name for b in bindings}) == len({b.folder for b in bindings}) == 2


def test_a_pinned_version_stays_for_requests_that_name_its_digest(open_lifecycle, made):
    lifecycle = open_lifecycle()
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1], pinned=[made["anna", 1]])
    for digits in (8, 12, 64):
        assert lifecycle.registry.get(f"anna@{made['anna', 1].digest[:digits]}").digest == made["anna", 1].digest
    lifecycle.unpin("anna", made["anna", 1].digest[:8])
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])


def test_a_pinned_version_can_be_put_back_in_force(open_lifecycle, made):
    lifecycle = open_lifecycle()
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    lifecycle.replace_with_version("anna", made["anna", 1].digest[:12])
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])


def test_retiring_a_name_retires_its_pinned_versions_too(open_lifecycle, made):
    lifecycle = open_lifecycle()
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    lifecycle.retire("anna")
    assert in_force(lifecycle) == expected(made["bert", 1])


def test_retiring_one_version_leaves_the_others(open_lifecycle, made):
    lifecycle = open_lifecycle()
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    lifecycle.retire("anna", made["anna", 2].digest[:12])
    assert in_force(lifecycle) == expected(made["bert", 1], pinned=[made["anna", 1]])
    with pytest.raises(UnknownForgetSetError):
        lifecycle.registry.get("anna")
    assert lifecycle.registry.get(made["anna", 1].reference).digest == made["anna", 1].digest


@pytest.mark.parametrize("digest", ["", "1234567", "0" * 12, "g" * 12])
def test_a_digest_that_is_not_one_versions_is_not_found_and_the_versions_are_named(open_lifecycle, made, digest):
    registry = open_lifecycle().registry
    with pytest.raises(UnknownForgetSetError, match=f"this server has: {made['anna', 1].reference}"):
        registry.get(f"anna@{digest}")


def test_changes_of_what_is_not_there_are_refused(open_lifecycle, made):
    lifecycle = open_lifecycle()
    before = in_force(lifecycle)
    with pytest.raises(ConflictError, match="the action 'replace'"):
        lifecycle.register("anna", made["anna", 2].folder)
    with pytest.raises(UnknownForgetSetError, match="the action 'register'"):
        lifecycle.replace("cleo", made["anna", 2].folder)
    with pytest.raises(ArtefactError, match="holds forget set 'anna', not 'bert'"):
        lifecycle.replace("bert", made["anna", 2].folder)
    for change in (lifecycle.retire, lifecycle.pin, lifecycle.unpin, lifecycle.replace_with_version):
        with pytest.raises(UnknownForgetSetError):
            change("anna", "0" * 12)
        with pytest.raises(UnknownForgetSetError):
            change("cleo", "0" * 12)
    assert in_force(lifecycle) == before


def test_registering_what_is_in_force_changes_nothing(open_lifecycle, made):
    lifecycle = open_lifecycle()
    lifecycle.register("anna", made["anna", 1].folder)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])


# What the running engine cannot take


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"rank": 9}, "has rank 9; the engine was started for at most 8: restart the server, with --max-rank 9"),
        ({"num_layers": 3}, "an assistant of 3 layers from layer 0 on; this server's branches have 2 from layer 0 on"),
        ({"kind": "undial"}, "the engine was started without LoRA on the target"),
    ],
)
def test_a_set_that_does_not_fit_the_engine_is_refused_with_what_to_do(
    open_lifecycle, made, target, tmp_path, options, reason
):
    lifecycle = open_lifecycle(undial=True)
    registry = lifecycle.registry
    registry.limit(registry.branches(2), registry.max_rank())
    misfit = make_forget_set(tmp_path / "misfit", target, seed=5, **{"rank": 1, "name": "anna", **options})
    with pytest.raises(ArtefactError, match=reason):
        lifecycle.replace("anna", misfit.folder)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])


def test_assistants_need_branches_that_the_engine_was_started_with(identity, target, tmp_path):
    make_forget_set(tmp_path / "sets" / "zora", target, seed=5, rank=1, kind="undial")
    uld = make_forget_set(tmp_path / "anna", target, seed=5, num_layers=1, rank=1)
    with closing(Store(tmp_path / "state")) as store:
        lifecycle = Lifecycle(Registry(identity, tmp_path / "bindings"), tmp_path / "sets", store)
        lifecycle.start(undial=True)
        lifecycle.registry.limit(lifecycle.registry.branches(2), lifecycle.registry.max_rank())
        with pytest.raises(ArtefactError, match="the engine was started without assistants"):
            lifecycle.register("anna", uld.folder)


# The watched folder


def test_a_set_that_appears_changes_or_goes_is_noticed_after_two_looks(open_lifecycle, made, sets, target):
    lifecycle = open_lifecycle()
    cleo = make_forget_set(sets / "cleo", target, seed=5, rank=1)
    put(sets / "anna", made["anna", 2])
    remove(sets / "bert")
    lifecycle.look()
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    lifecycle.look()
    assert in_force(lifecycle) == expected(made["anna", 2], cleo)


def test_a_set_is_not_read_while_it_is_being_copied(open_lifecycle, made, sets, caplog):
    lifecycle = open_lifecycle()
    (sets / "cleo").mkdir()
    for size in range(3):
        (sets / "cleo" / MANIFEST_FILE).write_text("{" * (size + 1))
        lifecycle.look()
    assert lifecycle.registry.refused == {}
    lifecycle.look()
    assert len(lifecycle.registry.refused) == 1


def test_a_broken_set_leaves_the_old_version_in_force_and_is_refused_once(open_lifecycle, made, sets, caplog):
    lifecycle = open_lifecycle()
    with (sets / "anna" / ADAPTER_FILE).open("ab") as file:
        file.write(b"x")
    for _ in range(5):
        lifecycle.look()
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    assert sum("was changed or damaged" in record.getMessage() for record in caplog.records) == 1
    put(sets / "anna", made["anna", 2])
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])
    assert lifecycle.registry.refused == {}


def test_a_renamed_folder_changes_nothing(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    (sets / "anna").rename(sets / "aaaa")
    (sets / "bert").rename(sets / "zzzz")
    for _ in range(3):
        lifecycle.look()
        assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    remove(sets / "aaaa")
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["bert", 1])


def test_a_folder_that_now_holds_a_set_of_another_name_retires_the_first(open_lifecycle, made, sets, target):
    lifecycle = open_lifecycle()
    cleo = make_forget_set(sets / "anna", target, seed=5, rank=1, name="cleo")
    look(lifecycle)
    assert in_force(lifecycle) == expected(cleo, made["bert", 1])


def test_a_second_folder_with_a_name_is_refused_until_the_first_is_gone(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    put(sets / "zzzz", made["anna", 2])
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    (refusal,) = lifecycle.registry.refused.values()
    assert "is named 'anna', as" in refusal
    remove(sets / "anna")
    put(sets / "zzzz", made["anna", 3])
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 3], made["bert", 1])


def test_a_watched_folder_that_vanishes_retires_nothing(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    sets.rename(sets.with_name("unmounted"))
    for _ in range(3):
        look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    sets.with_name("unmounted").rename(sets)
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    assert lifecycle.registry.refused == {}


def test_what_an_admin_retired_does_not_come_back_until_its_folder_changes(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    lifecycle.retire("anna")
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["bert", 1])
    assert in_force(open_lifecycle()) == expected(made["bert", 1])
    lifecycle = open_lifecycle()
    put(sets / "anna", made["anna", 2])
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])


def test_an_admin_can_take_in_again_what_was_retired(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    lifecycle.retire("anna")
    lifecycle.register("anna", sets / "anna")
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])


def test_the_end_of_a_folder_that_an_admin_took_before_it_was_noticed_is_noticed(open_lifecycle, made, sets, target):
    lifecycle = open_lifecycle()
    cleo = make_forget_set(sets / "cleo", target, seed=5, rank=1)
    lifecycle.register("cleo", sets / "cleo")
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1], cleo)
    remove(sets / "cleo")
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])


def test_a_folder_does_not_take_away_what_an_admin_brought_from_elsewhere(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    lifecycle.replace("anna", made["anna", 2].folder)
    remove(sets / "anna")
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])


def test_a_full_disk_changes_nothing_and_is_tried_again(open_lifecycle, made, sets, monkeypatch):
    lifecycle = open_lifecycle()
    put(sets / "anna", made["anna", 2])
    with monkeypatch.context() as patch:
        patch.setattr("unlearngate.placing.os.fsync", _no_space)
        for _ in range(3):
            lifecycle.look()
        assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
        assert any("No space left" in reason for reason in lifecycle.registry.refused.values())
    lifecycle.look()
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])
    assert lifecycle.registry.refused == {}


def _no_space(_):
    raise OSError(28, "No space left on device")


# What cannot act


IDLE = {"weight": 0.0, "keep_ratio": 0.1, "gate_nats": 0.0}


@pytest.fixture
def idle(target, tmp_path):
    """A version of anna that takes nothing away."""
    return make_forget_set(tmp_path / "idle", target, seed=5, rank=1, name="anna", recommended=IDLE)


def test_a_version_in_the_folder_that_cannot_act_leaves_the_old_one_in_force(open_lifecycle, made, sets, idle):
    lifecycle = open_lifecycle()
    put(sets / "anna", idle)
    for _ in range(3):
        look(lifecycle)
        assert in_force(lifecycle) == expected(made["anna", 1], made["bert", 1])
    assert "its recommended weight is 0" in lifecycle.registry.refused[str(sets / "anna")]
    assert in_force(open_lifecycle()) == expected(made["anna", 1], made["bert", 1])


def test_a_new_server_does_not_take_in_what_cannot_act(open_lifecycle, made, sets, idle):
    put(sets / "anna", idle)
    lifecycle = open_lifecycle()
    assert in_force(lifecycle) == expected(made["bert", 1])
    assert "would be in force and do nothing" in lifecycle.registry.refused[str(sets / "anna")]


def test_what_was_forced_into_the_folder_is_in_force_also_after_a_restart(open_lifecycle, made, sets, idle):
    lifecycle = open_lifecycle()
    force(sets, idle.digest)
    put(sets / "anna", idle)
    look(lifecycle)
    assert in_force(lifecycle) == expected(idle, made["bert", 1])
    assert in_force(open_lifecycle()) == expected(idle, made["bert", 1])
    (sets / FORCED_FILE).unlink()
    assert in_force(open_lifecycle()) == expected(idle, made["bert", 1])
    assert in_force(open_lifecycle("another")) == expected(made["bert", 1])


def test_what_an_admin_forced_is_in_force_after_a_restart_and_forgotten_when_it_is_retired(
    open_lifecycle, made, sets, idle
):
    lifecycle = open_lifecycle()
    with pytest.raises(ArtefactError, match="its recommended weight is 0"):
        lifecycle.replace("anna", idle.folder)
    lifecycle.replace("anna", idle.folder, force=True)
    lifecycle = open_lifecycle()
    assert in_force(lifecycle) == expected(idle, made["bert", 1])
    assert lifecycle.store.read().forced == {idle.digest}
    lifecycle.replace("anna", made["anna", 2].folder)
    assert lifecycle.store.read().forced == frozenset()
    with pytest.raises(ArtefactError, match="its recommended weight is 0"):
        lifecycle.replace("anna", idle.folder)


def test_a_state_from_before_this_was_checked_does_not_bring_back_what_cannot_act(
    open_lifecycle, made, sets, idle, tmp_path
):
    open_lifecycle().replace("anna", idle.folder, force=True)
    path = tmp_path / "state" / RECORD_FILE
    record = json.loads(path.read_text())
    del record["forced"]
    path.write_text(json.dumps(record))
    assert in_force(open_lifecycle()) == expected(made["bert", 1])


# Changes that hide


def test_a_file_rewritten_in_place_with_its_size_and_time_is_noticed(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    for name in (ADAPTER_FILE, MANIFEST_FILE):
        old, new = sets / "anna" / name, made["anna", 2].folder / name
        before, content = old.stat(), new.read_bytes()
        with old.open("r+b") as file:
            file.write(content)
            file.truncate()
        os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = old.stat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    look(lifecycle)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])


# The state


def test_a_restart_brings_back_every_version_and_acts_on_what_changed_meanwhile(open_lifecycle, made, sets):
    lifecycle = open_lifecycle()
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 2].folder)
    before = in_force(lifecycle)
    assert in_force(open_lifecycle()) == before
    put(sets / "anna", made["anna", 3])
    remove(sets / "bert")
    assert in_force(open_lifecycle()) == expected(made["anna", 3], pinned=[made["anna", 1]])


def test_a_new_state_takes_the_folder_for_the_truth(open_lifecycle, made):
    open_lifecycle().replace("anna", made["anna", 2].folder)
    assert in_force(open_lifecycle("another")) == expected(made["anna", 1], made["bert", 1])


def test_a_retired_versions_files_go_at_the_next_start(open_lifecycle, made, tmp_path):
    open_lifecycle().replace("anna", made["anna", 2].folder)
    kept = tmp_path / "state" / "sets"
    assert {p.name for p in kept.iterdir()} == {made[v].digest for v in (("anna", 1), ("anna", 2), ("bert", 1))}
    open_lifecycle()
    assert {p.name for p in kept.iterdir()} == {made[v].digest for v in (("anna", 2), ("bert", 1))}


def test_a_killed_servers_adapters_go_at_the_next_start(open_lifecycle, tmp_path):
    registry = open_lifecycle().registry
    folder = registry.bindings.bind([registry.get("anna")]).folder
    assert tmp_path / "state" in folder.parents and folder.is_dir()
    open_lifecycle()
    assert not folder.exists()


def test_a_version_that_was_damaged_in_the_store_is_refused_and_the_others_serve(open_lifecycle, made, sets, tmp_path):
    open_lifecycle().replace("anna", made["anna", 2].folder)
    damaged = tmp_path / "state" / "sets" / made["anna", 2].digest / ADAPTER_FILE
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    lifecycle = open_lifecycle()
    assert in_force(lifecycle) == expected(made["bert", 1])
    assert "was changed or damaged" in lifecycle.registry.refused[str(damaged)]
    lifecycle.replace("anna", made["anna", 2].folder)
    assert in_force(lifecycle) == expected(made["anna", 2], made["bert", 1])


def test_a_version_that_was_damaged_in_the_store_is_mended_from_its_folder(open_lifecycle, made, tmp_path):
    open_lifecycle()
    (tmp_path / "state" / "sets" / made["anna", 1].digest / ADAPTER_FILE).unlink()
    assert in_force(open_lifecycle()) == expected(made["anna", 1], made["bert", 1])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 2}', b'{"current": {"anna": "../../etc"}}', b'{"more": 1}', b"\xff"]
)
def test_a_record_that_cannot_be_used_stops_the_start_with_a_reason(open_lifecycle, tmp_path, content):
    open_lifecycle()
    (tmp_path / "state" / RECORD_FILE).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{RECORD_FILE}: .*bring the file back from a copy"):
        open_lifecycle()


def test_two_servers_cannot_share_a_state(tmp_path):
    hold = (
        "import sys, pathlib, unlearngate.server.sets.store as s; store = s.Store(pathlib.Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ArtefactError, match="is in use by another server"):
            Store(tmp_path / "state")
        holder.kill()
    Store(tmp_path / "state").close()


def test_a_start_without_any_set_is_refused_unless_the_assistants_are_described(open_lifecycle, sets):
    lifecycle = open_lifecycle()
    for name in ("anna", "bert"):
        lifecycle.retire(name)
    with pytest.raises(ArtefactError, match="with --assistant-layers the server starts all the same"):
        open_lifecycle()
    lifecycle = open_lifecycle(num_layers=2)
    assert lifecycle.registry.branches(2).num_branches == 2
    lifecycle.register("anna", sets / "anna")


# Kill -9


def changes(made, sets):
    """Every kind of change, each on a state where anna and bert are at 1 and anna is pinned at 3."""
    return {
        "register": lambda it: it.register("bert", made["bert", 1].folder),
        "replace": lambda it: it.replace("anna", made["anna", 2].folder),
        "replace_with_version": lambda it: it.replace_with_version("anna", made["anna", 3].digest),
        "retire": lambda it: it.retire("anna"),
        "pin": lambda it: it.pin("anna"),
        "unpin": lambda it: it.unpin("anna", made["anna", 3].digest),
        "look": lambda it: look(it),
    }


@pytest.mark.parametrize("kind", ["register", "replace", "replace_with_version", "retire", "pin", "unpin", "look"])
def test_a_kill_before_any_step_of_a_change_leaves_the_state_before_or_after_it(
    open_lifecycle, made, sets, tmp_path, kind
):
    lifecycle = open_lifecycle()
    lifecycle.replace("anna", made["anna", 3].folder)
    lifecycle.pin("anna")
    lifecycle.replace("anna", made["anna", 1].folder)
    if kind == "register":
        lifecycle.retire("bert")
    if kind == "look":
        put(sets / "bert", made["bert", 2])
    change = changes(made, sets)[kind]
    before = in_force(lifecycle)
    shutil.copytree(tmp_path / "state", tmp_path / "pristine")
    change(lifecycle)
    after = in_force(lifecycle)
    assert before != after or kind == "pin"
    found, step = [], 0
    while True:
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(tmp_path / "pristine", tmp_path / "state")
        killed = run_and_kill_before(step, tmp_path / "state", lambda: change(fresh(lifecycle)))
        # What a restart finds, before it looks at the folder again.
        store = Store(tmp_path / "state")
        record = store.read()
        store.close()
        found.append(record)
        for name, digest in record.versions():
            assert load_forget_set(tmp_path / "state" / "sets" / digest).name == name
        if not killed:
            break
        step += 1
    assert step >= 5 and len(set(map(str, found))) == 2
    assert [str(r) for r in found] == sorted(map(str, found), key=lambda r: r != str(found[0]))  # once, not back again
    if kind != "look":
        assert in_force(open_lifecycle()) == after


def fresh(lifecycle):
    """The lifecycle that a new process would have: opened on what is on the disk now."""
    again = Lifecycle(
        Registry(lifecycle.registry.target, lifecycle.store.folder / "bindings"), lifecycle.folder, lifecycle.store
    )
    again._record = again.store.read()
    again._versions = {v.digest: v for v in again._load_kept()}
    again.registry.choose_layers(list(again._versions.values()), tap_layer=None, num_layers=None, undial=False)
    return again


def run_and_kill_before(step, folder, work) -> bool:
    """Do `work` in a forked child that kills itself before its `step`-th change of a file below `folder`.

    Returns: whether it was killed; if not, it had fewer steps.
    """
    changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open"}
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event, args):
            nonlocal left
            if event in changing and str(folder) in str(args[0]):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        try:
            sys.addaudithook(count)
            work()
        except BaseException as error:
            print(f"the child failed: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_kills_at_random_moments_lose_no_change_that_was_done_and_invent_none(open_lifecycle, made, tmp_path, seed):
    """A child makes change after change and says so; it is killed; the next start has all it said, or one more."""
    rng = random.Random(seed)
    open_lifecycle()
    for _ in range(10):
        lifecycle = open_lifecycle()
        before = recorded(tmp_path / "state")
        plan = [(rng.choice(["anna", "bert"]), rng.choice([1, 2, 3]), rng.random() < 0.3) for _ in range(200)]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            again = fresh(lifecycle)
            for name, number, pin in plan:
                os.write(write, b".")
                again.pin(name) if pin else again.replace(name, made[name, number].folder)
            os._exit(0)
        os.close(write)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(read, "rb") as said:
            begun = len(said.read())
        possible = [before, *replay(before, plan[:begun], made)][-2:]
        current, pinned = recorded(tmp_path / "state")
        assert (current, pinned) in possible, f"after {begun} changes"
        shown = in_force(open_lifecycle())
        assert {r for r, is_current in shown.items() if is_current} == {f"{n}@{d[:12]}" for n, d in current.items()}
        assert len(shown) == len({*current.values()}.union(*pinned.values()))


def recorded(state):
    """What the record says is current and pinned."""
    record = json.loads((state / RECORD_FILE).read_text())
    return record["current"], {name: set(digests) for name, digests in record["pinned"].items()}


def replay(before, plan, made):
    """What should be current and pinned after each change."""
    current, pinned = before
    for name, number, pin in plan:
        if pin:
            pinned = {**pinned, name: pinned.get(name, set()) | {current[name]}}
        else:
            current = {**current, name: made[name, number].digest}
        yield current, pinned
