"""Start-up refusals: each configuration that would let the plain target out, and the sentence that says so.

The configuration is a stand-in with vLLM's field names; that vLLM's own objects have these fields is shown by the tests
that build a real configuration (test_processor.py) or start an engine (tests/e2e).
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.families import TARGET_ARCHITECTURES
from unlearngate.server.contract import refusals
from unlearngate.server.contract.branches import CONFIG_FIELD, BranchOptions
from unlearngate.server.contract.refusals import ANY_VERSION_VARIABLE, PROCESSOR, refuse_arguments, refuse_unsupported

FORBIDDEN_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "opens routes that run code in the workers",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets a client replace a forget set's adapter",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "serves the plain target under any model name",
    "VLLM_USE_RUST_FRONTEND": "bypasses the request validation",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "lets one client's request take the id of another's",
    "VLLM_API_KEY": "guards vLLM's own HTTP server, not this one",
}


def good_config():
    """What `engine_options` leads to."""
    branches = BranchOptions("LlamaForCausalLM", tap_layer=0, num_layers=2, num_branches=2)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(num_hidden_layers=4, **{CONFIG_FIELD: branches.to_config()}),
            logprobs_mode="processed_logprobs",
            runner_type="generate",
            enable_trace_replay=False,
            return_sampling_mask=False,
            logits_processors=[PROCESSOR],
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            data_parallel_size=1,
            _api_process_count=1,
            enable_batch_sharded_sampling=None,
            enable_dbo=False,
        ),
        lora_config=SimpleNamespace(target_modules=branches.lora_target_modules()),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        aux_output_config=SimpleNamespace(enabled=False),
        use_v2_model_runner=False,
        speculative_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        quant_config=None,
        device_config=SimpleNamespace(device_type="cpu"),
    )


def set_path(config, path, value):
    *parents, last = path.split(".")
    for name in parents:
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr(config, last, value)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in (*FORBIDDEN_VARIABLES, ANY_VERSION_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    a_cpu_with(monkeypatch, avx512_f=True, avx512_vnni=True)


def a_cpu_with(monkeypatch, architecture="x86_64", **features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": architecture, **features})


def refusal(config):
    with pytest.raises(UnsupportedDeploymentError) as caught:
        refuse_unsupported(config)
    assert caught.value.message.startswith("refusing to start: ")
    return caught.value.message.removeprefix("refusing to start: ")


OPTIONS = f"model_config.hf_config.{CONFIG_FIELD}"
# (what is set, to what, the sentence). No case trips another row.
CASES = [
    (
        f"{OPTIONS}.target_architecture",
        "GemmaForCausalLM",
        f"target architecture 'GemmaForCausalLM' is not supported; supported: {', '.join(TARGET_ARCHITECTURES)}",
    ),
    (
        "model_config.hf_config.num_hidden_layers",
        1,
        "an assistant of 2 layers from layer 0 on cannot be cut from a target of 1",
    ),
    (
        "model_config.logprobs_mode",
        "raw_logprobs",
        "logprobs_mode is raw_logprobs: raw logprobs are the plain target's; use processed_logprobs",
    ),
    (
        "model_config.logprobs_mode",
        "raw_logits",
        "logprobs_mode is raw_logits: raw logprobs are the plain target's; use processed_logprobs",
    ),
    ("model_config.runner_type", "pooling", "runner_type is pooling: only 'generate' is composed"),
    ("model_config.runner_type", "draft", "runner_type is draft: only 'generate' is composed"),
    (
        "aux_output_config.enabled",
        True,
        "auxiliary outputs, such as routed experts, are the target's internals",
    ),
    ("model_config.enable_trace_replay", True, "a replayed trace is text that was not composed"),
    ("model_config.return_sampling_mask", True, "returning the sampling mask was never tried"),
    ("model_config.logits_processors", None, f"the logits processor {PROCESSOR} is not loaded"),
    ("model_config.logits_processors", [], f"the logits processor {PROCESSOR} is not loaded"),
    ("model_config.logits_processors", ["other:Processor"], f"the logits processor {PROCESSOR} is not loaded"),
    (
        "speculative_config",
        SimpleNamespace(method="ngram"),
        "speculative decoding drops the logits processor on vLLM's V1 runner",
    ),
    (
        "parallel_config.pipeline_parallel_size",
        2,
        "pipeline parallelism would split the branches from the target",
    ),
    ("parallel_config.data_parallel_size", 2, "data parallelism was never tried"),
    (
        "parallel_config._api_process_count",
        2,
        "several API processes would each count the adapters' ids on their own",
    ),
    ("parallel_config.enable_batch_sharded_sampling", True, "batch-sharded sampling was never tried"),
    ("parallel_config.enable_dbo", True, "dual batch overlap does not support LoRA"),
    ("kv_transfer_config", SimpleNamespace(), "KV transfer would bring in another instance's assistant cache"),
    ("ec_transfer_config", SimpleNamespace(), "encoder cache transfer is not composed"),
    ("cache_config.kv_sharing_fast_prefill", True, "kv_sharing_fast_prefill skips layers the branches need"),
    (
        "quant_config",
        SimpleNamespace(get_name=partial(str, "modelopt_fp4")),
        "the target is quantised by 'modelopt_fp4', which was never tried (tried: compressed-tensors, auto_awq, "
        "auto_gptq): serve another checkpoint of it",
    ),
    ("lora_config", None, "LoRA is not enabled: forget sets are adapters"),
    (
        "lora_config.target_modules",
        None,
        "LoRA's target modules are not exactly the linear maps that forget sets adapt",
    ),
    (
        "lora_config.target_modules",
        ["assistant_a.layers.0.self_attn.qkv_proj"],
        "LoRA's target modules are not exactly the linear maps that forget sets adapt",
    ),
]


def test_the_configuration_that_unlearngate_sets_is_accepted():
    refuse_unsupported(good_config())


@pytest.mark.parametrize("path, value, sentence", CASES, ids=[f"{path}={value}" for path, value, _ in CASES])
def test_one_unsupported_setting_is_refused_with_its_sentence_alone(path, value, sentence):
    config = good_config()
    set_path(config, path, value)
    assert refusal(config) == sentence


@pytest.mark.parametrize("tap_layer, num_layers", [(0, 0), (0, -1), (0, 5), (-1, 2), (3, 2), (4, 0), (5, -1)])
def test_an_assistant_that_does_not_fit_the_target_is_refused(tap_layer, num_layers):
    config = good_config()
    options = BranchOptions("LlamaForCausalLM", tap_layer, num_layers, 2)
    set_path(config, OPTIONS, options.to_config())
    config.lora_config.target_modules = options.lora_target_modules()
    cut = f"an assistant of {num_layers} layers from layer {tap_layer} on cannot be cut from a target of 4"
    assert cut in refusal(config)


@pytest.mark.parametrize("num_branches", [-1, 9])
def test_a_number_of_branches_out_of_range_is_refused(num_branches):
    config = good_config()
    options = BranchOptions("LlamaForCausalLM", 0, 2, num_branches)
    set_path(config, OPTIONS, options.to_config())
    config.lora_config.target_modules = options.lora_target_modules()
    assert f"there can be at most 8 branches, got {num_branches}" in refusal(config)


@pytest.mark.parametrize("num_branches", [1, 8])
def test_the_ends_of_the_range_of_branches_are_accepted(num_branches):
    config = good_config()
    options = BranchOptions("Qwen3ForCausalLM", 2, 2, num_branches)
    set_path(config, OPTIONS, options.to_config())
    config.lora_config.target_modules = options.lora_target_modules()[::-1]
    refuse_unsupported(config)


@pytest.mark.parametrize("name", ["compressed-tensors", "auto_awq", "auto_gptq"])
def test_quantised_targets_that_were_tried_are_accepted(name):
    config = good_config()
    config.quant_config = SimpleNamespace(get_name=lambda: name)
    refuse_unsupported(config)


def test_a_way_to_quantise_that_no_one_tried_is_refused_in_the_engine_too():
    config = good_config()
    config.quant_config = SimpleNamespace(get_name=lambda: "compressed-tensors")
    settings = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    config.model_config.hf_config.quantization_config = settings
    assert refusal(config) == (
        "the target is quantised in a way that was never tried: its format is 'nvfp4-pack-quantized'; tried: "
        "pack-quantized, int-quantized, float-quantized; serve another checkpoint of it"
    )
    config.model_config.hf_config.quantization_config = settings | {"format": "pack-quantized"}
    refuse_unsupported(config)


def test_4_bits_in_fp32_have_no_kernel_on_a_cpu():
    config = good_config()
    config.quant_config = SimpleNamespace(get_name=lambda: "compressed-tensors", quant_format="pack-quantized")
    config.device_config.device_type, config.model_config.dtype = "cpu", torch.float32
    assert refusal(config) == (
        "vLLM's kernel for weights of 4 bits on a CPU takes no fp32, and would end the engine at the first request: "
        "serve with --dtype float16"
    )
    config.model_config.dtype = torch.float16
    refuse_unsupported(config)
    config.device_config.device_type, config.model_config.dtype = "cuda", torch.float32
    refuse_unsupported(config)


def test_lora_on_a_target_of_8_bits_is_refused_on_a_cpu_alone():
    config = with_options("LlamaForCausalLM", 0, 2, 2, 4)
    config.quant_config = SimpleNamespace(get_name=lambda: "compressed-tensors", quant_format="int-quantized")
    assert refusal(config).startswith("vLLM puts no LoRA on linear maps whose weights it has packed in 8 bits on a CPU")
    config.device_config.device_type = "cuda"
    refuse_unsupported(config)
    config.device_config.device_type, config.quant_config.quant_format = "cpu", "pack-quantized"
    refuse_unsupported(config)


@pytest.mark.parametrize("name", ["awq", "gptq", "w4a16", "w8a8", "fp8"])
@pytest.mark.parametrize("feature", ["avx512_f", "avx512_vnni", "avx_vnni", "amx_int8", None])
def test_what_a_cpu_cannot_compute_or_computes_wrongly_is_refused_there_alone(name, feature, monkeypatch):
    forms = {"w4a16": "pack-quantized", "w8a8": "int-quantized", "fp8": "float-quantized"}
    config, quantised_by = good_config(), f"auto_{name}" if name in ("awq", "gptq") else "compressed-tensors"
    config.quant_config = SimpleNamespace(get_name=lambda: quantised_by, quant_format=forms.get(name))
    config.device_config.device_type, config.model_config.dtype = "cpu", torch.float16
    a_cpu_with(monkeypatch, avx2=True, **({feature: True} if feature else {}))
    if name in ("awq", "gptq", "w4a16") and feature != "avx512_f":
        assert refusal(config).startswith("vLLM's kernel for weights of 4 bits on a CPU wants AVX-512, which this CPU")
    elif name == "w8a8" and feature in ("avx512_f", None):
        assert refusal(config).startswith(
            "on a CPU without VNNI, as this one, vLLM's products of 8-bit integers are wr"
        )
    else:
        refuse_unsupported(config)
    config.device_config.device_type = "cuda"
    refuse_unsupported(config)
    config.device_config.device_type = "cpu"
    a_cpu_with(monkeypatch, architecture="aarch64")
    refuse_unsupported(config)


SHORT, LONG = [1.0, 1.5], [2.0, 3.0]


@pytest.mark.parametrize(
    "rope, longest",
    [
        ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}, 4096),
        ({"rope_type": "longrope", "short_factor": LONG, "long_factor": LONG}, 131072),
        ({"rope_type": "dynamic", "factor": 2.0}, 131072),
    ],
    ids=["longrope", "longrope-of-one-kind", "dynamic"],
)
def test_lengths_that_vllm_rotates_otherwise_than_training_are_refused(rope, longest):
    config = good_config()
    config.model_config.hf_config.rope_parameters = {**rope, "original_max_position_embeddings": 4096}
    config.model_config.hf_config.max_position_embeddings = 131072
    config.model_config.max_model_len = longest
    refuse_unsupported(config)
    config.model_config.max_model_len = longest + 1
    said = refusal(config)
    kind = rope["rope_type"]
    assert said.startswith(
        f"for sequences of more than {longest} tokens vLLM's rotary embedding of type {kind} is not "
    )
    assert f"give --max-model-len {longest} or less" in said
    assert ("long_factor as short_factor" in said) == (kind == "longrope")


def with_options(*options):
    config = good_config()
    branches = BranchOptions(*options)
    set_path(config, OPTIONS, branches.to_config())
    config.lora_config.target_modules = branches.lora_target_modules()
    return config


@pytest.mark.parametrize("num_branches", [0, 2])
def test_lora_on_all_of_the_target_is_accepted_where_it_is_asked_for(num_branches):
    config = with_options("LlamaForCausalLM", 0, 2, num_branches, 4)
    assert "target.model.layers.3.mlp.down_proj" in config.lora_config.target_modules
    refuse_unsupported(config)


@pytest.mark.parametrize("adapted_layers", [-1, 1, 3, 5])
def test_lora_on_a_part_of_the_target_is_refused(adapted_layers):
    config = with_options("LlamaForCausalLM", 0, 2, 2, adapted_layers)
    assert refusal(config) == f"LoRA on the target must be on all of its 4 layers or on none, got {adapted_layers}"


def test_a_model_without_anything_to_adapt_has_no_lora():
    config = with_options("LlamaForCausalLM", 0, 2, 0)
    assert refusal(config) == "LoRA is enabled, and there is nothing that a forget set could adapt"
    config.lora_config = None
    refuse_unsupported(config)


@pytest.mark.parametrize("adapted_layers", [0, 4])
@pytest.mark.parametrize("name", ["target.model.layers.0.self_attn.qkv_proj", "qkv_proj", "target.lm_head"])
def test_lora_on_any_other_module_is_refused(adapted_layers, name):
    config = with_options("LlamaForCausalLM", 0, 2, 2, adapted_layers)
    config.lora_config.target_modules.append(name)
    assert refusal(config) == "LoRA's target modules are not exactly the linear maps that forget sets adapt"


def test_lora_that_lacks_the_target_where_it_is_asked_for_is_refused():
    config = with_options("LlamaForCausalLM", 0, 2, 2, 4)
    config.lora_config.target_modules = BranchOptions("LlamaForCausalLM", 0, 2, 2).lora_target_modules()
    assert refusal(config) == "LoRA's target modules are not exactly the linear maps that forget sets adapt"


@pytest.mark.parametrize("options", [None, "yes", ["LlamaForCausalLM", 2, 2]], ids=repr)
def test_a_model_that_unlearngate_did_not_start_is_refused(options):
    config = good_config()
    set_path(config, OPTIONS, options)
    assert refusal(config) == "the model was not started through unlearngate (no branch options in its configuration)"
    delattr(config.model_config.hf_config, CONFIG_FIELD)
    assert "not started through unlearngate" in refusal(config)


@pytest.mark.parametrize(
    "options",
    [
        {"target_architecture": "LlamaForCausalLM", "num_layers": 2},
        {"target_architecture": "LlamaForCausalLM", "tap_layer": 0, "num_layers": 2, "num_branches": 2, "extra": 1},
        {"target_architecture": "LlamaForCausalLM", "tap_layer": 0, "num_layers": "2", "num_branches": 2},
    ],
    ids=["too_few", "too_many", "text"],
)
def test_branch_options_that_cannot_be_read_are_refused_with_a_sentence(options):
    config = good_config()
    set_path(config, OPTIONS, options)
    refusal(config)


@pytest.mark.parametrize("mode", ["processed_logprobs", "processed_logits", "LogprobsMode.PROCESSED_LOGPROBS"])
def test_processed_logprobs_are_accepted_as_text_or_member(mode):
    config = good_config()
    config.model_config.logprobs_mode = mode
    refuse_unsupported(config)


def test_other_logits_processors_beside_ours_are_accepted():
    config = good_config()
    config.model_config.logits_processors = [object, "other:Processor", PROCESSOR]
    refuse_unsupported(config)


@pytest.mark.parametrize(
    "path",
    ["parallel_config.enable_dbo", "ec_transfer_config", "aux_output_config"],
)
def test_a_field_that_some_vllm_versions_lack_is_no_reason(path):
    config = good_config()
    owner, _, field = path.rpartition(".")
    delattr(getattr(config, owner) if owner else config, field)
    refuse_unsupported(config)


# The environment


@pytest.mark.parametrize("value", ["1", "true", "True", "yes", "2", " "])
@pytest.mark.parametrize("name, why", FORBIDDEN_VARIABLES.items(), ids=FORBIDDEN_VARIABLES)
def test_a_forbidden_variable_is_refused_with_what_it_does(monkeypatch, name, why, value):
    monkeypatch.setenv(name, value)
    message = refusal(good_config())
    assert message.startswith(f"{name} is set, which {why}") and message.endswith(": unset it")


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
@pytest.mark.parametrize("name", FORBIDDEN_VARIABLES)
def test_a_forbidden_variable_that_is_off_is_no_reason(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    refuse_unsupported(good_config())


def test_every_forbidden_variable_is_covered_here():
    assert set(refusals._FORBIDDEN_VARIABLES) == set(FORBIDDEN_VARIABLES)


# vLLM's version


def test_a_vllm_that_was_never_tried_is_refused_with_how_to_start_anyway(monkeypatch):
    monkeypatch.setattr(refusals, "SUPPORTED_VERSIONS", ("0.1", "0.2"))
    version = refusals.vllm_version()
    sentence = f"vLLM {version} was never tried (tried: 0.1, 0.2); set {ANY_VERSION_VARIABLE}=1 to start anyway"
    assert refusal(good_config()) == sentence


def test_the_operator_may_start_an_untried_vllm(monkeypatch):
    monkeypatch.setattr(refusals, "SUPPORTED_VERSIONS", ())
    monkeypatch.setenv(ANY_VERSION_VARIABLE, "1")
    refuse_unsupported(good_config())


def test_the_version_is_the_installed_vllms():
    vllm = pytest.importorskip("vllm")
    assert vllm.__version__.startswith(f"{refusals.vllm_version()}.")


@pytest.mark.parametrize("value", ["0", "", "true"])
def test_only_one_lifts_the_version_check(monkeypatch, value):
    monkeypatch.setattr(refusals, "SUPPORTED_VERSIONS", ())
    monkeypatch.setenv(ANY_VERSION_VARIABLE, value)
    assert "was never tried" in refusal(good_config())


# Together


def test_all_reasons_are_listed_together(monkeypatch):
    config = good_config()
    wanted = []
    for path, value, sentence in CASES:
        if path != "lora_config" and not (path == "model_config.logprobs_mode" and value == "raw_logits"):
            set_path(config, path, value)
            wanted.append((path, sentence))
    # The last value of each path is in force, so its sentence is the one to find.
    sentences = set(dict(wanted).values())
    for name, why in FORBIDDEN_VARIABLES.items():
        monkeypatch.setenv(name, "1")
        sentences.add(f"{name} is set, which {why}")
    monkeypatch.setattr(refusals, "SUPPORTED_VERSIONS", ())
    sentences.add("was never tried")
    message = refusal(config)
    assert [sentence for sentence in sentences if sentence not in message] == []
    assert len(sentences) == 19 + len(FORBIDDEN_VARIABLES) + 1


def test_no_lora_is_one_reason_not_two():
    config = good_config()
    config.lora_config = None
    assert refusal(config) == "LoRA is not enabled: forget sets are adapters"


# An operator's own vLLM options

OURS = ["--hf-overrides", "--logits-processors", "--logprobs-mode", "--enable-lora"]


def argument_refusal(words):
    with pytest.raises(UnsupportedDeploymentError) as caught:
        refuse_arguments(words, OURS)
    return caught.value.message


@pytest.mark.parametrize(
    "word",
    [
        "--logprobs-mode",
        "--logprobs_mode",
        "--logprobs-mode=raw",
        "--hf-overrides.unlearngate=1",
        "--model",
        "--port=1",
    ],
)
def test_an_option_that_unlearngate_sets_is_refused_however_it_is_spelt(word):
    flag = word.partition("=")[0].partition(".")[0].replace("_", "-")
    assert f"{flag}: unlearngate sets this itself; leave it out" in argument_refusal(["--dtype", "float32", word])


@pytest.mark.parametrize(
    "word",
    [
        "--api-key",
        "--api_key=x",
        "--ssl-keyfile",
        "--lora-modules",
        "--uvicorn-log-level",
        "--allowed-origins",
    ],
)
def test_an_option_of_the_http_server_that_does_not_run_is_refused(word):
    flag = word.partition("=")[0].replace("_", "-")
    assert f"{flag}: an option of vLLM's own HTTP server" in argument_refusal([word, "x"])


@pytest.mark.parametrize("word", ["--api-k", "--api-k=x", "--root-p", "--logprobs-mod", "--enable-lor"])
def test_an_abbreviation_of_a_refused_option_is_refused(word):
    """VLLM's parser takes any unambiguous beginning of an option for the option."""
    argument_refusal([word, "x"])


