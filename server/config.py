"""What an operator decides about a server. `unlearngate serve` has an option for each field but the target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from unlearngate.manifest import Name
from unlearngate.server.contract.branches import MAX_BRANCHES
from unlearngate.server.sets.caller import Logprobs

Origin = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s*]+)$")]


class ServerConfig(BaseModel):
    """A field's description and range are its option's. All other settings are vLLM's and go through `engine_args`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Path = Field(description="the target's Hugging Face checkpoint folder")
    quantised_from: str | None = Field(
        default=None,
        description="if the target is quantised: the unquantised checkpoint's folder, or its weights_digest as sets' "
        "manifests have it; sets for that one are served here once their canaries hold",
    )
    forget_sets: Path = Field(description="folder with one sub-folder per forget set; changes are noticed")
    state: Path | None = Field(
        default=None, description="keep what is in force in this folder, across restarts; for this server alone"
    )
    watch_interval_s: float = Field(
        default=2.0, ge=0, description="how often --forget-sets is looked at for changes; 0: never"
    )
    prove_every: float = Field(
        default=0.0,
        ge=0,
        description="minutes after which the sets' canaries are asked again; 0: only when a version is put in force",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    name: str | None = Field(
        default=None, pattern=r"^\S+$", description="model name that clients use; default: the folder's"
    )
    default_set: tuple[str, ...] = Field(
        default=(), description="in force when a request does not say; repeat for several"
    )
    required_set: tuple[Name, ...] = Field(
        default=(), description="in force for every request, whatever it says; repeat for several"
    )
    logprobs: Logprobs = Field(
        default="none",
        description="what requests with a required set may have of logprobs, and of the fields that measure them",
    )
    keys: Path | None = Field(
        default=None, description="file of API keys (unlearngate keys); with it every request needs one"
    )
    gateway_secret_file: Path | None = Field(
        default=None, description="secret by which a gateway may require sets and say the tenant"
    )
    require_gateway: bool = Field(default=False, description="refuse requests that do not come through the gateway")
    allowed_origin: tuple[Origin, ...] = Field(
        default=(),
        description="origin whose web pages may use this server, e.g. https://chat.example.org; * for all; "
        "repeat for several",
    )
    max_sets_per_request: int = Field(default=2, ge=1, le=MAX_BRANCHES, description="assistant branches of the model")
    max_loaded: int = Field(default=8, ge=1, description="combinations of sets that one batch may hold")
    max_known: int = Field(default=64, ge=1, description="combinations of sets kept in memory")
    max_rank: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="room for sets of this LoRA rank that come while the server runs; default: the largest of the "
        "sets, or 16, which training makes, while there is none",
    )
    assistant_layers: int | None = Field(
        default=None, ge=1, description="layers of every assistant; default: as in most of the sets"
    )
    assistant_tap: int | None = Field(
        default=None, ge=0, description="layer that every assistant starts before; default: as in most of the sets"
    )
    enable_undial: bool = Field(
        default=False, description="also serve sets of kind undial, which put LoRA on the target itself"
    )
    audit: Path | None = Field(default=None, description="write an audit log to this file or folder")
    audit_max_mb: int = Field(default=256, ge=1, description="size from which the audit log goes on in a new file")
    max_body_mb: int = Field(default=4, ge=1, description="largest body of a request, in MiB; larger ones are 413")
    max_running_per_key: int = Field(
        default=0, ge=0, description="requests of one API key that are answered at a time; 0: any number"
    )
    max_sequences: int = Field(default=1024, ge=1, description="sequences of one request: prompts times n")
    max_prompt_chars: int | None = Field(
        default=None, ge=1, description="characters of one prompt; default: 32 for each token of the model's context"
    )
    max_request_chars: int = Field(
        default=2**20, ge=1, description="characters of all that one request has tokenised; other requests wait for it"
    )
    max_messages: int = Field(
        default=4096, ge=1, description="messages, parts of messages, tool calls and tools of one request, together"
    )
    max_definition_kb: int = Field(
        default=64, ge=1, description="size of a schema, grammar or list that answers must match, in KiB"
    )
    max_definition_items: int = Field(
        default=512, ge=1, description="properties, alternatives or rules in one place of such a definition"
    )
    max_repeats: int = Field(
        default=2000, ge=1, description="characters or items when such a definition's bounded repeats are written out"
    )
    max_compile_s: float = Field(
        default=10.0, gt=0, description="seconds of a processor that such a definition may take to compile"
    )
    max_biases: int = Field(default=1024, ge=1, description="entries of logit_bias, bad_words, stop_token_ids each")
    max_parameters_kb: int = Field(
        default=1024,
        ge=1,
        description="size of what the engine gets for every sequence (stop strings, token ids, vllm_xargs), in KiB, "
        "times the sequences",
    )
    drain_timeout_s: int = Field(default=30, ge=0, description="how long running requests may finish on SIGTERM")
    engine_args: str = Field(
        default="",
        description='vLLM options in one string, e.g. "--max-model-len 4096 --tensor-parallel-size 2"',
    )

    @model_validator(mode="after")
    def _gateway_has_a_secret(self) -> Self:
        if self.require_gateway and self.gateway_secret_file is None:
            raise ValueError("--require-gateway needs --gateway-secret-file, or no request could be answered")
        return self
