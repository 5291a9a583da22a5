"""What a version of vLLM has of all that is used here, read from its source: nothing of it is installed or imported.

    pip download --no-deps --dest /tmp/vllm vllm==0.33.0
    PYTHONPATH=tests python -m support.seams /tmp/vllm/vllm-0.33.0-*.whl

A *seam* is a name of vLLM that our code imports, or one of `support.seams_list`: what is replaced, subclassed, and read
of vLLM's objects. Each is compared with the vLLM of this environment, or of `--old`. Exits 1 if one is gone, no longer
takes what it took, or no longer has a word that is relied on.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.seams_list import SEAMS

ROOT = Path(__file__).parents[2]
OURS = ("server", "unlearngate", "kernels", "assistant_training", "benchmarks", "tests/support", "tests/e2e")
MISSING = {"ImportError", "ModuleNotFoundError"}
Tree = Path | zipfile.Path
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """Where a name is defined: its syntax tree and source, both of the definition alone."""

    node: ast.AST
    source: str


class Source:
    """A version of vLLM as a folder that holds `vllm/`, or a wheel."""

    def __init__(self, path: Path) -> None:
        self._root: Tree = zipfile.Path(path) if path.suffix == ".whl" else path
        self._modules: dict[str, tuple[str, ast.Module] | None] = {}
        if self.module("vllm") is None:
            raise SystemExit(
                f"{path} holds no vllm/__init__.py: give a wheel, or the folder that one was unpacked into"
            )

    def module(self, name: str) -> tuple[str, ast.Module] | None:
        """A module's source and tree; None if there is no such module."""
        if name not in self._modules:
            stem = name.replace(".", "/")
            files = (self._root / f"{stem}.py", self._root / f"{stem}/__init__.py")
            text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), None)
            self._modules[name] = None if text is None else (text, ast.parse(text))
        return self._modules[name]

    def find(self, module: str, name: str) -> Found | None:
        """What a module knows by a name, also one that it imports, or a dotted one of a class and its bases."""
        first, _, rest = name.partition(".")
        if (known := self.module(module)) is None:
            return None
        text, tree = known
        for node in _statements(tree.body):
            if isinstance(node, ast.ImportFrom):
                place = self._place(module, node)
                for alias in node.names:
                    if (alias.asname or alias.name) == first:
                        return self.find(place, f"{alias.name}.{rest}".rstrip("."))
            if first not in _defines(node):
                continue
            if not rest:
                return Found(node, ast.get_source_segment(text, node) or "")
            return self._member(module, node, rest)
        if not rest and (lazy := _lazy(tree, first)):  # as vllm/__init__.py has its names
            place, _, inner = lazy.partition(":")
            return self.find(module + place if place.startswith(".") else place, inner)
        return self.find_module(f"{module}.{first}") if not rest else None

    def find_module(self, name: str) -> Found | None:
        """A module by its name."""
        known = self.module(name)
        return Found(known[1], known[0]) if known else None

    def _place(self, module: str, node: ast.ImportFrom) -> str:
        """The module that an import statement of a module names."""
        above = module.split(".") if self.is_package(module) else module.split(".")[:-1]
        kept = above[: len(above) + 1 - node.level] if node.level else []
        return ".".join([*kept, *filter(None, [node.module])])

    def is_package(self, name: str) -> bool:
        """Whether a module is a folder's."""
        return not (self._root / f"{name.replace('.', '/')}.py").is_file()

    def _member(self, module: str, node: ast.AST, name: str) -> Found | None:
        if not isinstance(node, ast.ClassDef) or (known := self.module(module)) is None:
            return None
        for statement in node.body:
            if name in _defines(statement):
                return Found(statement, ast.get_source_segment(known[0], statement) or "")
        bases = (base.id for base in node.bases if isinstance(base, ast.Name))
        return next((found for base in bases if (found := self.find(module, f"{base}.{name}"))), None)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, the last definition of a name first, also those within `if` and `try`."""
    for node in reversed(body):
        if isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse, *(s for h in getattr(node, "handlers", ()) for s in h.body)]
            yield from _statements(inner)
        else:
            yield node


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _lazy(tree: ast.Module, name: str) -> str | None:
    """Of a module-level table of names the place that it says a name is imported from."""
    for node in tree.body:
        value = getattr(node, "value", None)
        for key, place in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == name and isinstance(place, ast.Constant):
                return str(place.value)
    return None


@cache
def imported() -> dict[tuple[str, ...], str]:
    """What our code imports of vLLM, and the first file that does: names of which one at least must be there."""
    found: dict[tuple[str, ...], str] = {}
    for folder in OURS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for names in _imports_of(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(names, str(path.relative_to(ROOT)))
    return found


def _imports_of(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Imported names as `module:name`; those of a `try` and of its `except ImportError` belong together."""
    together: dict[ast.AST, list[ast.ImportFrom]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            handlers = [h for h in node.handlers if h.type is not None and ast.unparse(h.type) in MISSING]
            nodes = [n for n in (*node.body, *(s for h in handlers for s in h.body)) if isinstance(n, ast.ImportFrom)]
            together |= dict.fromkeys(nodes, nodes) if handlers else {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "vllm":
            continue
        for alias in node.names:
            ways = [n for n in together.get(node, [node]) if alias.name in [a.name for a in n.names]]
            yield tuple(f"{way.module}:{alias.name}" for way in ways)


@dataclass(frozen=True)
class Seam:
    """A name, or several of which one must be there, who uses it, and the words that its source must have."""

    names: tuple[str, ...]
    user: str
    words: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return " or ".join(self.names)

    def find(self, source: Source) -> Found | None:
        """Its definition in a version; None without one."""
        return next((found for name in self.names if (found := source.find(*name.split(":")))), None)


def seams() -> list[Seam]:
    """All that our code imports, then the table."""
    listed = [Seam((name,), "tests/support/seams_list.py", words) for name, words in SEAMS.items()]
    return [*(Seam(names, user) for names, user in imported().items()), *listed]


def problems(seam: Seam, old: Source | None, new: Source) -> list[str]:
    """Why a seam no longer holds in `new`; none if it does."""
    found = seam.find(new)
    if found is None:
        return ["is gone"]
    known = {word for node in ast.walk(found.node) for word in _words(node)}
    lost = [f"no longer has {word}" for word in seam.words if word not in known]
    before = seam.find(old) if old else None
    return lost + (_lost_parameters(before.node, found.node) if before else [])


def _words(node: ast.AST) -> Iterator[str]:
    """Names, attributes, parameters and strings."""
    for field in ("id", "attr", "arg", "name", "value"):
        if isinstance(word := getattr(node, field, None), str):
            yield word


def _lost_parameters(old: ast.AST, new: ast.AST) -> list[str]:
    """What a function, or a class when it is made, took and no longer takes, or takes elsewhere, or now demands."""
    before, after = _callable(old), _callable(new)
    if before is None or after is None:
        return []
    (old_places, old_names, _), (places, names, demanded) = _parameters(before), _parameters(after)
    lost = [f"no longer takes {name}" for name in old_names if name not in names]
    lost += [
        f"takes {name} elsewhere" for i, name in enumerate(old_places) if name in names and places[i : i + 1] != [name]
    ]
    return lost + [f"demands {name}" for name in demanded if name not in old_names]


def _callable(node: ast.AST) -> Function | None:
    if isinstance(node, ast.ClassDef):
        return next((one for one in node.body if isinstance(one, Function) and one.name == "__init__"), None)
    return node if isinstance(node, Function) else None


def _parameters(function: Function) -> tuple[list[str], list[str], list[str]]:
    """The names of parameters by place, of all, and of those without a default."""
    arguments = function.args
    places = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    named = [one.arg for one in arguments.kwonlyargs]
    bare = [one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default]
    return places, [*places, *named], [*places[: len(places) - len(arguments.defaults)], *bare]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, help="a wheel of vLLM, or the folder that holds vllm/")
    parser.add_argument("--old", type=Path, help="what to compare it with; this environment's vLLM if left out")
    parser.add_argument("--diff", action="store_true", help="also show how a seam's source has changed")
    args = parser.parse_args()
    spec = importlib.util.find_spec("vllm")
    if args.old is None and (spec is None or spec.origin is None):
        parser.error("there is no vLLM in this environment to compare with: give --old")
    old, new = Source(args.old or Path(spec.origin).parents[1]), Source(args.new)
    counts = dict.fromkeys(("same", "changed", "broken"), 0)
    for seam in seams():
        wrong, before, after = problems(seam, old, new), seam.find(old), seam.find(new)
        state = "broken" if wrong else "same" if before and after and before.source == after.source else "changed"
        counts[state] += 1
        if state != "same":
            print(f"{state:8}{seam.title}{': ' if wrong else ''}{'; '.join(wrong)}  ({seam.user})")
        if args.diff and state != "same" and before and after:
            lines = difflib.unified_diff(before.source.splitlines(), after.source.splitlines(), "old", "new", "", "", 2)
            print(textwrap.indent("\n".join(line.rstrip("\n") for line in lines), "    "))
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