@pytest.mark.parametrize("word", ["--config", "--config=vllm.yaml"])
def test_a_file_of_options_is_refused(word):
    """VLLM reads options from it, --api-key among them, that nobody would check."""
    argument_refusal([word, "vllm.yaml"])


def test_all_refused_options_are_named_together():
    message = argument_refusal(["--logprobs-mode", "raw_logprobs", "--api-key", "x", "--host", "y"])
    assert all(flag in message for flag in ("--logprobs-mode", "--api-key", "--host"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--max-model-len", "4096", "--dtype=float32", "-tp", "2"],
        ["--model-loader-extra-config", "{}", "--model-impl", "vllm"],
        ["--max-num-seqs", "8", "--no-enable-prefix-caching", "--compilation-config.mode", "0"],
    ],
    ids=str,
)
def test_options_of_the_engine_are_the_operators(words):
    refuse_arguments(words, OURS)


DRAFTED = ("LlamaForCausalLM", "Qwen3ForCausalLM")
SPECULATION = {"method": "ngram", "rejection_sample_method": "standard"}


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu"])
def test_drafts_that_are_looked_up_are_verified_on_the_v2_runner(method):
    config = good_config()
    config.speculative_config, config.use_v2_model_runner = SimpleNamespace(**{**SPECULATION, "method": method}), True
    refuse_unsupported(config)


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
@pytest.mark.parametrize("architecture", TARGET_ARCHITECTURES)
def test_drafters_that_read_hidden_states_are_accepted_for_targets_that_were_tried(method, architecture):
    config = with_options(architecture, 0, 2, 2)
    config.speculative_config, config.use_v2_model_runner = SimpleNamespace(**{**SPECULATION, "method": method}), True
    if architecture in DRAFTED:
        refuse_unsupported(config)
    else:
        said = refusal(config)
        assert f"by '{method}' was never tried with a target of architecture '{architecture}'" in said
        assert all(name in said for name in DRAFTED)


