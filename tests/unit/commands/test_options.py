"""An option is said once: what the command line has, its settings have."""

import os
import sys
from dataclasses import fields

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from unlearngate.assistant_training.train.settings import AssistantSettings, UndialSettings, VerbatimSettings
from unlearngate.cli import app
from unlearngate.server import launch
from unlearngate.server.config import ServerConfig

COMMANDS = get_command(app).commands
# In --help's order; what an operator gives, and what the server is started with.
GIVEN = {
    "quantised_from": "parent",
    "forget_sets": "sets",
    "state": "state",
    "watch_interval_s": "0.5",
    "prove_every": "30",
    "host": "0.0.0.0",
    "port": "9",
    "name": "m",
    "default_set": "a",
    "required_set": "b",
    "logprobs": "full",
    "keys": "keys.json",
    "gateway_secret_file": "secret",
    "require_gateway": None,
    "allowed_origin": "https://chat.example.org",
    "max_sets_per_request": "3",
    "max_loaded": "4",
    "max_known": "5",
    "max_rank": "6",
    "assistant_layers": "7",
    "assistant_tap": "0",
    "enable_undial": None,
    "audit": "audit.jsonl",
    "audit_max_mb": "10",
    "max_body_mb": "11",
    "max_running_per_key": "20",
    "max_sequences": "21",
    "max_prompt_chars": "22",
    "max_request_chars": "27",
    "max_messages": "28",
    "max_definition_kb": "23",
    "max_definition_items": "24",
    "max_repeats": "25",
    "max_compile_s": "2.5",
    "max_biases": "26",
    "max_parameters_kb": "29",
    "drain_timeout_s": "12",
    "engine_args": "--max-model-len 64",
}


@pytest.fixture
def started(monkeypatch):
    configs = []
    monkeypatch.setattr(launch, "serve", lambda config: configs.append(config) or 0)
    monkeypatch.setattr(os, "_exit", sys.exit)  # it ends without Python's teardown
    return configs


def test_every_field_of_a_server_is_an_option_and_says_what_it_is_for():
    options = {p.name: p for p in COMMANDS["serve"].params if p.param_type_name == "option" and p.name != "help"}
    assert list(options) == list(GIVEN) == [name for name in ServerConfig.model_fields if name != "target"]
    for name, option in options.items():
        assert option.opts == [f"--{name.replace('_', '-')}"] and not option.secondary_opts
        assert option.help.startswith(ServerConfig.model_fields[name].description)


def test_what_is_given_arrives(started):
    words = [
        word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", value) if word is not None
    ]
    result = CliRunner().invoke(app, ["serve", "target", *words])
    assert result.exit_code == 0, result.output
    assert started == [
        ServerConfig.model_validate(
            {"target": "target", "require_gateway": True, "enable_undial": True}
            | {name: value for name, value in GIVEN.items() if value is not None}
            | {"default_set": ("a",), "required_set": ("b",), "allowed_origin": ("https://chat.example.org",)}
        )
    ]


def test_what_is_left_out_is_the_settings_default(started):
    assert CliRunner().invoke(app, ["serve", "target", "--forget-sets", "sets"]).exit_code == 0
    assert started == [ServerConfig.model_validate({"target": "target", "forget_sets": "sets"})]


@pytest.mark.parametrize("words", [["--port", "70000"], ["--max-rank", "0"], ["--max-sets-per-request", "9"]])
def test_what_is_out_of_range_is_refused_by_its_option(started, words):
    result = CliRunner().invoke(app, ["serve", "target", "--forget-sets", "sets", *words])
    assert result.exit_code == 2 and f"Invalid value for '{words[0]}'" in result.output
    assert not started


@pytest.mark.parametrize("command, settings", [("uld", AssistantSettings), ("undial", UndialSettings)])
def test_a_trainings_options_have_the_settings_defaults(command, settings):
    defaults = {p.name: p.default for p in COMMANDS["train"].commands[command].params}
    shared = [field for field in fields(settings) if field.name in defaults]
    assert len(shared) > 10
    assert {field.name: defaults[field.name] for field in shared} == {f.name: f.default for f in shared}


def test_a_texts_option_has_the_settings_default():
    defaults = {p.name: p.default for p in COMMANDS["train"].commands["verbatim"].params}
    assert defaults["letters"] == VerbatimSettings().letters
