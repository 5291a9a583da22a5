"""API keys: the file, the commands that change it, and the keyring that follows it."""

import json
import logging
import os
import random
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from unlearngate.cli import app
from unlearngate.errors import KeysFileError
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, new_secret, read_keys, write_keys


def run(*words, code=0):
    result = CliRunner().invoke(app, ["keys", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def make_key(id="acme-prod", secret=None, **fields):
    return ApiKey(**{"id": id, "tenant": "acme", "sha256": hash_secret(secret or new_secret()), **fields})


def write(path, *keys):
    write_keys(path, KeysFile(keys=keys))


# The commands


def test_a_key_is_printed_once_and_the_file_holds_only_its_hash(tmp_path):
    file = tmp_path / "keys.json"
    words = ["--tenant", "acme", "--require", "a", "--require", "b", "--default-set", "c", "--allow", "d", "--metrics"]
    words += ["--logprobs", "full"]
    secret = run("add", file, "--id", "acme-prod", *words).stdout.strip()
    assert len(secret) > 40 and secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]
    (key,) = read_keys(file).keys
    assert key == ApiKey(
        id="acme-prod", tenant="acme", sha256=hash_secret(secret), required=("a", "b"), default=("c",), allowed=("d",),
        metrics=True,
        logprobs="full",
    )  # fmt: skip
    assert Keyring(file).find(secret) == key
    listed = run("list", file).stdout
    assert "acme-prod" in listed and secret not in listed and key.sha256 not in listed


def test_a_key_says_what_sets_say_instead(tmp_path):
    file = tmp_path / "keys.json"
    run("add", file, "--id", "k", "--tenant", "t", "--instead", "a=No {label} = no.", "--instead", "b=Ask us.")
    (key,) = read_keys(file).keys
    assert key.instead == {"a": "No {label} = no.", "b": "Ask us."}


def test_a_key_that_says_nothing_more_may_name_nothing_and_is_no_admin(tmp_path):
    run("add", tmp_path / "keys", "--id", "k", "--tenant", "t")
    (key,) = read_keys(tmp_path / "keys").keys
    assert (key.required, key.default, key.allowed, key.admin, key.metrics) == ((), None, (), False, False)
    assert key.logprobs is None
    assert key.instead == {}


def test_no_two_keys_are_the_same(tmp_path):
    secrets = [run("add", tmp_path / "keys", "--id", f"k{i}", "--tenant", "t").stdout for i in range(5)]
    assert len(set(secrets)) == 5


def test_a_removed_key_is_gone_and_the_others_stay(tmp_path):
    file = tmp_path / "keys"
    for name in ("one", "two"):
        run("add", file, "--id", name, "--tenant", "t")
    run("remove", file, "one")
    assert [key.id for key in read_keys(file).keys] == ["two"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["add", "FILE", "--id", "one", "--tenant", "t"], "there is a key 'one' already"),
        (["add", "FILE", "--id", "Two", "--tenant", "t"], "id"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--require", "a,b"], "required"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--instead", "a"], "NAME=TEXT"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--instead", "a=b", "--instead", "a=c"], "once for a set"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--instead", "A=b"], "instead"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--instead", "a="], "instead"),
        (["add", "FILE", "--id", "two", "--tenant", "t", "--instead", "a=b\nc"], "control characters"),
        (["add", "BROKEN", "--id", "two", "--tenant", "t"], "is not the JSON of a keys file"),
        (["add", "NOWHERE/keys", "--id", "two", "--tenant", "t"], "No such file or directory"),
        (["remove", "FILE", "two"], "there is no key 'two'; there are: one"),
        (["remove", "MISSING", "two"], "cannot be read"),
        (["list", "MISSING"], "`unlearngate keys add` makes one"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tmp_path, words, sentence):
    run("add", tmp_path / "FILE", "--id", "one", "--tenant", "t")
    (tmp_path / "BROKEN").write_text("{")
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    result = run(words[0], tmp_path / words[1] if words[1].isupper() else tmp_path / "NO" / "keys", *words[2:], code=2)
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_commands_at_the_same_time_lose_no_change(tmp_path):
    file = tmp_path / "keys"
    command = "from unlearngate.server.http.keys import *; import sys\n"
    command += "with changing(Path(sys.argv[1])) as k: write_keys(Path(sys.argv[1]), k.with_key(ApiKey(id=sys.argv[2], "
    command += "tenant='t', sha256=hash_secret(new_secret()))))"

    def add(index):
        subprocess.run([sys.executable, "-c", command, str(file), f"k{index}"], check=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    assert {key.id for key in read_keys(file).keys} == {f"k{i}" for i in range(8)}


# The file

GOOD = {"format": 1, "keys": [{"id": "a", "tenant": "t", "sha256": "0" * 64, "required": ["x"]}]}


def changed(**fields):
    return json.dumps({"format": 1, "keys": [{**GOOD["keys"][0], **fields}]})


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "is not the JSON of a keys file"),
        ("[]", "valid dictionary"),
        ('{"keys": []', "is not the JSON"),
        ("{}", "keys: Field required"),
        ('{"format": 2, "keys": []}', "format: Input should be 1"),
        (changed(requird=["y"]), "keys.0.requird: Extra inputs are not permitted"),
        (changed(required="x"), "keys.0.required: Input should be a valid tuple"),
        (changed(required=["x y"]), "keys.0.required.0: String should match"),
        (changed(default=["*"]), "keys.0.default.0: String should match"),
        (changed(required=["*"]), "keys.0.required.0: String should match"),
        (changed(admin="yes"), "keys.0.admin: Input should be a valid boolean"),
        (changed(admin=1), "keys.0.admin: Input should be a valid boolean"),
        (changed(sha256="secret"), "keys.0.sha256: String should match"),
        (changed(tenant=""), "keys.0.tenant: String should match"),
        (changed(id=None), "keys.0.id: Input should be a valid string"),
        (json.dumps({"keys": GOOD["keys"] * 2}), "two keys have the same id, 'a'"),
        (json.dumps({"keys": [*GOOD["keys"], {**GOOD["keys"][0], "id": "b"}]}), "two keys have the same sha256"),
        (
            '{"keys": [{"id": "a", "tenant": "t", "sha256": "%s", "required": ["x"], "required": []}]}' % ("0" * 64),
            "field 'required' is written twice",
        ),
        ("[" * 100_000, "is not the JSON"),
        ("\xff", "is not the JSON"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_the_field(tmp_path, text, sentence):
    file = tmp_path / "keys.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(KeysFileError) as refused:
        read_keys(file)
    assert str(refused.value).startswith(f"{file}: ") and sentence in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_byte_order_mark_is_no_part_of_the_keys(tmp_path):
    write(tmp_path / "keys.json", make_key())
    before = read_keys(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "keys.json").read_bytes())
    assert read_keys(tmp_path / "keys.json") == before


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path, seed):
    rng = random.Random(seed)
    file = tmp_path / "keys"
    write(file, make_key("a", required=("x",)), make_key("b", required=("y",), allowed=("*",)))
    whole = file.read_text().rstrip()
    for length in {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(200))}:
        file.write_text(whole[:length])
        with pytest.raises(KeysFileError):
            read_keys(file)


