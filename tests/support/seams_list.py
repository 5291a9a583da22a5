"""The seams that no import shows: what of vLLM's our code replaces, subclasses, calls or reads, and relies on there.

Each name has the words (parameters, attributes, names, strings) that its own source must have. Who uses it is found by
these words in `server/`.
"""

from __future__ import annotations

_V2 = "vllm.v1.worker.gpu"
_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"

SEAMS: dict[str, tuple[str, ...]] = {
    # server/engine/compat.py
    "vllm.engine.arg_utils:AsyncEngineArgs.from_cli_args": ("args",),
    "vllm.engine.arg_utils:AsyncEngineArgs.create_engine_config": (),
    "vllm.engine.arg_utils:EngineArgs": (
        *("hf_overrides", "logits_processors", "logprobs_mode", "enable_lora", "max_lora_rank", "max_loras"),
        *("max_cpu_loras", "lora_target_modules", "speculative_config", "kv_cache_memory_bytes"),
    ),
    "vllm.v1.engine.utils:CoreEngineProcManager.__init__": ("get_mp_context",),
    "vllm.v1.executor.multiproc_executor:MultiprocExecutor._init_executor": ("get_mp_context",),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels": ("base_model_paths", "lora_requests", "registry"),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.model_name": ("lora_request",),
    "vllm.entrypoints.launchers.api_server.app_state:init_app_state": ("openai_serving_models",),
    "vllm.entrypoints.generate.api_router:init_generate_state": (
        *("openai_serving_chat", "openai_serving_completion", "openai_serving_responses"),
    ),
    "vllm.outputs:RequestOutput.add": ("next_output", "aggregate"),
    "vllm.outputs:RequestOutput.__init__": ("prompt_logprobs",),
    "vllm.v1.metrics.loggers:PrometheusStatLogger": ("gauge_lora_info",),
    "vllm.v1.metrics.loggers:StatLoggerManager": ("stat_loggers",),
    # server/engine/client.py and reasons.py
    "vllm.v1.engine.async_llm:AsyncLLM.generate": ("prompt", "sampling_params", "request_id", "lora_request"),
    "vllm.v1.engine.async_llm:AsyncLLM": ("engine_core", "logger_manager", "check_health", "errored", "add_lora"),
    "vllm.v1.engine.core_client:AsyncMPClient.add_request_async": ("request",),
    "vllm.v1.engine:EngineCoreRequest": ("external_req_id", "sampling_params"),
    "vllm.sampling_params:SamplingParams": (
        *("extra_args", "structured_outputs", "allowed_token_ids", "bad_words", "min_tokens", "logit_bias"),
        *("prompt_logprobs", "prompt_logprob_token_ids", "skip_reading_prefix_cache", "thinking_token_budget"),
        *("bad_words_token_ids", "all_stop_token_ids", "output_kind"),
    ),
    "vllm.sampling_params:StructuredOutputsParams": (*("json", "regex", "choice", "grammar", "structural_tag"),),
    # server/http
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.create_chat_completion": ("request",),
    "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.create_completion": ("request",),
    "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.create_responses": ("request",),
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest": (
        *("vllm_xargs", "prompt_logprobs", "echo", "use_beam_search", "return_token_ids", "chat_template_kwargs"),
        *("return_tokens_as_token_ids", "kv_transfer_params"),
    ),
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest": ("vllm_xargs", "prompt_logprobs", "echo"),
    "vllm.entrypoints.openai.responses.protocol:ResponsesRequest": ("vllm_xargs", "store", "background", "include"),
    # server/contract/refusals.py
    "vllm.config.model:ModelConfig": (
        *("logprobs_mode", "logits_processors", "runner_type", "enable_trace_replay", "return_sampling_mask"),
    ),
    "vllm.config.vllm:VllmConfig": ("kv_transfer_config", "ec_transfer_config", "aux_output_config", "quant_config"),
    "vllm.config.vllm:VllmConfig.use_v2_model_runner": (),
    "vllm.config.vllm:VllmConfig.with_hf_config": ("hf_config", "architectures"),
    "vllm.config.parallel:ParallelConfig": (
        *("pipeline_parallel_size", "data_parallel_size", "_api_process_count", "enable_dbo"),
        "enable_batch_sharded_sampling",
    ),
    "vllm.config.cache:CacheConfig": ("kv_sharing_fast_prefill",),
    "vllm.config.lora:LoRAConfig": ("target_modules", "compute_hash"),
    "vllm.config.speculative:SpeculativeConfig": (
        *("method", "rejection_sample_method", "num_speculative_tokens_per_batch_size"),
        "enable_adaptive_verification",
    ),
    # server/worker/model.py, lockstep.py, cpu_lora.py
    "vllm.config.compilation:CompilationConfig": (
        *("static_forward_context", "static_all_moe_layers", "custom_ops", "mode", "backend"),
    ),
    "vllm.model_executor.models.utils:init_vllm_registered_model": ("vllm_config", "prefix", "architectures"),
    "vllm.model_executor.models.interfaces:SupportsLoRA": ("packed_modules_mapping", "embedding_modules"),
    "vllm.compilation.decorators:support_torch_compile": ("dynamic_arg_dims",),
    "vllm.compilation.backends:set_model_tag": ("tag",),
    "vllm.utils.torch_utils:direct_register_custom_op": (
        *("op_name", "op_func", "mutates_args", "fake_impl", "dispatch_key"),
    ),
    "vllm.model_executor.layers.attention:Attention": ("layer_name",),
    "vllm.model_executor.layers.attention:Attention.forward": ("query", "key", "value"),
    "vllm.model_executor.layers.linear:LinearBase": ("quant_method",),
    "vllm.model_executor.layers.linear:LinearMethodBase.apply": ("layer", "x", "bias"),
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA": (
        *("base_layer", "punica_wrapper", "lora_a_stacked", "lora_b_stacked"),
    ),
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA._apply_lora_to_output": ("x", "output"),
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.add_lora_linear": (
        *("y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer"),
    ),
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase": ("token_lora_indices", "indices_len", "update_metadata"),
    "vllm.lora.punica_wrapper.punica_gpu:PunicaWrapperGPU": ("token_mapping_meta",),
    "vllm.lora.ops.triton_ops.lora_kernel_metadata:LoRAKernelMeta": ("no_lora_flag_cpu",),
    "vllm.lora.worker_manager:WorkerLoRAManager": ("_adapter_manager",),
    "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper": (),
    "vllm.model_executor.models.llama:LlamaDecoderLayer.forward": ("positions", "hidden_states", "residual"),
    "vllm.model_executor.models.llama:LlamaModel": ("embed_tokens", "embed_input_ids", "norm", "layers"),
    # server/worker/compat.py: both runners
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": (
        *("common_prefix_len", "common_attn_metadata"),
    ),
    "vllm.v1.attention.backend:CommonAttentionMetadata": (
        *("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "num_actual_tokens", "max_query_len"),
        *("max_seq_len", "block_table_tensor", "slot_mapping", "causal", "naive_query_lens"),
    ),
    "vllm.forward_context:ForwardContext": (
        *("attn_metadata", "slot_mapping", "no_compile_layers", "additional_kwargs"),
    ),
    "vllm.v1.structured_output:StructuredOutputManager.__init__": ("executor",),
    "vllm.v1.sample.logits_processor.interface:LogitsProcessor": (
        *("validate_params", "apply", "is_argmax_invariant", "update_state"),
    ),
    "vllm.v1.sample.logits_processor.interface:BatchUpdate": ("removed", "added", "moved"),
    # V1
    f"{_RUNNER}._sample": ("logits",),
    f"{_RUNNER}._bookkeeping_sync": ("discard_request_mask",),
    f"{_RUNNER}._get_prompt_logprobs_dict": (
        *("hidden_states", "num_scheduled_tokens", "num_prompt_logprobs", "compute_logits", "num_computed_tokens"),
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": ("generators", "num_reqs"),
    # V2
    f"{_V2}.sample.logits_processor.interface:LogitsProcessor": (
        *("validate_params", "add_request", "apply", "apply_staged_writes"),
    ),
    f"{_V2}.sample.logits_processor.interface:LogitsContext": (
        *("expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"),
    ),
    f"{_V2}.sample.logits_processor.interface:LogitsProcRequestState": (
        *("device", "all_token_ids", "prompt_len", "prefill_len"),
    ),
    f"{_V2}.sample.sampler:Sampler.__init__": ("logits_processors", "penalties_state", "custom_logits_processors"),
    f"{_V2}.sample.prompt_logprob:CHUNK_SIZE": (),
    f"{_V2}.sample.prompt_logprob:PromptLogprobsWorker.add_request": ("req_id", "req_idx", "sampling_params"),
    f"{_V2}.sample.prompt_logprob:PromptLogprobsWorker": ("uses_prompt_logprobs", "token_id_scores"),
    f"{_V2}.sample.prompt_logprob:PromptLogprobsWorker.compute_prompt_logprobs": (
        *("logits_fn", "hidden_states", "input_batch", "prompt_lens"),
    ),
    f"{_V2}.sample.prompt_logprob:compute_prompt_logprobs_with_chunking": ("CHUNK_SIZE", "logits_fn"),
    f"{_V2}.spec_decode.rejection_sampler:RejectionSampler.__call__": ("logits", "input_batch"),
    f"{_V2}.spec_decode.rejection_sampler:RejectionSampler": ("get_max_chunk_logits", "sampler"),
    f"{_V2}.input_batch:InputBatch": ("cu_num_logits_np", "idx_mapping_np", "query_start_loc_np", "req_ids"),
    # tests/support/engine
    f"{_V2}.spec_decode.ngram.speculator:NgramGPUSpeculator.propose": (),
    f"{_V2}.states:RequestState": ("total_len", "all_token_ids", "last_sampled_tokens"),
}
