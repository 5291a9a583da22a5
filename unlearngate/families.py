"""The architectures that targets may have, and how each differs from Llama. One list for training and serving.

Each is in the parity tests. Its inner model is embeddings, decoder layers with vLLM's four linear maps, a final norm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_QKV, _GATE_UP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
_OUT, _DOWN = "self_attn.o_proj", "mlp.down_proj"
_ATTENTION, _MLP = (*_QKV, _OUT), (*_GATE_UP, _DOWN)
ALWAYS = ""


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs of which each token takes a few. Assistants share them with the target, and no LoRA sits on them.

    module: their name inside a layer, in checkpoints and in vLLM.
    number: the keys of config.json that may say how many there are.
    inner: the one that says how wide each is.
    linears: the linear maps of one: gate, up, down.
    shared: the key of config.json that says how wide the one is that every token takes, too, behind a gate of its own.
    must_be: keys by which some layers would have none, with the only value that was tried.
    """

    module: str
    number: tuple[str, ...]
    inner: str
    linears: tuple[str, str, str]
    shared: str | None = None
    must_be: Mapping[str, object] = field(default_factory=dict)

    def shapes(self, hidden: int, number: int, inner: int, shared: int) -> dict[str, tuple[int, int]]:
        """(out, in) features of the router and of each expert's linear maps, by their names inside a layer."""
        found = {f"{self.module}.gate": (number, hidden)}
        for expert in range(number):
            found |= self._mlp(f"experts.{expert}", hidden, inner)
        if self.shared:
            found |= self._mlp("shared_expert", hidden, shared) | {f"{self.module}.shared_expert_gate": (1, hidden)}
        return found

    def _mlp(self, name: str, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
        sizes = [(inner, hidden), (inner, hidden), (hidden, inner)]
        return {f"{self.module}.{name}.{one}": size for one, size in zip(self.linears, sizes, strict=True)}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture, by what a checkpoint's files and vLLM's layers have that Llama's have not.

    packed: its checkpoints have one linear map for queries, keys and values, and one for gate and up.
    biased: switches of config.json, or ALWAYS, and the linear maps that have a bias with them.
    norms: of a layer, by their names inside it; each has H weights.
    head_norms: norms inside the attention; each has head_dim weights.
    spanning_norms: those have as many weights as all queries, or keys, together.
    head_dim: where config.json does not say it; None is H / heads.
    tied: whether the head is the embeddings, where config.json does not say it.
    logit_cap: the key of config.json that caps logits, c tanh(logit / c); composition and training see capped ones.
    attention_cap: the key of the one that caps what goes into the attention's softmax.
    by_layer: keys of config.json that have a value for each layer.
    must_be: keys of config.json that vLLM does not read, or that were not tried, with the only value that may stand.
    experts: what it has in place of an MLP; LoRA then sits on the attention alone.
    drafted: whether drafters that read its hidden states (EAGLE, EAGLE-3) were tried.
    """

    packed: bool = False
    biased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: tuple[str, ...] = ()
    spanning_norms: bool = False
    head_dim: int | None = None
    tied: bool = False
    logit_cap: str | None = None
    attention_cap: str | None = None
    by_layer: tuple[str, ...] = ("layer_types",)
    must_be: Mapping[str, object] = field(default_factory=dict)
    experts: Experts | None = None
    drafted: bool = False

    def linear_shapes(self, hidden: int, inner: int, queries: int, keys: int) -> dict[str, tuple[int, int]]:
        """(out, in) features of each linear map that LoRA may sit on, by its name inside a decoder layer.

        Args:
            hidden: H.
            inner: of the MLP.
            queries: heads times head_dim.
            keys: KV heads times head_dim, of keys and of values.
        """
        if self.packed:
            first = {"self_attn.qkv_proj": (queries + 2 * keys, hidden), _OUT: (hidden, queries)}
            return first | {"mlp.gate_up_proj": (2 * inner, hidden), _DOWN: (hidden, inner)}
        attention = dict(zip(_QKV, [(queries, hidden), (keys, hidden), (keys, hidden)], strict=True))
        attention[_OUT] = (hidden, queries)
        if self.experts:
            return attention
        return attention | dict.fromkeys(_GATE_UP, (inner, hidden)) | {_DOWN: (hidden, inner)}

    def cut(self, config: Any, layers: slice) -> None:
        """Leave only some layers in a Hugging Face configuration."""
        config.num_hidden_layers = len(range(config.num_hidden_layers)[layers])
        for key in self.by_layer:
            if getattr(config, key, None):
                setattr(config, key, getattr(config, key)[layers])

    def linears(self) -> list[str]:
        """The last parts of those names."""
        return [name.rpartition(".")[2] for name in self.linear_shapes(1, 1, 1, 1)]


_BY_SWITCHES = {"attention_bias": _ATTENTION, "mlp_bias": _MLP}
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_QWENS_EXPERTS = Experts(
    *("mlp", ("num_experts", "num_local_experts"), "moe_intermediate_size", ("gate_proj", "up_proj", "down_proj")),
    must_be={"mlp_only_layers": [], "decoder_sparse_step": 1},
)
_BOTH_WAYS = "use_bidirectional_attention"
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(biased=_BY_SWITCHES, drafted=True),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(biased={ALWAYS: _QKV}),
    "Qwen3ForCausalLM": Family(biased={"attention_bias": _ATTENTION}, head_norms=_QK_NORMS, head_dim=128, drafted=True),
    "Gemma2ForCausalLM": Family(
        biased={"attention_bias": _ATTENTION},
        norms=_GEMMA_NORMS,
        head_dim=256,
        tied=True,
        logit_cap="final_logit_softcapping",
        attention_cap="attn_logit_softcapping",
        must_be={_BOTH_WAYS: False},
    ),
    "Gemma3ForCausalLM": Family(
        biased={"attention_bias": _ATTENTION},
        norms=_GEMMA_NORMS,
        head_norms=_QK_NORMS,
        head_dim=256,
        tied=True,
        logit_cap="final_logit_softcapping",
        must_be={"attn_logit_softcapping": None, _BOTH_WAYS: False},
    ),
    "Phi3ForCausalLM": Family(packed=True),
    "GraniteForCausalLM": Family(biased=_BY_SWITCHES),
    **dict.fromkeys(
        ("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
        Family(
            biased={"attention_bias": _ATTENTION},
            norms=("post_attention_layernorm", "post_feedforward_layernorm"),
            head_norms=_QK_NORMS,
            spanning_norms=True,
        ),
    ),
    "SmolLM3ForCausalLM": Family(biased=_BY_SWITCHES, tied=True, by_layer=("layer_types", "no_rope_layers")),
    "MixtralForCausalLM": Family(
        experts=Experts("block_sparse_moe", ("num_local_experts",), "intermediate_size", ("w1", "w3", "w2"))
    ),
    "Qwen2MoeForCausalLM": Family(
        biased={ALWAYS: _QKV},
        must_be={"qkv_bias": True, "use_sliding_window": False},
        experts=replace(_QWENS_EXPERTS, shared="shared_expert_intermediate_size"),
    ),
    "Qwen3MoeForCausalLM": Family(
        biased={"attention_bias": _ATTENTION}, head_norms=_QK_NORMS, head_dim=128, experts=_QWENS_EXPERTS
    ),
}
TARGET_ARCHITECTURES = tuple(FAMILIES)
# How a target's rotary embedding may be stretched, by names in config.json: each is in the parity tests, too.
ROTARY = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")

_OSS = (
    "vLLM gives its attention its sinks when it is built, so that a branch would attend by others of its own; its "
    "experts' biases and weights in MXFP4 were not tried"
)
_LATENT = "its attention keeps no keys and values by head"
_STATE = "its layers keep a state that a branch would change"
_PICTURES = "it sees pictures or hears; the text model in it must be a checkpoint of its own"
# Why some that people serve are refused.
_REASONS = {
    "GptOssForCausalLM": _OSS,
    **dict.fromkeys(("GraniteMoeHybridForCausalLM", "Qwen3NextForCausalLM", "MambaForCausalLM"), _STATE),
    **dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), _LATENT),
    "Glm4ForCausalLM": "a trial gave wrong tokens: its rotary embedding is partial and its adapters' names differ",
    "GPT2LMHeadModel": "its linear maps are transposed and named otherwise",
}


def longest_alike(rope: Mapping[str, Any], length: int) -> int:
    """How long a sequence may be for vLLM to rotate it as Hugging Face does, which forget sets are trained by.

    Beyond it Hugging Face goes by each sequence's length. vLLM then takes longrope's long factors for all sequences, of
    whatever length, and for dynamic it has no angles.

    Args:
        rope: a configuration's `rope_parameters`.
        length: its `max_position_embeddings`.
    """
    if rope.get("rope_type") == "longrope" and rope["short_factor"] != rope["long_factor"]:
        return int(rope["original_max_position_embeddings"])
    return length


def refusal(architecture: str, supported: Collection[str] = TARGET_ARCHITECTURES) -> str:
    """Why an architecture is no target's, in a part of a sentence, and what is supported."""
    reason = _REASONS.get(architecture) or (_PICTURES if architecture.endswith("ForConditionalGeneration") else None)
    because = f": {reason}" if reason else ""
    return f"target architecture {architecture!r} is not supported{because}; supported: {', '.join(supported)}"
