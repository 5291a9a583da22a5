"""Starts that could leak, one row of docs/security.md's table each, with vLLM's own configuration and variables."""

import pytest
from vllm import EngineArgs, envs

from support.tiny import make_target
from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.server import plugin
from unlearngate.server.branches import ARCHITECTURE, BranchOptions
from unlearngate.server.engine import engine_options
from unlearngate.server.refusals import refuse_arguments, refuse_unsupported


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The engine's arguments as the server sets them."""
    target = make_target(tmp_path_factory.mktemp("target") / "tiny", seed=1)
    plugin.register()
    options = engine_options(BranchOptions("LlamaForCausalLM", 0, 2, 2), max_rank=8, max_loaded=2, max_known=4)
    return {"model": str(target), "max_model_len": 64, "enforce_eager": True, **options}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def start(arguments):
    refuse_unsupported(EngineArgs(**arguments).create_engine_config())


def test_the_servers_own_arguments_start(arguments):
    start(arguments)


def row(name, *values):
    return pytest.param(*values, id=f"SU-{name}")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        row("raw-logprobs", {"logprobs_mode": "raw_logprobs"}, "raw logprobs are the plain target's"),
        row("raw-logits", {"logprobs_mode": "raw_logits"}, "raw logprobs are the plain target's"),
        row("pooling", {"runner": "pooling"}, "only 'generate' is composed"),
        row("speculation", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative"),
        row("pipeline", {"pipeline_parallel_size": 2}, "Pipeline parallelism is not supported for this model"),
        row("data-parallel", {"data_parallel_size": 2}, "data parallelism was never tried"),
        row("kv-transfer", {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "KV tr"),
        row("kv-sharing", {"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        row("quantised", {"quantization": "fp8"}, "quantised targets are not supported"),
        row("no-lora", {"enable_lora": False}, "LoRA is not enabled"),
        row("lora-elsewhere", {"lora_target_modules": ["qkv_proj"]}, "not exactly the linear maps"),
        row("no-processor", {"logits_processors": None}, "is not loaded"),
        row("class-alone", {"hf_overrides": {"architectures": [ARCHITECTURE]}}, "not started through unlearngate"),
    ],
)
def test_an_engine_that_could_leak_does_not_start(arguments, changes, sentence):
    with pytest.raises((UnsupportedDeploymentError, NotImplementedError), match=sentence):
        start({**arguments, **changes})


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        row("dual-batch", "parallel_config.enable_dbo", True, "dual batch overlap"),
        row("batch-sharded", "parallel_config.enable_batch_sharded_sampling", True, "batch-sharded sampling"),
        row("api-processes", "parallel_config._api_process_count", 2, "several API processes"),
        row("ec-transfer", "ec_transfer_config", object(), "encoder cache transfer"),
        row("trace-replay", "model_config.enable_trace_replay", True, "replayed trace"),
        row("sampling-mask", "model_config.return_sampling_mask", True, "sampling mask"),
        row("routed-experts", "aux_output_config.enable_return_routed_experts", True, "routed experts"),
    ],
)
def test_a_field_that_a_gpu_could_set_is_refused(arguments, path, value, sentence):
    """VLLM itself refuses these on a CPU, so they are set in the configuration that it made."""
    config = EngineArgs(**arguments).create_engine_config()
    *owners, field = path.split(".")
    owner = getattr(config, owners[0]) if owners else config
    assert hasattr(owner, field), "vLLM has renamed it"
    object.__setattr__(owner, field, value)
    with pytest.raises(UnsupportedDeploymentError, match=sentence):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    "variable",
    [
        row("dev-mode", "VLLM_SERVER_DEV_MODE"),
        row("runtime-lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        row("any-model-name", "VLLM_SKIP_MODEL_NAME_VALIDATION"),
        row("rust-frontend", "VLLM_USE_RUST_FRONTEND"),
        row("request-ids", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"),
        row("vllm-api-key", "VLLM_API_KEY"),
    ],
)
def test_an_environment_that_could_leak_is_refused(arguments, monkeypatch, variable):
    assert variable in envs.environment_variables, "vLLM has renamed it"
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UnsupportedDeploymentError, match=f"{variable} is set"):
        start(arguments)


@pytest.mark.parametrize(
    "words",
    [
        row("api-server-count", ["--api-server-count", "2"]),
        row("data-parallel-option", ["--data-parallel-size=2"]),
        row("lora-modules", ["--lora-modules", "anna=/tmp/anna"]),
        row("middleware", ["--middleware", "some.module"]),
        row("option-file", ["--config", "vllm.yaml"]),
        row("request-logs", ["--enable-log-requests"]),
        row("grpc", ["--grpc"]),
        row("scale-out", ["--tokens-only"]),
        row("trace-replay-option", ["--enable-trace-replay"]),
        row("sampling-mask-option", ["--return-sampling-mask"]),
        row("other-overrides", ["--hf-overrides.unlearngate.num_branches=0"]),
        row("other-model", ["--revision", "main"]),
    ],
)
def test_an_option_that_could_leak_is_refused(arguments, words):
    ours = ["--" + name.replace("_", "-") for name in arguments]
    with pytest.raises(UnsupportedDeploymentError, match=words[0].partition("=")[0].partition(".")[0]):
        refuse_arguments(words, ours)
