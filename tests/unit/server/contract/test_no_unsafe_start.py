"""Starts that could leak, one row of docs/security.md's table each, with vLLM's own configuration and variables."""

import pytest
from vllm import EngineArgs, envs
from vllm.config import SpeculativeConfig

from support.engine.tiny import make_target
from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.server.contract.branches import ARCHITECTURE, BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.refusals import refuse_arguments, refuse_unsupported
from unlearngate.server.worker import plugin


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
    return pytest.param(*values, id=name)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        row("SU-raw-logprobs", {"logprobs_mode": "raw_logprobs"}, "raw logprobs are the plain target's"),
        row("SU-raw-logits", {"logprobs_mode": "raw_logits"}, "raw logprobs are the plain target's"),
        row("SU-pooling", {"runner": "pooling"}, "only 'generate' is composed"),
        row("SU-speculation", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative"),
        row("SU-pipeline", {"pipeline_parallel_size": 2}, "Pipeline parallelism is not supported for this model"),
        row("SU-data-parallel", {"data_parallel_size": 2}, "data parallelism was never tried"),
        row(
            "SU-kv-transfer",
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV tr",
        ),
        row("SU-kv-sharing", {"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        row("SU-quantised", {"quantization": "fp8"}, "quantised by 'online', which was never tried"),
        row("SU-no-lora", {"enable_lora": False}, "LoRA is not enabled"),
        row("SU-lora-elsewhere", {"lora_target_modules": ["qkv_proj"]}, "not exactly the linear maps"),
        row("SU-no-processor", {"logits_processors": None}, "is not loaded"),
        row("SU-class-alone", {"hf_overrides": {"architectures": [ARCHITECTURE]}}, "not started through unlearngate"),
    ],
)
def test_an_engine_that_could_leak_does_not_start(arguments, changes, sentence):
    with pytest.raises((UnsupportedDeploymentError, NotImplementedError), match=sentence):
        start({**arguments, **changes})


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        row("SU-dual-batch", "parallel_config.enable_dbo", True, "dual batch overlap"),
        row("SU-batch-sharded", "parallel_config.enable_batch_sharded_sampling", True, "batch-sharded sampling"),
        row("SU-api-processes", "parallel_config._api_process_count", 2, "several API processes"),
        row("SU-ec-transfer", "ec_transfer_config", object(), "encoder cache transfer"),
        row("SU-trace-replay", "model_config.enable_trace_replay", True, "replayed trace"),
        row("SU-sampling-mask", "model_config.return_sampling_mask", True, "sampling mask"),
        row("SU-routed-experts", "aux_output_config.enable_return_routed_experts", True, "routed experts"),
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
    "changes, sentence",
    [
        row(
            "SU-unverified-drafts",
            {"rejection_sample_method": "synthetic"},
            "shows draft tokens that were not verified",
        ),
        row("SU-block-verification", {"rejection_sample_method": "block"}, "'block', which was never tried"),
        row("SU-changing-drafts", {"num_speculative_tokens_per_batch_size": [(1, 64, 2)]}, "changes from step to step"),
        row("SU-drafter", {"method": "suffix"}, "by 'suffix' is not supported"),
        row("SU-hidden-states", {"method": "extract_hidden_states"}, "writes the target's hidden states out"),
        row("SU-mtp", {"method": "mtp"}, "of which none is a target here"),
        row("SU-draft-model", {"method": "draft_model"}, "a second model beside the branches was never tried"),
        row("SU-parallel-drafting", {"method": "eagle3", "parallel_drafting": True}, "parallel_drafting"),
    ],
)
def test_drafts_that_could_leak_are_refused(arguments, monkeypatch, changes, sentence):
    """VLLM has its V2 runner only where Triton is, so its speculation is put into the configuration that it made."""
    config = EngineArgs(**arguments).create_engine_config()
    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    of_target = {"target_model_config": config.model_config, "target_parallel_config": config.parallel_config}
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    object.__setattr__(config, "speculative_config", SpeculativeConfig(**drafts, **of_target))
    refuse_unsupported(config)
    for name, value in changes.items():
        assert hasattr(config.speculative_config, name), "vLLM has renamed it"
        object.__setattr__(config.speculative_config, name, value)
    with pytest.raises(UnsupportedDeploymentError, match=sentence):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    "variable",
    [
        row("SU-dev-mode", "VLLM_SERVER_DEV_MODE"),
        row("SU-runtime-lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        row("SU-any-model-name", "VLLM_SKIP_MODEL_NAME_VALIDATION"),
        row("SU-rust-frontend", "VLLM_USE_RUST_FRONTEND"),
        row("SU-request-ids", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"),
        row("SU-vllm-api-key", "VLLM_API_KEY"),
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
        row("SU-api-server-count", ["--api-server-count", "2"]),
        row("SU-data-parallel-option", ["--data-parallel-size=2"]),
        row("SU-lora-modules", ["--lora-modules", "anna=/tmp/anna"]),
        row("SU-middleware", ["--middleware", "some.module"]),
        row("SU-option-file", ["--config", "vllm.yaml"]),
        row("SU-request-logs", ["--enable-log-requests"]),
        row("SU-grpc", ["--grpc"]),
        row("SU-scale-out", ["--tokens-only"]),
        row("SU-trace-replay-option", ["--enable-trace-replay"]),
        row("SU-sampling-mask-option", ["--return-sampling-mask"]),
        row("SU-other-overrides", ["--hf-overrides.unlearngate.num_branches=0"]),
        row("SU-other-model", ["--revision", "main"]),
    ],
)
def test_an_option_that_could_leak_is_refused(arguments, words):
    ours = ["--" + name.replace("_", "-") for name in arguments]
    with pytest.raises(UnsupportedDeploymentError, match=words[0].partition("=")[0].partition(".")[0]):
        refuse_arguments(words, ours)