def test_an_error_repeats_no_value_that_could_be_a_key(tmp_path):
    secret = new_secret()
    (tmp_path / "keys").write_text(changed(sha256=secret))
    with pytest.raises(KeysFileError) as refused:
        read_keys(tmp_path / "keys")
    assert secret not in str(refused.value)


# The keyring


@pytest.fixture
def keyring(tmp_path):
    write(tmp_path / "keys", make_key(secret="first", required=("x",)))
    return Keyring(tmp_path / "keys")


def test_only_the_whole_key_is_found(keyring):
    assert keyring.find("first").id == "acme-prod"
    for wrong in ("", "firs", "first ", "FIRST", hash_secret("first"), "f\u00efrst"):
        assert keyring.find(wrong) is None


def test_every_key_of_many_is_found(tmp_path):
    secrets = {f"k{i}": new_secret() for i in range(30)}
    write(tmp_path / "keys", *(make_key(name, secret) for name, secret in secrets.items()))
    keyring = Keyring(tmp_path / "keys")
    assert {name: keyring.find(secret).id for name, secret in secrets.items()} == {name: name for name in secrets}


def test_a_changed_file_counts_from_the_next_request_on(keyring):
    write(keyring.path, make_key(secret="second"))
    assert keyring.find("first") is None and keyring.find("second").required == ()


def test_a_change_that_keeps_size_and_time_is_seen(keyring):
    before = keyring.path.stat()
    write(keyring.path, make_key(secret="other", required=("x",)))
    os.utime(keyring.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keyring.path.stat().st_size == before.st_size
    assert keyring.find("first") is None and keyring.find("other") is not None


def test_a_change_in_place_that_keeps_size_and_time_is_seen(keyring):
    """The key `first` is revoked by somebody who copies files with their times, over the old one."""
    before, text = keyring.path.stat(), keyring.path.read_text()
    with keyring.path.open("r+") as file:
        file.write(text.replace(hash_secret("first"), hash_secret("other")))
    os.utime(keyring.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = keyring.path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert keyring.find("first") is None and keyring.find("other") is not None


def stale() -> float | None:
    return REGISTRY.get_sample_value("unlearngate_keys_file_stale")


def break_it(path: Path) -> None:
    path.write_text(path.read_text().replace('"required"', '"requird"'))


def empty_it(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("damage", [break_it, empty_it, Path.unlink])
def test_a_broken_new_file_leaves_the_last_good_one_in_force_until_it_is_mended(keyring, damage, caplog):
    damage(keyring.path)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert keyring.find("first").required == ("x",)
    assert str(keyring.path) in keyring.problem
    assert stale() == 1
    assert len(caplog.records) == 1 and "the last good one stays in force" in caplog.text
    write(keyring.path, make_key(secret="second", required=("y",)))
    assert keyring.find("first") is None and keyring.find("second").required == ("y",)
    assert keyring.problem is None and stale() == 0


def test_a_keyring_does_not_begin_with_a_broken_file(tmp_path):
    with pytest.raises(KeysFileError):
        Keyring(tmp_path / "missing")
