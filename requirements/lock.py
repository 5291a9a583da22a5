"""Write requirements/cpu.txt: every package the CPU install needs, at the versions of the running environment.

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
EXTRAS = {"cpu", "train", "dev"}


def closure() -> dict[str, str]:
    """Name -> version of everything reachable from unlearngate[cpu,train,dev] and torch."""
    pins: dict[str, str] = {}
    todo = [("unlearngate", EXTRAS)]
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
    """Write the file."""
    path = Path(__file__).with_name("cpu.txt")
    pins = closure()
    lines = [f"{name}=={version}" for name, version in sorted(pins.items())]
    header = "# Made by requirements/lock.py for Python 3.11 on Linux x86-64. Install with --no-deps, after torch.\n"
    path.write_text(header + "\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    main()
