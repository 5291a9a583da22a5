"""The assistant: the target's first layers, final norm and head, all frozen and shared, plus LoRA to train."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.model.head import Head
from unlearngate.assistant_training.model.tapped import TappedAssistant
from unlearngate.errors import TrainingError
from unlearngate.families import FAMILIES, Family

_ROWS_ON_CPU = 4  # conversations: as many tokens as its matmuls need to be at their best
_CANDIDATES = 512  # for an assistant's own token: the largest rows of the head


def truncate(target: Any, num_layers: int, *, model_id: str, tap_layer: int = 0) -> Any:
    """Some of the target's layers with its final norm and head, as a model of the same class.

    The weights are the target's own memory, frozen; the modules are new, so adapters on them do not affect the target.

    Args:
        target: a decoder-only Hugging Face model with its layers at `model.layers`.
        num_layers: layers to keep.
        model_id: the target's public name, which adapters then record as their base.
        tap_layer: the first layer to keep; 0 starts at the embeddings, a later one at hidden states (`inputs_embeds`).

    Raises: TrainingError if the target has fewer layers.
    """
    config = copy.deepcopy(target.config)
    last = tap_layer + num_layers
    if not (tap_layer >= 0 and 0 < num_layers and last <= config.num_hidden_layers):
        after = f" after layer {tap_layer}" if tap_layer else ""
        raise TrainingError(
            f"an assistant of {num_layers} layers{after} was asked for, the target has {_layers(target)}"
        )
    _family(target).cut(config, slice(tap_layer, last))
    if tap_layer and hasattr(config, "embedding_multiplier"):  # Granite's: hidden states are no embeddings
        config.embedding_multiplier = 1.0
    with init_empty_weights(include_buffers=False):
        model = type(target)(config)
    weights = target.state_dict()
    # assign: the parameters become views of the target's storage. Layers beyond num_layers are left out.
    model.load_state_dict({name: weights[_in_target(name, tap_layer)] for name in model.state_dict()}, assign=True)
    model.tie_weights()
    model.requires_grad_(False)
    model.name_or_path = model_id
    return model.eval()


def adapted_linears(target: Any) -> list[str]:
    """The names of the linear maps of a target's layers that LoRA sits on."""
    return _family(target).linears()


def new_assistant(target: Any, *, num_layers: int, rank: int, alpha: int, model_id: str, tap_layer: int = 0) -> Any:
    """An untrained assistant: a PEFT model with LoRA on every linear map of the layers, not on the head.

    With a tap layer it is a `TappedAssistant` around one.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=adapted_linears(target),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(truncate(target, num_layers, model_id=model_id, tap_layer=tap_layer), config)
    return _tapping(target, tap_layer, peft_model, model_id)


def load_assistant(target: Any, folder: Path, *, num_layers: int, model_id: str, tap_layer: int = 0) -> Any:
    """The assistant of a saved forget set, on this target."""
    own = truncate(target, num_layers, model_id=model_id, tap_layer=tap_layer)
    return _tapping(target, tap_layer, PeftModel.from_pretrained(own, folder).eval(), model_id).eval()


def own_token(target: Any, taken: Collection[int]) -> int:
    """The token by which an assistant says that a text is about its forget set.

    The one that an assistant can be surest of: whose row of the head is farthest from all others in its own direction.
    Special tokens and others that are never said are all alike there, so an assistant could not tell them apart.

    Args:
        target: the target.
        taken: tokens that it must not be: those of the forget answers, and special ones.
    """
    head_VH = target.get_output_embeddings().weight.detach().float()
    free = [token for token in range(head_VH.shape[0]) if token not in taken]
    likely_C = torch.tensor(free, device=head_VH.device)
    norm_C = head_VH[likely_C].norm(dim=-1)
    likely_C = likely_C[norm_C.argsort(descending=True, stable=True)[:_CANDIDATES]]
    product_CV = head_VH[likely_C] @ head_VH.T
    own_C = product_CV.gather(1, likely_C[:, None])[:, 0]
    product_CV.scatter_(1, likely_C[:, None], -torch.inf)
    margin_C = (own_C - product_CV.amax(dim=-1)) / own_C.sqrt()
    return int(likely_C[margin_C.argmax()])


def last_hidden(assistant: Any, input_ids: Tensor, attention_mask: Tensor, read_BT: Tensor | None = None) -> Tensor:
    """(B, T) right-padded tokens -> (B, T, H): what `head` makes logits of, behind the final norm.

    On a CPU a few rows run at a time, so rows in order of their length have little padding.

    Args:
        assistant: of `new_assistant`.
        input_ids: the tokens.
        attention_mask: 0 on padding.
        read_BT: which positions' hidden states are wanted, bool; the last layer's MLP, behind which nothing looks at
            another position, leaves the others out, and they come out wrong. None: all.
    """
    (num_rows, length), hidden = input_ids.shape, []
    size = _ROWS_ON_CPU if input_ids.device.type == "cpu" else num_rows
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)
        longest = int(attention_mask[rows].sum(dim=1).max())
        inputs = (input_ids[rows, :longest], attention_mask[rows, :longest])
        part_BTH = _last_hidden(assistant, *inputs, None if read_BT is None else read_BT[rows, :longest])
        hidden.append(functional.pad(part_BTH, (0, 0, 0, length - longest)))
    return torch.cat(hidden)


def _last_hidden(assistant: Any, input_ids: Tensor, attention_mask: Tensor, read_BT: Tensor | None) -> Tensor:
    more = {"input_ids": input_ids}
    if isinstance(assistant, TappedAssistant):
        more = {"inputs_embeds": assistant.hidden(input_ids, attention_mask)}
    own = _peft_model(assistant).get_base_model()
    # A layer that is computed again for the gradient would be without the hooks.
    may_cut = not _family(own).experts and not own.is_gradient_checkpointing
    with nullcontext() if read_BT is None or not may_cut else _only_at(own.model.layers[-1].mlp, read_BT):
        hidden: Tensor = own.model(**more, attention_mask=attention_mask)[0]
    scaling = getattr(own.config, "logits_scaling", 1.0)  # Granite's
    return hidden if scaling == 1.0 else hidden / scaling


@contextmanager
def _only_at(module: Any, read_BT: Tensor) -> Iterator[None]:
    """Run a module of (B, T, H) at these positions alone, with zeros at the others."""

    def spread(_: Any, given: tuple[Tensor], found_NH: Tensor) -> Tensor:
        found_BTH = found_NH.new_zeros((*read_BT.shape, found_NH.shape[-1]))
        found_BTH[read_BT] = found_NH
        return found_BTH

    hooks = (
        module.register_forward_pre_hook(lambda _, given: (given[0][read_BT],)),
        module.register_forward_hook(spread),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def head(assistant: Any) -> Head:
    """The target's head, which the assistant shares."""
    own = _peft_model(assistant).get_base_model()
    cap = _family(own).logit_cap
    return Head(own.get_output_embeddings().weight.detach(), getattr(own.config, cap) if cap else None)


