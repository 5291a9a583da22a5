"""Tiny drafters with a model of their own, and what shows that they see the target's hidden states and no others.

A drafter's tokens decide how many are accepted, never the answer. So these know little: EAGLE-3 chooses among few
tokens, and EAGLE says one of few again.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.engine.parity_requests import acts_always

FEW = 3  # tokens
TOLERANCE = 1e-3  # of a hidden state, by the largest of its row
DRAFT_TOLERANCE = 1e-2  # of a draft's logit
METHODS = ("eagle3", "eagle")


@dataclass
class Drafter:
    """A checkpoint: what vLLM's `speculative_config` has of it, the tokens that it drafts, the layers that it reads."""

    options: dict[str, str]
    tokens: list[int]
    layers: list[int]

    @torch.no_grad()
    def reads(self, reference, tokens: list[int], student: str | None) -> Tensor:
        """(T, W) hidden states of the target, or of a student in its place: before each layer, or the final ones."""
        model = reference.students[student] if student else reference.target
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        return torch.cat([states[layer][0] for layer in self.layers or [-1]], -1)

    @torch.no_grad()
    def first_drafts(self, tokens: list[int], read_TW: Tensor, embed) -> Tensor:
        """(T - 1, few) logits of EAGLE-3's first draft behind each two tokens or more, as its paper has them.

        Source: EAGLE-3, arXiv:2503.01840, section 3; the checkpoint's one layer takes a token's embedding beside the
        hidden states before it.
        """
        folder = Path(self.options["model"])
        config, w = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        hidden = read_TW[:-1] @ w["fc.weight"].T  # of each token but the last, beside the token behind it
        layer = {name.removeprefix("midlayer."): tensor for name, tensor in w.items() if name.startswith("midlayer.")}
        embedded = _norm(embed(torch.tensor(tokens[1:])), layer["input_layernorm.weight"])
        both = torch.cat([embedded, _norm(hidden, layer["hidden_norm.weight"])], -1)
        size, count = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
        q, k, v = ((both @ layer[f"self_attn.{x}_proj.weight"].T).unflatten(1, (-1, size)) for x in "qkv")
        q, k = _rotated(q), _rotated(k)
        k, v = (x.repeat_interleave(count, 1).transpose(0, 1) for x in (k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True)
        hidden = hidden + attended.transpose(0, 1).flatten(1) @ layer["self_attn.o_proj.weight"].T
        inner = _norm(hidden, layer["post_attention_layernorm.weight"])
        gate, up = (inner @ layer[f"mlp.{x}_proj.weight"].T for x in ("gate", "up"))
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ layer["mlp.down_proj.weight"].T
        return _norm(hidden, w["norm.weight"]) @ w["lm_head.weight"].T


def make_drafter(folder: Path, target: Path, method: str, *, seed: int, tokens: list[int] | None = None) -> Drafter:
    """Write a drafter's checkpoint for a target; of the tokens, or of a few, in order, it knows most."""
    rng = random.Random(seed)
    tokens = tokens or sorted(rng.sample(range(2, 512), FEW))
    config = json.loads((target / "config.json").read_text())
    layer = {key: config[key] for key in ("hidden_size", "intermediate_size", "vocab_size", "num_key_value_heads")}
    heads = config["num_attention_heads"]
    common = {
        **layer,
        "model_type": "llama",
        "num_attention_heads": heads,
        "head_dim": config.get("head_dim") or layer["hidden_size"] // heads,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    of_target = load_file(target / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    make = {"eagle3": _eagle3, "eagle": _eagle}[method]
    tensors, own = make(common, of_target, tokens, generator, rng, config["num_hidden_layers"])
    folder.mkdir(parents=True, exist_ok=True)  # a run may draw again
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(common | own))
    return Drafter({"method": method, "model": str(folder)}, tokens, own.get("eagle_aux_hidden_state_layer_ids", []))


def _layer(common: dict, inputs: int, generator: torch.Generator, scale: float) -> dict[str, Tensor]:
    hidden, inner = common["hidden_size"], common["intermediate_size"]
    queries, keys = (common[f"num_{kind}_heads"] * common["head_dim"] for kind in ("attention", "key_value"))
    shapes = {
        **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (keys, inputs)),
        **{"self_attn.q_proj": (queries, inputs), "self_attn.o_proj": (hidden, queries)},
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, hidden)),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return tensors | {f"{name}.weight": torch.rand(hidden, generator=generator) + 0.5 for name in norms}


def _eagle3(common, of_target, tokens, generator, rng, num_layers):
    """All at random; its head has the few tokens alone, and three of the target's layers are read."""
    hidden = common["hidden_size"]
    read = sorted(rng.sample(range(1, num_layers), 3)) if num_layers > 3 else [1, 2]
    layer = _layer(common, 2 * hidden, generator, 0.2)
    tensors = {f"midlayer.{name}": tensor for name, tensor in layer.items()} | {
        "midlayer.hidden_norm.weight": torch.rand(hidden, generator=generator) + 0.5,
        "norm.weight": torch.rand(hidden, generator=generator) + 0.5,
        "fc.weight": torch.randn(hidden, len(read) * hidden, generator=generator) * 0.1,
        "lm_head.weight": torch.randn(len(tokens), hidden, generator=generator) * 0.2,
        "d2t": torch.tensor(tokens) - torch.arange(len(tokens)),
    }
    own = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": len(tokens),
        "eagle_aux_hidden_state_layer_ids": read,
        "num_aux_hidden_states": len(read),
    }
    return tensors, own


