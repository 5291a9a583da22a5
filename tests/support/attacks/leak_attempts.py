"""What a client may send in the hope of the plain target: fields, prompts, spellings, headers, routes; by row.

Outcomes: COMPOSED, the answer that the reference gives; STEERED, an answer of the composition's, or a refusal, because
the field steers it; REFUSED, an error.
"""

from __future__ import annotations

from support.engine.tiny import VOCAB_SIZE, make_tokenizer
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, sign

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
COMPOSED, STEERED, REFUSED = "composed", "steered", "refused"
MESSAGES = [{"role": "user", "content": "hello there"}]
TEXT = "user: hello there\nassistant:"
PROMPT = make_tokenizer().encode(TEXT)
SIGNED_PLAIN = sign(Plan())  # with the server's own key: the environment's

_ASKED = {
    "model": "tiny",
    "temperature": 0,
    "max_tokens": 12,
    "ignore_eos": True,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
BODIES = {
    CHAT: {**_ASKED, "messages": MESSAGES, "logprobs": True, "top_logprobs": 5},
    COMPLETIONS: {**_ASKED, "prompt": PROMPT, "logprobs": 5},
    RESPONSES: {
        **{"model": "tiny", "temperature": 0, "max_output_tokens": 12, "ignore_eos": True, "input": MESSAGES},
        **{"include": ["message.output_text.logprobs"], "top_logprobs": 5, "enable_response_messages": True},
    },
}
# Whatever any other route may want to be asked with.
EVERYTHING = {
    **_ASKED,
    **{"messages": MESSAGES, "prompt": PROMPT, "token_ids": PROMPT, "input": TEXT, "text": TEXT, "query": TEXT},
    **{"items": ["a"], "label_token_ids": [5, 6], "lora_name": "x", "lora_path": "/tmp", "method": "get_model"},
    "sampling_params": {"max_tokens": 12, "extra_args": {TOKEN_FIELD: SIGNED_PLAIN}},
}
_DOCUMENTS = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
SERVED_PATHS = {*_DOCUMENTS, "/health", "/metrics", "/v1/models", *BODIES}

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_EXTREMES = {str(t): 100 if t % 2 else -100 for t in range(2, 22)}
_SCHEMA = {"name": "a", "schema": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}
FIELDS = {
    "A3-model-base-name": ({}, COMPOSED),
    "A3-no-sets": ({"forget_sets": []}, REFUSED),
    "A3-null-sets": ({"forget_sets": None}, COMPOSED),
    "A3-model-without-sets": ({"model": "tiny:forget="}, REFUSED),
    "A3-weight-zero": ({"forget_sets": [{"name": "anna", "weight": 0}]}, REFUSED),
    "A3-weight-stronger": ({"forget_sets": [{"name": "anna", "weight": 3}]}, REFUSED),
    "A3-gate-out-of-reach": ({"forget_sets": [{"name": "anna", "gate_nats": 20}]}, REFUSED),
    "A3-model-unknown": ({"model": "gpt-4"}, REFUSED),
    "A3-model-empty": ({"model": ""}, REFUSED),
    "A3-model-reserved-prefix": ({"model": "unlearngate/0"}, REFUSED),
    "A3-beam-search": ({"use_beam_search": True, "n": 2}, REFUSED),
    "A3-beam-search-as-text": ({"use_beam_search": "yes"}, REFUSED),
    "A3-prompt-logprobs": ({"prompt_logprobs": 0}, COMPOSED),
    "A3-prompt-logprobs-top": ({"prompt_logprobs": 20}, COMPOSED),
    "A3-prompt-logprobs-all": ({"prompt_logprobs": -1}, REFUSED),
    "A3-echo": ({"echo": True}, COMPOSED),
    "A3-echo-stream": ({"echo": True, "stream": True}, COMPOSED),
    "A3-kv-transfer-params": ({"kv_transfer_params": {"do_remote_prefill": True}}, REFUSED),
    "A3-kv-transfer-params-empty": ({"kv_transfer_params": {}}, REFUSED),
    "A3-ec-transfer-params": ({"ec_transfer_params": {"a": 1}}, REFUSED),
    "A3-vllm-xargs": ({"vllm_xargs": {TOKEN_FIELD: SIGNED_PLAIN}}, REFUSED),
    "A3-vllm-xargs-transfer": ({"vllm_xargs": {"kv_transfer_params": "x"}}, REFUSED),
    "A3-extra-args": ({"extra_args": {TOKEN_FIELD: SIGNED_PLAIN}}, REFUSED),
    "A3-extra-body": ({"extra_body": {"forget_sets": [], "vllm_xargs": {TOKEN_FIELD: SIGNED_PLAIN}}}, REFUSED),
    "A3-sampling-params": ({"sampling_params": {"extra_args": {TOKEN_FIELD: SIGNED_PLAIN}}}, REFUSED),
    "A3-lookalike-keys": ({"forget_s\u0435ts": [], "Forget_Sets": [], "forget-sets": []}, REFUSED),
    "A3-cache-salt": ({"cache_salt": "x"}, COMPOSED),
    "A3-session-id": ({"session_id": "s"}, COMPOSED),
    "A3-request-id": ({"request_id": "same"}, COMPOSED),
    "A3-n": ({"n": 3, "temperature": 1, "top_k": 1}, COMPOSED),
    "A3-best-of": ({"best_of": 3}, COMPOSED),
    "A3-stream": ({"stream": True, "stream_options": {"include_usage": True}}, COMPOSED),
    "A3-stream-interval": ({"stream": True, "stream_interval": 5}, COMPOSED),
    "A3-min-tokens": ({"min_tokens": 12}, COMPOSED),
    "A3-sampling": ({"temperature": 2, "n": 4, "seed": 7}, STEERED),
    "A3-logprob-token-ids": ({"logprob_token_ids": [5, 6, 7, 8, 9]}, STEERED),
    "A3-all-logprobs": ({"max_tokens": 2, "logprobs": 20, "top_logprobs": 20}, STEERED),
    "A3-logit-bias": ({"logit_bias": _EXTREMES}, STEERED),
    "A3-allowed-token-ids": ({"allowed_token_ids": list(range(2, VOCAB_SIZE, 3))}, STEERED),
    "A3-bad-words": ({"bad_words": ["a", "b", "c"]}, STEERED),
    "A3-penalties": ({"presence_penalty": 2, "frequency_penalty": -2, "repetition_penalty": 0.1}, STEERED),
    "A3-structured-outputs": ({"structured_outputs": {"regex": "[a-z]{4}"}}, STEERED),
    "A3-response-format": ({"response_format": {"type": "json_schema", "json_schema": _SCHEMA}}, STEERED),
    "A3-truncate-prompt-tokens": ({"truncate_prompt_tokens": 5}, STEERED),
    "A3-thinking-token-budget": ({"thinking_token_budget": 1}, STEERED),
    "A3-priority": ({"priority": -5}, STEERED),
    "A3-tools": ({"tools": [_TOOL], "tool_choice": "required"}, STEERED),
    "A3-chat-template": ({"chat_template": "{{ messages }}"}, STEERED),
    "A3-prompt-embeds": ({"prompt_embeds": "AAAA"}, STEERED),
    "A3-routed-experts": ({"routed_experts_prompt_start": 0, "return_mm_kwargs": True, "watermarking": False}, STEERED),
    "A3-vllm-xargs-older": ({"vllm_xargs": {TOKEN_FIELD: SIGNED_PLAIN[:-1] + "0"}}, REFUSED),
}
# Of /v1/responses alone.
RESPONSES_FIELDS = {
    "A3-responses-store": ({"store": True}, REFUSED),
    "A3-responses-background": ({"background": True, "store": True}, REFUSED),
    "A3-responses-previous": ({"previous_response_id": "resp_1"}, REFUSED),
    "A3-responses-conversation": ({"conversation": "conv_1"}, REFUSED),
    "A3-responses-history": ({"previous_input_messages": MESSAGES}, REFUSED),
    "A3-responses-tools": ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, REFUSED),
    "A3-responses-functions": ({"tools": [{"type": "function", "name": "f"}], "tool_choice": "required"}, STEERED),
    "A3-responses-format": ({"text": {"format": {"type": "json_schema", **_SCHEMA}}}, STEERED),
    "A3-responses-bias": ({"logit_bias": _EXTREMES}, STEERED),
    "A3-responses-reasoning": ({"reasoning": {"effort": "high"}, "include_reasoning": False}, COMPOSED),
    "A3-responses-truncation": ({"truncation": "auto"}, COMPOSED),
    "A3-responses-text": ({"input": "hello there"}, COMPOSED),
}
PROMPTS = {
    "A3-prompt-text": (TEXT, COMPOSED),
    "A3-prompt-token-ids": (PROMPT, COMPOSED),
    "A3-prompt-list": ([PROMPT, PROMPT], COMPOSED),
    "A3-prompt-texts": ([TEXT, TEXT, TEXT], COMPOSED),
    "A3-prompt-empty": ("", REFUSED),
    "A3-prompt-object": ({"prompt_token_ids": PROMPT}, REFUSED),
}
# Put before the body's own keys, of which JSON's readers take the last of a name.
SPELLINGS = {
    "A3-duplicate-sets": ('"forget_sets": ["bert"], "forget_sets": null, ', COMPOSED),
    "A3-duplicate-sets-last-empty": ('"forget_sets": ["anna"], "forget_sets": [], ', REFUSED),
    "A3-duplicate-flag": ('"use_beam_search": true, "use_beam_search": false, ', COMPOSED),
    "A3-duplicate-model": ('"model": "unlearngate/0", ', COMPOSED),
    "A3-escaped-sets": ('"forget\\u005fsets": [], ', REFUSED),
    "A3-escaped-flag": ('"use\\u005fbeam_search": true, ', REFUSED),
}
HEADERS = {
    "A3-header-adapter-identifier": ({"X-Amzn-SageMaker-Adapter-Identifier": "tiny"}, COMPOSED),
    "A3-header-request-id": ({"X-Request-Id": "same"}, COMPOSED),
    "A3-header-data-parallel-rank": ({"X-data-parallel-rank": "0"}, COMPOSED),
    "A3-header-session-id": ({"X-Session-Id": "same"}, COMPOSED),
    "A3-header-forget-sets": ({"X-Forget-Sets": "none"}, REFUSED),
    "A3-header-override": ({"X-HTTP-Method-Override": "GET", "X-Original-URL": "/invocations"}, COMPOSED),
    "A3-header-gateway": ({"X-Unlearngate-Required": ""}, REFUSED),
}
ROUTES = {
    "A4-invocations": ["POST /invocations", "GET /ping"],
    "A4-scoring": ["POST /generative_scoring", "POST /v1/systemone", "POST /v1/decisions"],
    "A4-responses": ["GET /v1/responses", "GET /v1/responses/1", "DELETE /v1/responses/1"]
    + [f"POST /v1/responses/{path}" for path in ("1/cancel", "compact", "input_tokens")],
    "A4-messages": ["POST /v1/messages", "POST /v1/messages/count_tokens", "POST /cohere/v2/chat"],
    "A4-batch": ["POST /v1/chat/completions/batch", "POST /v1/batches", "POST /v1/files"],
    "A4-scale-out": ["POST /inference/v1/generate", "POST /v1/completions/render", "POST /v1/completions/derender"],
    "A4-tokenize": ["POST /tokenize", "POST /detokenize", "GET /tokenizer_info"],
    "A4-pooling": [f"POST /{p}" for p in ("pooling", "v1/embeddings", "v2/embed", "classify", "score", "rerank")],
    "A4-adapters": ["POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter", "POST /adapters"],
    "A4-development": [
        "POST /collective_rpc",
        "GET /server_info",
        "POST /sleep",
        "POST /wake_up",
        "POST /reset_prefix_cache",
    ],
    "A4-weights": [
        "POST /update_weights",
        "POST /start_weight_update",
        "POST /init_weight_transfer_engine",
        "POST /pause",
    ],
    "A4-audio": ["POST /v1/audio/transcriptions", "POST /v1/audio/translations", "GET /v1/realtime"],
    "A4-administration": ["POST /scale_elastic_ep", "POST /fault_tolerance/apply", "POST /start_profile"],
    "A4-other-paths": [
        "POST //v1/completions",
        "POST /v1/completions/x",
        "POST /V1/completions",
        "PUT /v1/completions",
    ],
}
