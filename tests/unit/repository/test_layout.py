"""The folder layout shows the architecture: who may import whom, and what the wheel holds."""

import ast
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
SHARED = {f"unlearngate.{name}" for name in ("artefact", "errors", "manifest", "placing", "target")}
# Which of our packages each folder may import. The command line alone may import everything.
MAY_IMPORT = {
    "unlearngate.kernels": {"unlearngate.kernels"},
    "unlearngate": SHARED,
    "unlearngate.server": SHARED | {"unlearngate.kernels", "unlearngate.server"},
    "unlearngate.assistant_training": SHARED | {"unlearngate.kernels", "unlearngate.assistant_training"},
}
FORBIDDEN_LIBRARIES = {
    "unlearngate.kernels": {"vllm", "fastapi", "transformers", "peft"},
    "unlearngate": {"vllm", "fastapi", "peft"},
    "unlearngate.server": {"peft"},
    "unlearngate.assistant_training": {"vllm", "fastapi"},
}


def modules() -> list[tuple[str, Path]]:
    return [(package, path) for package, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found


@pytest.mark.parametrize("package, path", modules(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_imports_follow_the_arrows(package, path):
    if path.name == "cli.py" or path.parent.name == "commands":
        return
    for name in imports_of(path):
        top = name.partition(".")[0]
        assert top not in FORBIDDEN_LIBRARIES[package], f"{path} imports {name}"
        if top == "unlearngate" and name != "unlearngate":
            allowed = MAY_IMPORT[package]
            assert any(name == a or name.startswith(f"{a}.") for a in allowed) or name in {
                a.rpartition(".")[0] for a in allowed
            }, f"{path} imports {name}; {package} may import {sorted(allowed)}"


MODEL_FILES = {"model.py", "lockstep.py", "cpu_lora.py"}  # what the engine's worker runs


def test_only_one_module_touches_vllms_private_entry_points():
    for path in sorted((ROOT / "server").rglob("*.py")):
        if path.name in {"compat.py", "app.py", "plugin.py", "processor.py", *MODEL_FILES}:
            continue
        assert not any(name.partition(".")[0] == "vllm" for name in imports_of(path)), f"{path} imports vllm"


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
    wanted = {f"{package.replace('.', '/')}/{path.relative_to(FOLDERS[package])}" for package, path in modules()} | {
        "unlearngate/py.typed"
    }
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
        name = requirement.split(">")[0].split("=")[0].split("<")[0]
        assert name == "torch" or name in pinned, f"{name} is not pinned in requirements/cpu.txt; run make lock"
