"""Write requirements/cpu.txt: every package the CPU install needs, at the versions of the running environment.

And requirements/serve.txt, those of them that serving needs: docker/cpu.Dockerfile installs no others.

Run it inside an environment that passes the tests:  make lock
torch is left out because its CPU build is found differently from place to place (see the Makefile), and torchvision,
torchaudio and torchcodec because PyPI has them as CUDA builds only, which break `import transformers` on a CPU torch.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "unlearngate"}
FILES = {"cpu.txt": {"cpu", "train", "dev"}, "serve.txt": {"cpu"}}


def closure(extras: set[str]) -> dict[str, str]:
    """Name -> version of everything reachable from unlearngate with these extras, and torch."""
    pins: dict[str, str] = {}
    todo = [("unlearngate", extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            if name not in LEFT_OUT:
                print(f"not installed, left out: {name}", file=sys.stderr)
            continue
        if name not in LEFT_OUT:
            pins[name] = dist.version
        for text in dist.requires or []:
            requirement = Requirement(text)
            wanted = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(w) for w in wanted):
                todo.append((canonicalize_name(requirement.name), set(requirement.extras)))
    return pins


def main() -> None:
    """Write the files."""
    for name, extras in FILES.items():
        path = Path(__file__).with_name(name)
        lines = [f"{package}=={version}" for package, version in sorted(closure(extras).items())]
        header = (
            "# Made by requirements/lock.py for Python 3.11 on Linux x86-64. Install with --no-deps, after torch.\n"
        )
        path.write_text(header + "\n".join(lines) + "\n")
        print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    main()
