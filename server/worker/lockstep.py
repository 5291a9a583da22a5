"""A step of the target with its assistants beside it: their rows go through the shared layers together.

Layers j to j + m of the target and of every branch are the same weights. A stacked layer is vLLM's own decoder layer
over the target's T rows and, behind them, each branch's: each weight is read once for all of them. What is not shared
stays apart: attention is the target's and each branch's own, over its rows and its KV; LoRA is added to its branch's
rows alone. A branch's rows are all T, or those that are named (`batch.Parts`). Compiled code holds for any number of
them: attention and LoRA look up the step's parts, each in one operation.

Every row goes through the same operations as it does alone. Behind the attention of the last stacked layer, where parts
are named, only rows go on whose final hidden states are asked for; the others are NaN from there on.

A layer is (positions, hidden, residual) -> (hidden, residual), as Llama's, or (positions, hidden) -> hidden. In vLLM's
Transformers backend it is Hugging Face's, which takes a batch of one and the angles of its rotary embedding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.utils.torch_utils import direct_register_custom_op

from unlearngate.server.worker.compat import attend_part, may_cut_branches, parts_of_step
from unlearngate.server.worker.cpu_lora import add_joined, joined_numbers


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "inputs_embeds": 0, "row_M": 0, "asked_X": 0})
class Lockstep(nn.Module):
    """The whole step; holds no module of its own, so that each has one name in the model."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        target: nn.Module,
        branches: Sequence[nn.Module],
        tap_layer: int,
    ) -> None:
        super().__init__()
        self._target = (target,)
        self._branches = tuple(branches)
        self._tap_layer = tap_layer
        self._stacked: tuple[nn.Module, ...] = ()
        self.cuts = may_cut_branches(vllm_config)
        self._asked = _Asked()
        layers = cast("nn.ModuleList", target.layers)
        self._has_residual = "residual" in inspect.signature(layers[0].forward).parameters
        self._is_hugging_faces = isinstance(target, PreTrainedModel)
        self._kinds: tuple[str, ...] = ()  # of layers, where each kind has a rotary embedding of its own
        if self._is_hugging_faces and "layer_type" in inspect.signature(_rotary(target).forward).parameters:
            self._kinds = tuple(cast("PreTrainedModel", target).config.layer_types)
        # Granite's, which its model applies to any embeddings, as here.
        self._multiplier: float = getattr(vllm_config.model_config.hf_config, "embedding_multiplier", 1.0)

    def stack(self) -> None:
        """Build the stacked layers, once, after weights are loaded, packed and adapted: they no longer change then."""
        if not self._stacked:
            shared = cast("nn.ModuleList", self._target[0].layers)[self._tap_layer :]
            columns = zip(*(cast("nn.ModuleList", branch.layers) for branch in self._branches), strict=True)
            attention = _CutAttention if self.cuts else _StackedAttention
            layers = zip(shared, columns, strict=False)
            self._stacked = tuple(_stacked(layer, column, attention) for layer, column in layers)
            if self.cuts and self._stacked:  # an engine for texts alone has no branches
                _cut_to_asked(self._stacked[-1], self._asked)

    @property
    def ends_target(self) -> bool:
        """Whether the last stacked layer is the target's last."""
        return self._tap_layer + len(self._stacked) == len(cast("nn.ModuleList", self._target[0].layers))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        inputs_embeds: Tensor | None = None,
        row_M: Tensor | None = None,
        asked_X: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Run a step.

        Args:
            input_ids: (T,) tokens, or `inputs_embeds` (T, H).
            positions: (T,).
            inputs_embeds: see input_ids.
            row_M: (M,) int64, where branches are cut: which of the T rows each of the branches' is, branch by branch.
            asked_X: (X,) int64, with row_M: which of the T + M rows go on behind the last stacked layer's attention.

        Returns: final hidden states, the target's first: (T + M, H), or (T, (1 + S) H) where branches are not cut. With
            them, if a drafter reads some of the target's layers, (T, H) of each: the target's own, and no branch's.
        """
        target: Any = self._target[0]
        read = Read(len(positions), getattr(target, "aux_hidden_state_layers", ()))
        embed = target.embed_tokens if self._is_hugging_faces else target.embed_input_ids
        hidden = embed(input_ids) if inputs_embeds is None else inputs_embeds
        if self._multiplier != 1.0:
            hidden = hidden * self._multiplier
        residual: Tensor | None = None
        read.before(0, hidden, residual)
        hidden, residual = self._run(target.layers[: self._tap_layer], 0, positions, hidden, residual, read)
        copies = [len(positions)] * len(self._branches) if row_M is None else [len(row_M)]
        sizes = [len(positions), *copies]

        def stack(x_T: Tensor) -> Tensor:
            return torch.cat([x_T, *([x_T] * len(copies) if row_M is None else [x_T[row_M]])])

        hidden, residual = stack(hidden), None if residual is None else stack(residual)
        self._asked.row_X = asked_X
        hidden, residual = self._run(self._stacked, self._tap_layer, stack(positions), hidden, residual, read)
        self._asked.row_X = None
        hiddens = hidden.split(sizes)
        residuals = (None,) * len(sizes) if residual is None else residual.split(sizes)
        hidden, residual = hiddens[0], residuals[0]
        after = self._tap_layer + len(self._stacked)
        hidden, residual = self._run(target.layers[after:], after, positions, hidden, residual, read)
        ends = [(hidden, residual), *zip(hiddens[1:], residuals[1:], strict=True)]
        finals = [target.norm(h) if r is None else target.norm(h, r)[0] for h, r in ends]
        final = torch.cat(finals, dim=-1 if row_M is None else 0)
        return (final, read.all()) if read.layers else final

    def _run(
        self,
        layers: Iterable[nn.Module],
        first: int,
        positions: Tensor,
        hidden: Tensor,
        residual: Tensor | None,
        read: Read,
    ) -> tuple[Tensor, Tensor | None]:
        """Some layers in a row, of which one is the target's number `first`."""
        if self._is_hugging_faces:
            return self._run_hugging_faces(layers, first, positions[None], hidden[None]), None
        for number, layer in enumerate(layers, first):
            if self._has_residual:
                hidden, residual = layer(positions, hidden, residual)
            else:
                hidden = layer(positions, hidden)
            read.before(number + 1, hidden, residual)
        return hidden, residual

    def _run_hugging_faces(self, layers: Iterable[nn.Module], first: int, positions: Tensor, hidden: Tensor) -> Tensor:
        rotary = _rotary(self._target[0])
        angles = {kind: rotary(hidden, positions, kind) for kind in dict.fromkeys(self._kinds)}
        shared = None if self._kinds else rotary(hidden, positions)
        for number, layer in enumerate(layers, first):
            embedded = angles[self._kinds[number]] if self._kinds else shared
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=embedded)
        return hidden[0]


