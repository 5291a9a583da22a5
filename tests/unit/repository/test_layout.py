"""The folder layout shows the architecture: who may import whom, and what the wheel holds."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = {
    "unlearngate": ROOT / "unlearngate",
    "unlearngate.kernels": ROOT / "kernels",
    "unlearngate.server": ROOT / "server",
    "unlearngate.assistant_training": ROOT / "assistant_training",
}
MOST_FILES = 16  # of a folder; more is a folder that should be two
ANYTHING = {""}
# What each folder, or module that is not as its folder is, may import besides itself; docs/architecture.md draws it.
ARROWS = {
    "unlearngate": set(),  # everybody below may import it
    "unlearngate.cli": {"commands"},
    "unlearngate.commands": ANYTHING,
    "unlearngate.kernels": set(),
    "unlearngate.server.metrics": set(),
    "unlearngate.server.config": {"server.contract", "server.sets"},
    "unlearngate.server": {f"server.{n}" for n in ("http", "audit", "sets", "engine", "contract", "metrics", "config")},
    "unlearngate.server.http": {"server.audit", "server.sets", "server.engine", "server.contract", "server.metrics"},
    "unlearngate.server.audit": {"server.sets", "server.engine", "server.contract", "server.metrics"},
    "unlearngate.server.sets": {"server.engine", "server.contract"},
    "unlearngate.server.engine": {"server.contract", "server.metrics"},
    "unlearngate.server.contract": set(),
    "unlearngate.server.worker": {"server.contract", "kernels"},
}
OFFLINE = {
    "data": set(),
    "model": {"data"},
    "train": {"model", "data"},
    "evaluate": {"model", "data"},
    "attack": {"evaluate", "model", "data"},
    "calibrate": {"evaluate", "model", "data"},
    "demo": {"train", "evaluate", "model", "data"},
    "forget": {"attack", "train", "model", "data"},
    "reproduce": {"demo", "train", "evaluate", "model", "data"},
}
ARROWS |= {
    f"unlearngate.assistant_training.{folder}": {"kernels", *(f"assistant_training.{name}" for name in allowed)}
    for folder, allowed in OFFLINE.items()
}
FORBIDDEN_LIBRARIES = {
    "unlearngate": {"vllm", "fastapi", "peft"},
    "unlearngate.kernels": {"vllm", "fastapi", "transformers", "peft"},
    "unlearngate.server": {"peft"},
    "unlearngate.server.sets": {"peft", "vllm", "fastapi"},
    "unlearngate.server.audit": {"peft", "vllm"},
    "unlearngate.server.contract": {"peft", "vllm", "fastapi"},
    "unlearngate.server.worker": {"peft", "fastapi"},
    "unlearngate.assistant_training": {"vllm", "fastapi"},
}
# vLLM differs between versions: who touches it is known.
TOUCH_VLLM = {"engine/compat.py", "engine/client.py", "http/app.py", "http/requests/models.py", "worker"}


def modules() -> list[str]:
    """Every module of ours by its name."""
    return [
        ".".join([package, *path.relative_to(folder).with_suffix("").parts])
        for package, folder in FOLDERS.items()
        for path in sorted(folder.rglob("*.py"))
    ]


def path_of(module: str) -> Path:
    package = max((p for p in FOLDERS if module.startswith(f"{p}.")), key=len)
    return FOLDERS[package].joinpath(*module.removeprefix(f"{package}.").split(".")).with_suffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found


def rule_of(module: str, rules: dict[str, set[str]]) -> str:
    """The longest name of the rules that the module is, or is in."""
    return max((name for name in rules if f"{module}.".startswith(f"{name}.")), key=len)


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module):
    own = rule_of(module, ARROWS)
    shared = {m for m in MODULES if m.count(".") == 1} - {"unlearngate.cli"}
    used = (imports_of(path_of(module)) & set(MODULES)) - shared
    for name in used:
        allowed = any(f"{name}.".startswith(f"unlearngate.{arrow}".rstrip(".") + ".") for arrow in ARROWS[own])
        same_folder = rule_of(name, ARROWS) == own != "unlearngate"
        assert allowed or same_folder, f"{module} imports {name}; {own} may import {sorted(ARROWS[own])}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module):
    if module.startswith(("unlearngate.commands.", "unlearngate.cli")):
        return
    forbidden = FORBIDDEN_LIBRARIES[rule_of(module, FORBIDDEN_LIBRARIES)]
    used = {name.partition(".")[0] for name in imports_of(path_of(module))}
    assert not used & forbidden, f"{module} imports {sorted(used & forbidden)}"
    inside = path_of(module).relative_to(ROOT).as_posix().removeprefix("server/")
    if module.startswith("unlearngate.server.") and inside not in TOUCH_VLLM and inside.split("/")[0] not in TOUCH_VLLM:
        assert "vllm" not in used, f"{module} imports vllm"


@pytest.mark.parametrize("module", MODULES)
def test_no_line_ends_inside_a_json_string(module):
    """`str.splitlines` ends lines at U+2028, U+0085 and others, which JSON allows inside strings."""
    assert "splitlines(" not in path_of(module).read_text()


def test_every_arrow_has_its_folder():
    """A folder that is renamed takes its rule along."""
    for name in ARROWS:
        assert any(m == name or m.startswith(f"{name}.") for m in MODULES), name


def test_no_folder_is_a_room_that_holds_everything():
    for top in (*FOLDERS.values(), ROOT / "tests", ROOT / "benchmarks"):
        for folder in {path.parent for path in top.rglob("*.py")}:
            assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


def test_bare_kernels_at_the_root_is_not_ours():
    """A regular `kernels/__init__.py` would shadow Hugging Face's package of that name."""
    for folder in ("kernels", "server", "assistant_training", "unlearngate"):
        assert not (ROOT / folder / "__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else None)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "None"


def test_the_wheel_holds_every_module_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    keep = ["pyproject.toml", "README.md", "LICENSE", *(f.name for f in FOLDERS.values())]
    for name in keep:
        path = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else _copy(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {f"{module.replace('.', '/')}.py" for module in MODULES} | {"unlearngate/py.typed"}
    for shipped in ("demo/built", "demo/pretrained", "model/lessons"):
        folder = FOLDERS["unlearngate.assistant_training"] / shipped
        wanted |= {f"unlearngate/{path.relative_to(ROOT)}" for path in folder.rglob("*") if path.is_file()}
    assert held == wanted


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, destination)


def test_the_cpu_lock_leaves_out_cuda_builds_and_holds_our_requirements():
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    assert not pinned & {"torch", "torchvision", "torchaudio", "torchcodec"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["cpu"], *extras["train"], *extras["dev"]]:
        name = re.split(r"[\[><=]", requirement)[0]
        assert name == "torch" or name in pinned, f"{name} is not pinned in requirements/cpu.txt; run make lock"
