"""The gateway as it is shipped, in a folder of its own: docker/gateway's files, this test's site, a real nginx."""

from __future__ import annotations

import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from support.attacks.unprivileged import as_nobody, give
from support.server import free_port

ROOT = Path(__file__).parents[3]
BINARY = ROOT / "build" / "deploy" / "nginx" / "usr" / "sbin" / "nginx"
HOSTS = ("localhost", "acme.localhost", "globex.localhost")


def set_up(site: Path) -> dict[str, str]:
    """Run docker/setup.sh; the keys that it printed, by their ids."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["sh", str(ROOT / "docker" / "setup.sh"), str(site), *HOSTS],
        env={"PATH": path, "HOME": str(site.parent)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(line.split(": ") for line in done.stdout.splitlines())


class Nginx:
    """A running gateway; leaving its `with` block ends it."""

    def __init__(
        self,
        folder: Path,
        made: Path,
        servers: Sequence[str],
        *,
        required: dict[str, str] | None = None,
        shipped_limits: bool = False,
    ) -> None:
        """Start it.

        Args:
            folder: where its files go; must not exist.
            made: what docker/setup.sh made.
            servers: the replicas, as host:port.
            required: sets that the gateway requires, by the name that the client speaks to.
            shipped_limits: keep the rates of docker/gateway/site, which a test's load exceeds.
        """
        self.port = free_port()
        self.folder = folder
        shutil.copytree(ROOT / "docker" / "gateway", folder)
        (folder / "run").mkdir()
        (folder / "made").symlink_to(made)
        for name in ("listen.conf", "listen_default.conf"):
            path = folder / "site" / name
            path.write_text(path.read_text().replace("8443", f"127.0.0.1:{self.port}"))
        tenants = folder / "site" / "tenants.conf"
        lines = "".join(f'    {host} "{names}";\n' for host, names in (required or {}).items())
        tenants.write_text(tenants.read_text().replace('    default "";\n', f'    default "";\n{lines}'))
        if not shipped_limits:
            limits = folder / "site" / "limits.conf"
            limits.write_text(re.sub(r"rate=\d+r/s", "rate=10000r/s", limits.read_text()))
        self._write_upstream(servers)
        self._log = folder / "log"
        self._log.touch()
        give(folder, made)
        with self._log.open("a") as out:
            self.process = subprocess.Popen(
                [*self._command(), "-g", "daemon off;"],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **as_nobody(),
            )
        self._trust = ssl.create_default_context(cafile=made / "tls" / "cert.pem")
        self._wait()

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self, key: str | None = None, host: str = "localhost", *, keep_alive: bool = True) -> httpx.Client:
        """A client that speaks TLS to this host's name, and trusts the gateway's certificate alone."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"host": host, **({"authorization": f"Bearer {key}"} if key else {})},
            limits=httpx.Limits(max_keepalive_connections=None if keep_alive else 0),
            verify=self._trust,
            timeout=120,
            event_hooks={"request": [lambda request: request.extensions.update(sni_hostname=host)]},
        )

    def use(self, servers: Sequence[str]) -> None:
        """Spread requests over these servers from now on, as an orchestrator would."""
        self._write_upstream(servers)
        done = subprocess.run([*self._command(), "-s", "reload"], capture_output=True, text=True, **as_nobody())
        if done.returncode:
            raise RuntimeError(f"nginx did not take its new files: {done.stderr}")

    def _write_upstream(self, servers: Sequence[str]) -> None:
        lines = [f"server {server} max_fails=1 fail_timeout=5s;" for server in servers]
        # Whole or not at all: a reload that is still going on reads the old one or the new one.
        whole = self.folder / "upstream.new"
        whole.write_text("\n".join(["least_conn;", *lines]) + "\n")
        whole.replace(self.folder / "site" / "upstream.conf")

    def _command(self) -> list[str]:
        return [str(BINARY), "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start:\n{self.log}")
            try:
                with self.client() as client:
                    if client.get("/gateway/health").status_code == 200:
                        return
            except httpx.TransportError:
                time.sleep(0.05)