class Read:
    """The target's hidden states that a drafter reads, as they are before some of its layers.

    The target's T rows are the first of all, also where layers are stacked.
    """

    def __init__(self, num_rows: int, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.hidden: list[Tensor] = []
        self._num_rows = num_rows

    def before(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Layer `layer`, counted from 0, is next; the number of layers means that none is."""
        if layer in self.layers:
            own = hidden[: self._num_rows]
            self.hidden.append(own if residual is None else own + residual[: self._num_rows])

    def all(self) -> list[Tensor]:
        """(T, H) of each layer.

        Raises: RuntimeError if one of the layers did not come.
        """
        if len(self.hidden) != len(self.layers):
            raise RuntimeError(f"a drafter reads layers {self.layers}, of which only {len(self.hidden)} ran")
        return self.hidden


def _rotary(target: nn.Module) -> nn.Module:
    return cast("nn.Module", target.rotary_emb)


def _stacked(target: nn.Module, branches: Sequence[nn.Module], attention: type[_Attention]) -> nn.Module:
    """`target` over stacked rows: itself where it treats rows alike, else a copy around what does not."""
    if all(branch is target for branch in branches):  # experts
        return target
    if isinstance(target, Attention):
        return attention((target, *branches))
    if isinstance(target, LinearBase | BaseLinearLayerWithLoRA):
        base = _base(target)
        for branch in branches:
            share_weights(_base(branch), base)  # as vLLM left them after loading, packed for a CPU
        linear: Any = copy.copy(base)
        linear.quant_method = _StackedMethod(linear.quant_method, (target, *branches))
        return linear
    if not list(target.children()):
        return target
    stacked = copy.copy(target)
    stacked._modules = {
        name: _stacked(child, [branch.get_submodule(name) for branch in branches], attention)
        for name, child in target.named_children()
    }
    if isinstance(own := vars(stacked).get("forward"), MethodType):  # one that the Transformers backend has rewritten
        stacked.forward = MethodType(own.__func__, stacked)
    return stacked


def _cut_to_asked(layer: nn.Module, asked: _Asked) -> None:
    """Let a stacked layer run what is behind its attention over the asked rows alone: what multiplies by weights."""
    attention: Any = layer.self_attn
    attention.attn.asked_only = True
    attention._modules["o_proj"] = _AskedRows(attention.o_proj, asked)
    for name, child in layer.named_children():
        if child is not attention and list(child.children()):  # the MLP or the experts; a norm has no children
            layer._modules[name] = _AskedRows(child, asked)


class _Asked:
    """Which rows of the stacked are asked for, while a step runs: a layer hands nothing to what is in it."""

    row_X: Tensor | None = None


class _AskedRows(nn.Module):
    """A module over the rows that are asked for; the others are NaN."""

    def __init__(self, module: nn.Module, asked: _Asked) -> None:
        super().__init__()
        self._module = module
        self._asked = asked

    def forward(self, x: Tensor) -> Any:
        row_X = self._asked.row_X
        assert row_X is not None
        found = self._module(x.index_select(-2, row_X))
        y: Tensor = found[0] if isinstance(found, tuple) else found  # vLLM's linear maps return their bias, too
        whole = y.new_full((*x.shape[:-1], y.shape[-1]), torch.nan).index_copy(-2, row_X, y)
        return (whole, *found[1:]) if isinstance(found, tuple) else whole


def share_weights(own: nn.Module, shared: nn.Module) -> None:
    """Give a linear map the very parameters of another, and none besides."""
    parameters = dict(shared.named_parameters(recurse=False))
    for name in own._parameters.keys() - parameters.keys():
        delattr(own, name)
    for name, parameter in parameters.items():
        setattr(own, name, parameter)


def _base(linear: nn.Module) -> nn.Module:
    return cast("nn.Module", getattr(linear, "base_layer", linear))


class NeverAlone:
    """Placeholder for the quant_method of a branch's linear map: nothing is packed for it, and nothing runs it."""


class _Attention(nn.Module):
    """The target's attention and each branch's, over its own rows."""

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self._attentions = tuple(attentions)


class _StackedAttention(_Attention):
    """Where every part has as many rows. vLLM finds its own operations in what is compiled, and splits it there."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (x.chunk(len(self._attentions)) for x in (query, key, value))
        each = zip(self._attentions, *parts, strict=True)
        return torch.cat([attention(q, k, v) for attention, q, k, v in each])


class _CutAttention(_Attention):
    """Where the parts of a step tell which rows are whose."""

    asked_only = False  # whether it is the last, of which only the rows are used that are asked for

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        super().__init__(attentions)
        self._layers = ",".join(cast("str", attention.layer_name) for attention in attentions)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return cast("Tensor", torch.ops.vllm.unlearngate_attend(query, key, value, self._layers, self.asked_only))


def _attend(query: Tensor, key: Tensor, value: Tensor, layers: str, asked_only: bool) -> Tensor:
    if (parts := parts_of_step()) is None:
        raise RuntimeError("a step runs whose parts nobody has said")
    names = layers.split(",")
    if not asked_only or parts.asked_R is None:
        each = zip(*(x.split(parts.sizes) for x in (query, key, value)), strict=True)
        return torch.cat([attend_part(layer, *qkv) for layer, qkv in zip(names, each, strict=False)])
    # Each part's keys and values are all written; its metadata know which queries are left (`compat.run_in_parts`).
    queries = query.index_select(0, parts.asked_X).split(parts.asked_sizes)
    each = zip(queries, key.split(parts.sizes), value.split(parts.sizes), strict=True)
    found = torch.cat([attend_part(layer, *qkv) for layer, qkv in zip(names, each, strict=False)])
    return query.new_full(query.shape, torch.nan).index_copy_(0, parts.asked_X, found)


direct_register_custom_op(
    "unlearngate_attend", _attend, fake_impl=lambda query, *_: query.new_empty(query.shape), dispatch_key="CPU"
)


class _StackedMethod:
    """A linear map's quant_method, which then adds LoRA to the rows of each part that has it."""

    def __init__(self, method: Any, linears: Sequence[nn.Module]) -> None:
        self._method = method
        self._linears = tuple(linears)
        self._any_adapted = any(isinstance(linear, BaseLinearLayerWithLoRA) for linear in linears)
        self._joined = joined_numbers(linears)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dim() == 3:  # Hugging Face's batch of one
            return self.apply(layer, x[0], bias)[None]
        y: Tensor = self._method.apply(layer, x, bias)
        if self._joined:
            add_joined(y, x, self._joined)
            return y
        if not self._any_adapted:
            return y
        count = len(self._linears)
        parts = zip(self._linears, x.chunk(count), y.chunk(count), strict=True)
        return torch.cat([_adapted(linear, x_rows, y_rows) for linear, x_rows, y_rows in parts])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


def _adapted(linear: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`y` with the linear map's LoRA, if it has one."""
    if not isinstance(linear, BaseLinearLayerWithLoRA):
        return y
    # Not in place: inductor (torch 2.13) miscompiles in-place changes of every part of a tensor but the last.
    return y + linear._apply_lora_to_output(x, torch.zeros_like(y))