@pytest.mark.parametrize(
    "v2, changes, sentence",
    [
        (False, {}, "speculative decoding drops the logits processor on vLLM's V1 runner"),
        (True, {"method": "mtp"}, "by 'mtp' is not supported: vLLM has such modules for other architectures"),
        (True, {"method": "draft_model"}, "by 'draft_model' is not supported: a second model beside the branches"),
        (True, {"method": "extract_hidden_states"}, "is not supported: it writes the target's hidden states out"),
        *(
            (True, {"method": name}, f"by '{name}' is not supported: it was never tried")
            for name in ("medusa", "mlp_speculator", "suffix", "custom_class", "dflash", "dspark")
        ),
        (True, {"method": "eagle3", "parallel_drafting": True}, "parallel_drafting"),
        (True, {"rejection_sample_method": "synthetic"}, "shows draft tokens that were not verified"),
        (True, {"rejection_sample_method": "block"}, "'block', which was never tried"),
        (True, {"num_speculative_tokens_per_batch_size": [(1, 8, 2)]}, "changes from step to step"),
        (True, {"enable_adaptive_verification": True}, "changes from step to step"),
    ],
)
def test_other_speculation_is_refused(v2, changes, sentence):
    config = good_config()
    config.speculative_config, config.use_v2_model_runner = SimpleNamespace(**SPECULATION | changes), v2
    reasons = refusal(config)
    assert sentence in reasons and "; " not in reasons
