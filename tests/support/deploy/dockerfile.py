"""Read a Dockerfile, and run the steps of a stage without a container engine: in a folder, as an ordinary user.

What the folder cannot have is left out and told: steps that only root may do (apt-get, install --owner). All others are
run word for word, with the absolute paths that the Dockerfile itself names put below the folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from support.attacks.unprivileged import as_nobody, give

_ROOTS_OWN = ("apt-get ", "install --directory --owner")


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str | None
    steps: list[tuple[str, str]] = field(default_factory=list)  # instruction, rest

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.steps if word == instruction]

    def env(self) -> dict[str, str]:
        pairs = [pair.partition("=") for rest in self.all("ENV") for pair in rest.split()]
        return {name: value.strip('"') for name, _, value in pairs}


def read(path: Path) -> list[Stage]:
    """The stages, with continued lines joined and the ARGs before the first FROM filled in."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, (" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], base)
            stages.append(Stage(base, name or None))
        elif word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stages[-1].steps.append((word, rest))
    return stages


class CleanFolder:
    """Runs stages below one folder, all with the same user, who owns it and nothing else."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.folder, self.context = folder, context
        self.left_out: list[str] = []
        self._stages: dict[str, Path] = {}
        give(folder)

    def run(self, stage: Stage, number: int, timeout_s: float) -> Path:
        """The stage's root, with its COPY and RUN done."""
        root = self.folder / (stage.name or f"stage{number}")
        root.mkdir()
        give(root)
        self._stages[stage.name or str(number)] = root
        places = self._places(stage)
        for word, rest in stage.steps:
            if word == "COPY":
                self._copy(rest, root)
            elif word == "RUN":
                self._run(rest, stage, root, places, timeout_s)
        return root

    def environment(self, stage: Stage, root: Path) -> dict[str, str]:
        """ENV, with paths below the root where the stage put something there; nothing of this process's."""
        places = self._places(stage)
        inherited = {"PATH": f"{python_folder()}:/usr/bin:/bin", "HOME": str(root)}
        # pip looks for packages where this user's pip does.
        inherited |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        for told in (Path.home() / ".config" / "pip" / "pip.conf", Path.home() / ".pip" / "pip.conf"):
            if told.is_file():
                inherited["PIP_CONFIG_FILE"] = shutil.copy(told, self.folder / "pip.conf")
        return {**inherited, **{name: _below(value, root, places) for name, value in stage.env().items()}}

    def _places(self, stage: Stage) -> list[str]:
        targets = [rest.split()[-1] for rest in stage.all("COPY")]
        targets += re.findall(r"target=([^ ,]+)", " ".join(stage.all("RUN")))
        targets += [value for value in stage.env().values() if re.fullmatch(r"/(opt|dist|source|steps)[\w./-]*", value)]
        return sorted({target.rstrip("/") for target in targets}, key=len, reverse=True)

    def _copy(self, rest: str, root: Path) -> None:
        words = rest.split()
        origin = self._stages[words.pop(0).removeprefix("--from=")] if words[0].startswith("--from=") else self.context
        *sources, target = words
        for source in sources:
            found = origin / source.lstrip("/")
            into = root / target.lstrip("/")
            place = into / found.name if target.endswith("/") and found.is_file() else into
            place.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(found, place)
        give(root)

    def _run(self, rest: str, stage: Stage, root: Path, places: list[str], timeout_s: float) -> None:
        mounts = re.findall(r"--mount=type=bind,(\S+)", rest)
        for mount in mounts:
            options = dict(option.split("=") for option in mount.split(","))
            origin = self._stages[options["from"]] if "from" in options else self.context
            target = root / options["target"].lstrip("/")
            if not target.exists():
                self._copy(f"{options['source']} {options['target']}", root) if origin == self.context else (
                    shutil.copytree(origin / options["source"].lstrip("/"), target)
                )
        commands = [c.strip() for c in re.sub(r"--mount=\S+ ", "", rest).split("&&")]
        kept = [c for c in commands if not c.startswith((*_ROOTS_OWN, "rm -rf /var/lib/apt"))]
        self.left_out += [c for c in commands if c not in kept]
        for command in kept:
            done = subprocess.run(
                ["sh", "-c", _below(command, root, places)], cwd=root, env=self.environment(stage, root),
                capture_output=True, text=True, timeout=timeout_s, **as_nobody(),
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def python_folder() -> Path:
    """Of a Python that everybody may run and that is of the images' version: the system's, or this one's base."""
    for folder in (Path("/usr/local/bin"), Path("/usr/bin"), Path(sys.base_prefix) / "bin"):
        if (folder / f"python3.{sys.version_info.minor}").exists() and (folder / "python3").exists():
            return folder
    raise RuntimeError("there is no python3 of this version")


def command_of(stage: Stage) -> list[str]:
    """ENTRYPOINT and CMD."""
    return [word for instruction in ("ENTRYPOINT", "CMD") for word in json.loads(stage.all(instruction)[-1])]


def _below(text: str, root: Path, places: list[str]) -> str:
    for place in places:
        text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w-])", f"{root}{place}", text)
    return text
