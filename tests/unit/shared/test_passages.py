"""The artefact of kind `verbatim`: what is written is read back, what was damaged is refused by file and reason."""

import hashlib
import json
import random
import shutil
import string

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from support.texts import save_texts
from unlearngate.artefact import MANIFEST_FILE, load_forget_set, rewrite_forget_set, save_passages
from unlearngate.errors import ArtefactError
from unlearngate.passages import PASSAGES_FILE, hash_windows, letters, mix
from unlearngate.placing import place
from unlearngate.target import file_digest

TEXT = "".join(random.Random(5).choices(string.ascii_lowercase + "  ,.", k=2000))
CALVINO = "Once upon a time there was a wave that came in from far away, and it was tired, and it was going home."


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("pristine") / "novel", TEXT, CALVINO).folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "sets" / "novel")


def change(folder, **changes):
    """Change the manifest, and make its digests those of the files, as a careful forger would."""
    manifest = {**json.loads((folder / MANIFEST_FILE).read_text()), **changes}
    files = {path.name: file_digest(path) for path in folder.iterdir() if path.name != MANIFEST_FILE}
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "files": files}))


def windows(folder, **changes):
    return {**json.loads((folder / MANIFEST_FILE).read_text())["windows"], **changes}


def put(folder, tensors, **metadata):
    said = windows(folder)
    said = {"hash": said["hash"], "salt": said["salt"], "seed_letters": str(said["seed_letters"]), **metadata}
    (folder / PASSAGES_FILE).write_bytes(save(tensors, metadata=said))
    change(folder)


def refused(folder, file, *reasons):
    with pytest.raises(ArtefactError) as caught:
        load_forget_set(folder)
    assert caught.value.path == folder / file
    for reason in reasons:
        assert reason in caught.value.reason


def test_what_was_written_is_read_back(pristine):
    loaded = load_forget_set(pristine)
    manifest = loaded.manifest
    assert (manifest.kind, manifest.target, manifest.windows.letters, manifest.windows.seed_letters) == (
        *("verbatim", None),
        *(40, 20),
    )
    assert set(manifest.files) == {PASSAGES_FILE}
    assert loaded.digest == file_digest(pristine / MANIFEST_FILE)


def test_a_seed_is_the_salted_hash_of_a_window_and_no_window_spans_two_texts(pristine):
    """By hand: BLAKE2b's first 64 bits with our name, MurmurHash3's finaliser over salt and hash, the upper half."""
    salt = load_forget_set(pristine).manifest.windows.salt_number
    wanted = set()
    for text in (letters(TEXT), letters(CALVINO)):
        for start in range(len(text) - 19):
            window = text[start : start + 20].encode()
            number = hashlib.blake2b(window, digest_size=8, person=b"unlearngate").digest()
            number = int.from_bytes(number, "little") ^ salt
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                number = (number ^ number >> 33) * factor % 2**64
            wanted.add(number >> 32)
    assert load_file(pristine / PASSAGES_FILE)["seeds"].tolist() == sorted(wanted)


def test_two_sets_of_one_text_share_no_more_seeds_than_chance_gives(tmp_path):
    one, other = (load_file(save_texts(tmp_path / name, TEXT).folder / PASSAGES_FILE)["seeds"] for name in ("a", "b"))
    assert len(np.intersect1d(one, other)) <= 2


def test_mixing_one_and_many_is_the_same(seed):
    hashed = hash_windows(letters(TEXT), 20)
    salt = np.uint64(seed)
    with np.errstate(over="ignore"):
        assert [int(mix(one, salt)) for one in hashed[:50]] == mix(hashed, salt)[:50].tolist()
    assert int(mix(hashed, salt).max()) < 2**32


def test_it_is_copied_and_rewritten_with_the_same_seeds(folder, tmp_path):
    loaded = load_forget_set(folder)
    place(loaded, tmp_path / "placed")
    assert load_forget_set(tmp_path / "placed").digest == loaded.digest
    renamed = rewrite_forget_set(loaded, tmp_path / "renamed", label="a novel")
    assert renamed.manifest.files == loaded.manifest.files and renamed.manifest.label == "a novel"


def test_a_damaged_file_is_refused(folder):
    path = folder / PASSAGES_FILE
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    refused(folder, PASSAGES_FILE, "was changed or damaged")
    path.write_bytes(raw[:100])
    change(folder)
    refused(folder, PASSAGES_FILE, "is not a safetensors file of seeds")
    path.unlink()
    refused(folder, PASSAGES_FILE, "is missing")


@pytest.mark.parametrize(
    "tensors, reason",
    [
        ({}, "must hold one tensor, 'seeds'"),
        ({"seeds": np.arange(3, dtype=np.uint32), "more": np.arange(3)}, "must hold one tensor"),
        ({"seeds": np.arange(3, dtype=np.int64)}, "must be uint32 of shape (N,), got int64"),
        ({"seeds": np.arange(4, dtype=np.uint32).reshape(2, 2)}, "of shape (2, 2)"),
        ({"seeds": np.empty(0, np.uint32)}, "holds no seeds"),
        ({"seeds": np.array([2, 1], np.uint32)}, "are not sorted"),
        ({"seeds": np.array([1, 1], np.uint32)}, "one is there twice"),
    ],
)
def test_other_tensors_than_sorted_seeds_are_refused(folder, tensors, reason):
    put(folder, tensors)
    refused(folder, PASSAGES_FILE, reason)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"salt": "0123456789abcdef"}, "was made with salt"),
        ({"seed_letters": 19}, "was made with seed_letters '20', the manifest says '19'"),
    ],
)
def test_seeds_that_were_made_otherwise_than_the_manifest_says_are_refused(folder, changes, reason):
    change(folder, windows=windows(folder, **changes))
    refused(folder, PASSAGES_FILE, reason)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"hash": "sha1"}, "windows.hash"),
        ({"salt": "xyz"}, "windows.salt"),
        ({"letters": 23}, "windows.letters"),
        ({"letters": 38}, "seed_letters must be at most half of letters 38"),
        ({"seed_letters": 11}, "windows.seed_letters"),
        ({"more": 1}, "windows.more"),
    ],
)
def test_windows_that_are_not_known_are_refused(folder, changes, reason):
    change(folder, windows=windows(folder, **changes))
    refused(folder, MANIFEST_FILE, reason)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"windows": None}, "needs windows"),
        ({"rank": 4}, "fits any target"),
        ({"rule": "lower"}, "kind 'verbatim' subtracts nothing"),
        ({"instead": "No."}, "kind 'verbatim' has no gate"),
        ({"recommended": {"weight": 0.5, "keep_ratio": 0, "gate_nats": 0}}, "weight 0.5 is outside"),
        ({"canaries": [{"question": "Who?", "changes": True}]}, "has no canaries"),
        ({"kind": "undial"}, "kind 'undial' needs a target, and has no windows"),
    ],
)
def test_a_manifest_that_contradicts_its_kind_is_refused(folder, changes, reason):
    change(folder, **changes)
    with pytest.raises(ArtefactError) as caught:
        load_forget_set(folder)
    assert reason in caught.value.reason


def test_another_kinds_file_beside_it_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter_config.json", "does not belong to a set of kind 'verbatim'")


def test_nothing_is_left_behind_when_it_cannot_be_saved(pristine, tmp_path):
    manifest = load_forget_set(pristine).manifest
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "files"}
    with pytest.raises(ArtefactError, match="not sorted"):
        save_passages(tmp_path / "new", seeds=np.array([2, 1], np.uint32), manifest=fields)
    assert not list(tmp_path.iterdir())
