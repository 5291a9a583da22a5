"""The served model: the untouched target and S assistant branches, run over the same scheduled tokens.

    forward         -> [target | assistant_a | assistant_b] hidden, (T, (1 + k) * H), of the k branches that are needed
    compute_logits  -> the target's logits, (R, V), and in the same matmul the assistants', for the logits processor

An assistant is m of the target's layers, its embeddings, final norm and head, all the same tensors, plus LoRA on the
branch only: a forget set is an adapter. The layers are the target's first, as in ULD (arXiv:2406.08607, section 3), or
those from a tap layer j on. Such a branch continues from the target's hidden states, so the first j layers run once.
Each branch has its own modules, so LoRA of a set of kind `undial`, on the target's modules, changes no assistant. The
branches run in lockstep with the target (`lockstep`).

A batch without any adapter does not run the branches. vLLM records CUDA graphs with and without LoRA separately, and
this choice with them. On a CPU's V1 runner, once a set has been composed, a branch runs over the requests that have a
set on it, and no others: their hidden states in it are NaN, which the composition ends a request for.

So a branch's KV holds nothing for other requests. None with a set can read it: vLLM's prefix cache is keyed by the
adapter, all of whose requests have the same branches.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.interfaces import SupportsEagle3, SupportsLoRA
from vllm.model_executor.models.utils import init_vllm_registered_model

from unlearngate.families import FAMILIES
from unlearngate.server.contract.branches import CONFIG_FIELD, BranchOptions
from unlearngate.server.contract.refusals import refuse_unsupported
from unlearngate.server.worker.batch import Parts
from unlearngate.server.worker.compat import (
    adapts_a_row,
    compile_on_a_cpu,
    count_ranks_at_once,
    forget_experts,
    group_cpu_lora,
    load_compiled_code,
    remember_attention_of_steps,
    run_in_parts,
    score_prompts_by,
    show_drafters_the_target,
    starts_of_requests,
    undo_discarded_draws,
    with_plain_experts,
)
from unlearngate.server.worker.cpu_lora import join_slices
from unlearngate.server.worker.lockstep import Lockstep, NeverAlone, share_weights
from unlearngate.server.worker.prompts import PROMPT_HEAD

_loaded: weakref.ref[UnlearningForCausalLM] | None = None


def loaded_model() -> UnlearningForCausalLM:
    """The model of this process's engine.

    Raises: RuntimeError if none was built: the logits processor then runs over some other model.
    """
    model = _loaded() if _loaded is not None else None
    if model is None:
        raise RuntimeError("the composing logits processor is active, but no UnlearningForCausalLM is loaded")
    return model


class AssistantLogits(NamedTuple):
    """The assistants' logits in a step of R rows: of the rows `chosen` (N,), or of all S * R, branch by branch.

    own_RV: the target's logits as they were made, if they may change before they are composed.
    """

    num_rows: int
    chosen: Tensor | None
    logits: Tensor
    own_RV: Tensor | None = None


class _HeadRows(NamedTuple):
    """Which of (R, copies, H) hidden states the head is to multiply: the target's R, then N of its assistants'."""

    num_rows: int
    copies: int
    chosen: Tensor | None
    row_X: Tensor  # (R + N,) int64
    copy_X: Tensor

    @classmethod
    def of(cls, num_rows: int, copies: int, chosen: Tensor | None, device: torch.device) -> _HeadRows:
        """For the `chosen` of the assistants' rows, or all."""
        place_N = torch.arange((copies - 1) * num_rows, device=device) if chosen is None else chosen
        row_R = torch.arange(num_rows, device=device)
        row_X = torch.cat([row_R, place_N % num_rows])
        return cls(num_rows, copies, chosen, row_X, torch.cat([0 * row_R, place_N // num_rows + 1]))

    def are_of(self, num_rows: int, copies: int, chosen: Tensor | None) -> bool:
        """Whether these are the rows; in a batch they often stay the same for many steps."""
        return (self.num_rows, self.copies) == (num_rows, copies) and self.chosen is chosen


class Composer(Protocol):
    """What the logits processor knows of a batch before it runs."""

    def branches(self, num_requests: int) -> list[int]:
        """How many branches, from the first on, each request of the batch needs."""

    def scored(self, num_requests: int) -> list[bool]:
        """Whether each request of the batch asked for its prompt's log-probabilities."""

    def places(self, num_rows: int) -> Tensor:
        """(N,) int64: the assistants' rows that will be composed, as places among all S * R, branch by branch."""


class UnlearningForCausalLM(nn.Module, SupportsLoRA, SupportsEagle3):
    """An out-of-tree vLLM model; `hf_config.unlearngate` holds its BranchOptions."""

    embedding_modules: dict[str, str] = {}  # noqa: RUF012 - the name and form vLLM reads
    packed_modules_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        refuse_unsupported(vllm_config)
        group_cpu_lora()
        compile_on_a_cpu(vllm_config)
        load_compiled_code()
        undo_discarded_draws()
        count_ranks_at_once()
        score_prompts_by(PROMPT_HEAD, v2=vllm_config.use_v2_model_runner)
        if vllm_config.use_v2_model_runner:
            show_drafters_the_target()
        self.config = vllm_config.model_config.hf_config
        self.options = BranchOptions(**getattr(self.config, CONFIG_FIELD))
        self.hidden_size: int = self.config.hidden_size
        experts = FAMILIES[self.options.target_architecture].experts
        vllm_config = with_plain_experts(vllm_config) if experts else vllm_config
        self.target = init_vllm_registered_model(
            vllm_config, prefix=prefix, architectures=[self.options.target_architecture]
        )
        self.packed_modules_mapping = dict(self.target.packed_modules_mapping)
        branches = {name: self._build_branch(vllm_config, name) for name in self.options.branch_names()}
        for name, branch in branches.items():
            self.add_module(name, branch)
        config = copy.deepcopy(self.config)
        own_config = vllm_config.with_hf_config(config, architectures=config.architectures)
        # vLLM's cache of compiled code is keyed by the current configuration, whichever is passed.
        with set_model_tag("lockstep"), set_current_vllm_config(own_config):
            self._lockstep = Lockstep(
                vllm_config=own_config,
                target=self.target.model,
                branches=tuple(branches.values()),
                tap_layer=self.options.tap_layer,
            )
        if self._lockstep.cuts:
            remember_attention_of_steps()
        self._attention = [_attention_layers(part) for part in (self.target.model, *branches.values())]
        self._parts: tuple[Any, Parts] | None = None  # of the last step, and what they follow from
        self.composer: Composer | None = None  # without one, all branches run, and all their rows are wanted
        self.is_steered: Callable[[], bool] | None = None  # whether requests change the target's logits; unknown: yes
        self._assistant_logits: AssistantLogits | None = None
        self._head_rows: _HeadRows | None = None
        self._ran = False

        global _loaded
        _loaded = weakref.ref(self)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(T,) int -> (T, H): the target's embeddings, which the branches share."""
        return self.target.embed_input_ids(input_ids)

    def get_language_model(self) -> nn.Module:
        """The target, where vLLM looks for what a drafter shares and reads: embeddings, head, hidden states."""
        return self.target

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """(T,) scheduled tokens -> (T, (1 + k) * H) final hidden states of the target and k branches, in this order.

        With them, if a drafter reads some of the target's layers, (T, H) of each, the target's alone.
        """
        parts = self._parts_to_run(len(positions))
        if not self._ran:
            # vLLM compiles and measures memory with the first batch, so it does all that later ones may do.
            self._ran = True
            number = join_slices(self)
            self._lockstep.stack()
            modules: list[Any] = [self.target.model, self._lockstep]
            for module in modules:  # compiled code holds the number
                module.vllm_config.model_config.hf_config.unlearngate_lora = number
            if parts:
                self.target(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not parts:
            return self.target(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not self._lockstep.cuts:
            return self._lockstep(input_ids, positions, inputs_embeds)
        with run_in_parts(parts, self._attention):
            return parts.unstack(self._lockstep(input_ids, positions, inputs_embeds, parts.row_M, parts.asked_X))

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(R, (1 + k) * H) -> (R, V), the target's logits; keeps the assistants' for `take_assistant_logits`.

        One matmul with the head serves both, so that it is read once. (R, H) comes from a batch that ran without the
        branches; then none are kept. If a request of the batch changes the target's logits before they are composed, a
        copy of them is kept too.
        """
        self._assistant_logits = None
        num_rows, hidden_size = hidden_states.shape[0], self.hidden_size
        if hidden_states.shape[-1] == hidden_size:
            return self.target.compute_logits(hidden_states)
        chosen = self.composer.places(num_rows) if self.composer else None
        copies = hidden_states.shape[-1] // hidden_size
        if not (self._head_rows and self._head_rows.are_of(num_rows, copies, chosen)):
            self._head_rows = _HeadRows.of(num_rows, copies, chosen, hidden_states.device)
        hidden_RCH = hidden_states.view(num_rows, copies, hidden_size)
        logits = self.target.compute_logits(hidden_RCH[self._head_rows.row_X, self._head_rows.copy_X])
        if logits is None:  # another rank has them
            return None
        own_RV = logits[:num_rows].clone() if self.is_steered is None or self.is_steered() else None
        self._assistant_logits = AssistantLogits(num_rows, chosen, logits[num_rows:], own_RV)
        return logits[:num_rows]

    def take_assistant_logits(self) -> AssistantLogits:
        """The assistants' logits from the last `compute_logits`, once only.

        Raises: RuntimeError if there are none.
        """
        kept, self._assistant_logits = self._assistant_logits, None
        if kept is None:
            raise RuntimeError("logits are being composed that this step's compute_logits did not make")
        return kept

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the target's checkpoint; the branches hold the same parameters and have none of their own."""
        return {f"target.{name}" for name in self.target.load_weights(weights)}

    def _parts_to_run(self, num_rows: int) -> Parts | None:
        """Over which rows each branch runs in the batch that is about to run; None: the target is alone."""
        most = self.options.num_branches
        if not most:
            return None
        # One of a branch's linear maps; all LoRA in an engine has the same view of the batch.
        branch: Any = self._modules[self.options.branch_names()[0]]
        if self._ran and not adapts_a_row(branch.layers[0].self_attn.o_proj):
            return None
        starts = starts_of_requests(self._attention[0][0]) if self._lockstep.cuts and self.composer else None
        needed: list[int] = []
        scored: list[bool] = []
        if starts and self.composer:
            needed = [min(most, count) for count in self.composer.branches(len(starts) - 1)]
            if not max(needed):
                return None
            if starts[-1] >= len(starts):  # a request has more than one row
                scored = self.composer.scored(len(starts) - 1)
        if self._parts is None or self._parts[0] != (num_rows, needed, starts, scored):
            parts = Parts.whole(num_rows, most)
            if starts:
                parts = Parts.build(needed, starts, num_rows, scored=scored, cuts_target=self._lockstep.ends_target)
            self._parts = (num_rows, needed, starts, scored), parts
        return self._parts[1]

    def _build_branch(self, vllm_config: VllmConfig, name: str) -> nn.Module:
        config = copy.deepcopy(self.config)
        family = FAMILIES[self.options.target_architecture]
        layers = slice(self.options.tap_layer, self.options.tap_layer + self.options.num_layers)
        family.cut(config, layers)
        branch_config = vllm_config.with_hf_config(config, architectures=[self.options.target_architecture])
        branch_config.model_config.hf_text_config = branch_config.model_config.hf_config  # vLLM leaves the old one
        inner = self.target.model
        with set_model_tag(name), set_current_vllm_config(branch_config, prefix=name):
            # In vLLM's Transformers backend the inner model is Hugging Face's, which does not build itself.
            outer = type(self.target if isinstance(inner, PreTrainedModel) else inner)
            built = outer(vllm_config=branch_config, prefix=name)
            branch: nn.Module = built.model if isinstance(inner, PreTrainedModel) else built
        branch.embed_tokens, branch.norm = inner.embed_tokens, inner.norm
        experts = family.experts
        for own, shared in zip(cast("nn.ModuleList", branch.layers), inner.layers[layers], strict=True):
            _share_parameters(own, shared, experts.module if experts else None)
        if experts:
            forget_experts(vllm_config, f"{name}.")
        return branch


def _attention_layers(branch: Any) -> list[str]:
    """The names by which vLLM knows a branch's attention."""
    return [layer.self_attn.attn.layer_name for layer in branch.layers]


def _share_parameters(own: nn.Module, shared: nn.Module, whole: str | None) -> None:
    """Make every parameter of `own` the very object that `shared` has under the same name.

    A linear map may be quantised in `shared` alone: settings name the target's layers, and not a branch's. The module
    called `whole`, on which no LoRA sits, is shared as it is.
    """
    if whole:
        del own._modules[whole]
    for path, module in own.named_modules():
        if isinstance(module, LinearBase):
            module.quant_method = NeverAlone()
            share_weights(module, shared.get_submodule(path))
    for path, parameter in list(shared.named_parameters()):
        module_path, _, leaf = path.rpartition(".")
        if not whole or not path.startswith(f"{whole}."):
            setattr(own.get_submodule(module_path), leaf, parameter)
    if whole:
        own.add_module(whole, shared.get_submodule(whole))
    left = {p for p, v in own.named_parameters()} ^ {p for p, v in shared.named_parameters()}
    if left:
        raise RuntimeError(f"a branch's layer and the target's differ in parameters: {sorted(left)}")
