"""Two real servers over one target, each with a folder of sets and a keys file of its own, as two nodes have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from typer.testing import CliRunner

from support.deploy.nginx import Nginx, set_up
from support.engine.reference import Reference, Term
from support.engine.tiny import make_forget_set, make_target
from support.server import Server
from unlearngate.artefact import ForgetSet
from unlearngate.cli import app

ORIGIN = "https://chat.example.org"
STRENGTH = {"weight": 1.5, "keep_ratio": 0.2, "gate_nats": 0.0}
ENGINE = "--dtype float32 --max-model-len 512 --max-num-seqs 16 --enforce-eager --block-size 32"
SETS = [("anna", "1"), ("anna", "2"), ("bert", "1"), ("cleo", "1"), ("dora", "1")]
# Two engines on two cores: each leaves the other its turn.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Replicas:
    """anna is required for everybody, bert for the key `acme`, cleo by the gateway at acme's name; dora comes later."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base, self._stack = base, stack
        self.target = make_target(base / "tiny", seed=51)
        self.versions: dict[tuple[str, str], ForgetSet] = {
            (name, version): make_forget_set(
                base / "made" / f"{name}-{version}", self.target, seed=60 + i, scale=0.3, rank=8, name=name,
                version=version, recommended=STRENGTH,
            )
            for i, (name, version) in enumerate(SETS)
        }  # fmt: skip
        self.site = base / "site"
        self.keys = set_up(self.site)
        for tenant, options in {"acme": ["--require", "bert"], "globex": ["--allow", "cleo"]}.items():
            self.keys[tenant] = add_key(self.site / "keys.json", tenant, *options)
        for node in ("a", "b"):
            for name in ("anna", "bert", "cleo"):
                shutil.copytree(self.versions[name, "1"].folder, base / node / "sets" / name)
            shutil.copy(self.site / "keys.json", base / node / "keys.json")
        self.servers = {node: self.start(node) for node in ("a", "b")}
        for server in self.servers.values():
            server.wait_until_healthy()
        self._reference = Reference(self.target, {v.reference: v.folder for v in self.versions.values()})
        self._judged: dict[tuple, int] = {}

    def start(self, node: str) -> Server:
        folder = self.base / node
        options = ["--keys", folder / "keys.json", "--gateway-secret-file", self.site / "gateway-secret"]
        options += ["--require-gateway", "--required-set", "anna", "--watch-interval-s", "0.2"]
        options += ["--max-sets-per-request", "4", "--audit", folder / "audit", "--allowed-origin", ORIGIN]
        options += ["--engine-args", ENGINE]
        (folder / "audit").mkdir(exist_ok=True)
        arguments = [self.target, "--forget-sets", folder / "sets", *options]
        return self._stack.enter_context(Server(arguments, folder / "log", ENVIRONMENT, fresh=True))

    def addresses(self, *nodes: str) -> list[str]:
        return [f"127.0.0.1:{self.servers[node].port}" for node in nodes or ("a", "b")]

    def gateway(self, folder: str, servers: list[str] | None = None, **options) -> Nginx:
        required = {"acme.localhost": "cleo"}
        return Nginx(self.base / folder, self.site, servers or self.addresses(), required=required, **options)

    def reference_of(self, name: str, version: str = "1") -> str:
        return self.versions[name, version].reference

    def wrong_tokens(self, prompt: list[int], tokens: list[int], sets: tuple[str, ...]) -> int:
        """Tokens of an answer that are not what these versions together give, by Hugging Face + PEFT."""
        judged = (tuple(prompt), tuple(tokens), sets)
        if judged not in self._judged:
            terms = [Term(s, STRENGTH["weight"], 0.0) for s in sets]
            verdict = self._reference.check(prompt, tokens, terms, STRENGTH["keep_ratio"], 2e-3)
            self._judged[judged] = len(verdict.wrong)
        return self._judged[judged]

    def ready(self, node: str) -> bool:
        try:
            return httpx.get(f"{self.servers[node].url}/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def inside(self, node: str, path: str, key: str = "admin") -> httpx.Response:
        """Ask a server itself, as the gateway would."""
        secret = (self.site / "gateway-secret").read_text()
        headers = {"x-unlearngate-gateway": secret, "authorization": f"Bearer {self.keys[key]}"}
        return httpx.get(f"{self.servers[node].url}{path}", headers=headers, timeout=60)

    def served_version(self, node: str, name: str) -> str | None:
        """The digest that a node has in force."""
        cards = {card["id"]: card["digest"] for card in self.inside(node, "/v1/forget_sets").json()["data"]}
        return cards.get(name)


@contextmanager
def two_replicas(base: Path) -> Iterator[Replicas]:
    """They end with the block."""
    with ExitStack() as stack:
        yield Replicas(base, stack)


def add_key(file: Path, tenant: str, *options: str) -> str:
    """The new key."""
    result = CliRunner().invoke(app, ["keys", "add", str(file), "--id", tenant, "--tenant", tenant, *options])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()