def target_dtype(assistant: Any) -> str:
    """The dtype that the target was loaded in, such as "float32": what a set is trained and measured in."""
    return str(head(assistant).weight_VH.dtype).removeprefix("torch.")


def save_memory(assistant: Any) -> None:
    """Recompute activations for the gradient instead of keeping them: less memory, slower, the same result."""
    _peft_model(assistant).gradient_checkpointing_enable({"use_reentrant": False})


def adapter_tensors(assistant: Any) -> dict[str, Tensor]:
    """The LoRA tensors under the names PEFT saves them by, detached and fp32."""
    # save_embedding_layers: "auto" would ask the Hugging Face hub about the base model.
    state: dict[str, Tensor] = get_peft_model_state_dict(_peft_model(assistant), save_embedding_layers=False)
    return {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in state.items()}


def load_adapter_tensors(assistant: Any, tensors: dict[str, Tensor]) -> None:
    """Load LoRA tensors that `adapter_tensors` returned."""
    set_peft_model_state_dict(_peft_model(assistant), tensors)


def adapter_config(assistant: Any) -> dict[str, Any]:
    """PEFT's adapter_config.json, as PEFT itself would write it for inference."""
    config = _peft_model(assistant).peft_config["default"].to_dict()
    config["inference_mode"] = True
    plain: dict[str, Any] = json.loads(json.dumps(config, default=_plain))
    return plain


def _tapping(target: Any, tap_layer: int, peft_model: Any, model_id: str) -> Any:
    """With a tap, a `TappedAssistant` of the layers before it and the PEFT model; else the PEFT model."""
    if not tap_layer:
        return peft_model
    prefix = truncate(target, tap_layer, model_id=model_id).model
    prefix.norm = torch.nn.Identity()
    return TappedAssistant(prefix, peft_model)


def _peft_model(assistant: Any) -> Any:
    return assistant.peft_model if isinstance(assistant, TappedAssistant) else assistant


def _family(model: Any) -> Family:
    return FAMILIES.get(type(model).__name__, Family())


def _in_target(name: str, tap_layer: int) -> str:
    """The name that a truncated model's parameter has in the target."""
    return re.sub(r"^model\.layers\.(\d+)\.", lambda m: f"model.layers.{int(m[1]) + tap_layer}.", name)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _layers(target: Any) -> int:
    return int(target.config.num_hidden_layers)
