"""The check of a vLLM version's source (`support.seams`): all seams are there in the vLLM that is installed."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.seams import Seam, Source, problems, seams

INSTALLED = Path(importlib.util.find_spec("vllm").origin).parents[1]
MODULE = """
from .inner import moved as known
TABLE = 3
class Base:
    field: int = 0
    def run(self, logits, rows, *, scale=1.0): return self.counts[rows]
class Runner(Base):
    def __init__(self, config, device=None): self.device = device
"""
NAMES = ("vllm.part:known", "vllm.part:TABLE", "vllm.part:Base.field", "vllm.part:Runner.run", "vllm.part:Runner")


def test_every_seam_is_there():
    installed = Source(INSTALLED)
    broken = {seam: wrong for seam in seams() if (wrong := problems(seam, installed, installed))}
    assert broken == {}


def version_of(folder, module):
    for path, text in {"__init__": "", "part": module, "inner": "def moved(x): return x"}.items():
        (folder / "vllm" / f"{path}.py").parent.mkdir(parents=True, exist_ok=True)
        (folder / "vllm" / f"{path}.py").write_text(text)
    return folder


@pytest.fixture
def old(tmp_path):
    return Source(version_of(tmp_path / "old", MODULE))


def changed(tmp_path, before, after):
    assert before in MODULE
    return Source(version_of(tmp_path / "new", MODULE.replace(before, after)))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_found_through_imports_and_bases(name, old):
    assert problems(Seam((name,), ""), old, old) == []


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("known", "moved as known", "moved", "is gone"),
        ("TABLE", "TABLE = 3", "OTHER = 3", "is gone"),
        ("Base.field", "field: int = 0", "", "is gone"),
        ("Runner.run", "def run", "def walk", "is gone"),
        ("Runner.run", "logits, rows, *", "logits, lines, *", "no longer takes rows"),
        ("Runner.run", "logits, rows, *", "rows, logits, *", "takes logits elsewhere"),
        ("Runner.run", "scale=1.0", "scale=1.0, most", "demands most"),
        ("Runner.run", "self.counts", "self.numbers", "no longer has counts"),
        ("Runner", "config, device=None", "config, device", None),
        ("Runner", "config, device=None", "config, other, device=None", "takes device elsewhere"),
        ("Runner", "config, device=None", "config, device=None, more=None", None),
    ],
)
def test_what_no_longer_holds_is_said(tmp_path, old, name, before, after, said):
    words = ("counts",) if name == "Runner.run" and "counts" in before else ()
    found = problems(Seam((f"vllm.part:{name}",), "", words), old, changed(tmp_path, before, after))
    assert said in found if said else found == []


def test_of_two_places_one_is_enough(tmp_path, old):
    new = changed(tmp_path, "TABLE = 3", "")
    assert problems(Seam(("vllm.part:TABLE", "vllm.inner:moved"), ""), old, new) == []
    assert problems(Seam(("vllm.part:TABLE", "vllm.inner:gone"), ""), old, new) == ["is gone"]


def test_the_command_reads_a_wheel_and_fails_where_a_seam_is_gone(tmp_path):
    with zipfile.ZipFile(tmp_path / "vllm-9.9.whl", "w") as wheel:
        wheel.write(INSTALLED / "vllm" / "__init__.py", "vllm/__init__.py")
        wheel.write(INSTALLED / "vllm" / "logger.py", "vllm/logger.py")
    command = [sys.executable, "-m", "support.seams", tmp_path / "vllm-9.9.whl"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 1 and "vllm.lora.request:LoRARequest: is gone" in ran.stdout
    assert "vllm.logger:DEFAULT_LOGGING_CONFIG" not in ran.stdout