def _eagle(common, of_target, tokens, generator, rng, num_layers):
    """It has the target's head, and from a token's embedding makes what that head reads as the token itself."""
    hidden = common["hidden_size"]
    embeddings = of_target["model.embed_tokens.weight"][tokens]
    head = of_target.get("lm_head.weight", of_target["model.embed_tokens.weight"])[tokens]
    again = head.T @ embeddings / embeddings.pow(2).sum(1).mean()
    noise = torch.randn(hidden, hidden, generator=generator) * 0.02
    tensors = {f"layers.0.{name}": tensor for name, tensor in _layer(common, hidden, generator, 0.02).items()}
    del tensors["layers.0.input_layernorm.weight"]  # EAGLE's first layer has none
    tensors["fc.weight"] = torch.cat([again, noise], 1)
    return tensors, {"architectures": ["LlamaForCausalLM"]}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _rotated(x_THD: Tensor) -> Tensor:
    """By each row's number, in halves."""
    half = x_THD.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = (torch.arange(len(x_THD))[:, None] * frequencies)[:, None]
    first, second = x_THD[..., :half], x_THD[..., half:]
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat(turned, -1)


@dataclass
class Shown:
    """What a drafter was given: by request and position the token there and the target's hidden states, (W,).

    And what it drafted first, by request and how many tokens there were.
    """

    rows: dict[str, dict[int, tuple[int, Tensor]]] = field(default_factory=dict)
    drafted: dict[str, dict[int, int]] = field(default_factory=dict)
    drafter: object = None  # vLLM's

    def problems(self, requests: list[dict], drafter: Drafter, reference) -> tuple[list[str], int, int]:
        """What is wrong, how many positions were compared with Hugging Face's hidden states, and how many drafts."""
        wrong, compared, drafts = [], 0, 0
        for index, request in enumerate(requests):
            tokens = [*request["prompt"], *request["tokens"]]
            seen = {at: row for at, row in self.rows.get(str(index), {}).items() if at < len(tokens) - 1}
            if not seen or not request["tokens"]:
                continue
            expected = drafter.reads(reference, tokens, request["student"])
            for at, (token, row) in sorted(seen.items()):
                error = float((row - expected[at]).abs().max() / expected[at].abs().max())
                compared += 1
                if token != tokens[at] or not error < TOLERANCE:
                    wrong.append(f"request {index}, position {at}: the drafter saw token {token}, off by {error:.2g}")
                    break
            if drafter.layers:
                embed = reference.target.get_input_embeddings()
                logits = drafter.first_drafts(tokens, expected, embed)
                for length, draft in self.drafted.get(str(index), {}).items():
                    if length <= len(tokens):
                        drafts += 1
                        row = logits[length - 2]
                        behind = float(row.max() - row[drafter.tokens.index(draft)])
                        if not behind < DRAFT_TOLERANCE:
                            wrong.append(
                                f"request {index}: behind {length} tokens {draft} was drafted, by {behind:.2g}"
                            )
        return wrong, compared, drafts

    def check_its_modules(self, num_layers: int) -> None:
        """The drafter has no LoRA, and one layer, behind the target's and apart from every branch's."""
        from vllm.lora.layers import BaseLayerWithLoRA

        adapted = [name for name, one in self.drafter.model.named_modules() if isinstance(one, BaseLayerWithLoRA)]
        assert not adapted, f"the drafter has LoRA on {adapted}"
        assert self.drafter.draft_attn_layer_names == {f"model.layers.{num_layers}.self_attn.attn"}


def watch_drafter() -> Shown:
    """What this process's drafter is given, growing step by step; of a position the last counts."""
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import TargetDependentARSpeculator

    shown, propose = Shown(), TargetDependentARSpeculator.propose

    def watched(self, input_batch, *given, **named):
        drafts = propose(self, input_batch, *given, **named)
        if not named.get("dummy_run"):
            shown.drafter = self
            _, _, last_hidden_states, aux_hidden_states, num_sampled, num_rejected, *_ = given
            hidden = torch.cat(aux_hidden_states, -1) if aux_hidden_states else last_hidden_states
            starts = input_batch.query_start_loc_np.tolist()
            tokens, positions = input_batch.input_ids.tolist(), input_batch.positions.tolist()
            for number, req_id in enumerate(input_batch.req_ids):
                request_id = req_id.rpartition("-")[0]
                for row in range(starts[number], starts[number + 1]):
                    shown.rows.setdefault(request_id, {})[positions[row]] = tokens[row], hidden[row].clone()
                if num_sampled[number]:
                    last = positions[starts[number + 1] - 1 - int(num_rejected[number])]
                    shown.drafted.setdefault(request_id, {})[last + 2] = int(drafts[number, 0])
        return drafts

    TargetDependentARSpeculator.propose = watched
    return shown


def drafts_where_a_set_acts(requests: list[dict]) -> list[str]:
    """Requests in which a set acts at every token, and that had more than one from a step."""
    acting = [(i, one) for i, one in enumerate(requests) if one["student"] or acts_always(one)]
    return [
        f"request {i} had {one['together']} tokens from a step, and a set acts at each"
        for i, one in acting
        if one["together"] > 1
    ]
