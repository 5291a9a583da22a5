"""The logits at a prompt's positions, composed with its request's sets in scoring mode (docs/composition.md).

vLLM computes the log-probabilities of prompts from the model's logits alone, on both of its runners. `compat` lets it
take these instead. They depend on nothing that the logits processor knows: the plan comes from the request's own token.

Shape legend: T positions of one prompt, C copies of the hidden states (target, then branches), H hidden, V vocab.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import Pairs
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, verify

if TYPE_CHECKING:
    from unlearngate.server.worker.model import UnlearningForCausalLM

logger = logging.getLogger(__name__)

MOST_LOGITS = 2**25  # of target and assistants that are made at a time: 128 MiB in fp32


def refuse_unscorable(params: Any) -> None:
    """Refuse log-probabilities of a prompt that could not be composed, or not at each of its positions.

    Args:
        params: vLLM's SamplingParams, as admitted.

    Raises: ValueError.
    """
    if getattr(params, "prompt_logprob_token_ids", None) is not None:
        raise ValueError("prompt_logprob_token_ids are the plain target's in vLLM, so they are not served")
    if params.prompt_logprobs is None:
        return
    plan_to_score(params)
    if not params.skip_reading_prefix_cache:
        raise ValueError("prompt_logprobs need skip_reading_prefix_cache: a position from the cache has no logits")


def plan_to_score(params: Any) -> Plan:
    """What is in force at the prompt's positions.

    Raises: ValueError without our signature, or if a set is in force that scoring is not defined for.
    """
    plan = verify((params.extra_args or {}).get(TOKEN_FIELD))
    if plan.verbatim:
        raise ValueError("prompt_logprobs are not served with sets of kind verbatim, which only forbid tokens")
    return plan


class PromptHead:
    """Turns the loaded model's hidden states into the logits that prompts' log-probabilities are made of."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(_model().config.vocab_size)

    def most_rows(self, width: int) -> int:
        """How many rows of hidden states of this width make MOST_LOGITS; at least one."""
        return max(1, MOST_LOGITS // (width // _model().hidden_size * self.vocab_size))

    def logits(self, hidden_TW: Tensor, params: Any) -> Tensor:
        """Compose a part of a prompt.

        Args:
            hidden_TW: (T, C * H) the model's output at the prompt's positions: the target's, then the branches' that
                ran. All that the request's sets need must have.
            params: the request's SamplingParams.

        Returns: (T, V) logits in fp32. A row that is not finite is all -inf, and its log-probabilities are NaN. Without
            our signature nothing but end-of-sequence is likely, as in the logits processor.
        Raises: RuntimeError if a branch did not run.
        """
        try:
            plan = plan_to_score(params)
        except ValueError as error:
            logger.error("a prompt reached the worker that cannot be scored (%s): it is not", error)
            logits_TV = torch.full((len(hidden_TW), self.vocab_size), -torch.inf, device=hidden_TW.device)
            logits_TV[:, first_eos(_model().config)] = 0.0
            return logits_TV
        num_rows, model = len(hidden_TW), _model()
        copies = [0, *(term.branch + 1 for term in plan.terms)]
        hidden_TCH = hidden_TW.unflatten(1, (-1, model.hidden_size))
        if max(copies) >= hidden_TCH.shape[1]:
            raise RuntimeError(f"a prompt's sets need {max(copies)} branches, and {hidden_TCH.shape[1] - 1} ran")
        # Copy by copy, as the pairs are: the target's rows, then each assistant's.
        logits_XV = model.target.compute_logits(hidden_TCH[:, copies].transpose(0, 1).flatten(0, 1))
        target_TV = logits_XV[:num_rows].float()
        if plan.terms:
            result = compose(target_TV, logits_XV[num_rows:], _pairs(plan, target_TV), mode="scoring")
            if result.bad_N.any():
                logger.error("logits at a prompt's positions are not finite: they have no log-probabilities")
        return target_TV


PROMPT_HEAD = PromptHead()


def first_eos(config: Any) -> int:
    """The end-of-sequence of a Hugging Face configuration that may name several, or none: then 0."""
    eos = config.eos_token_id
    return int(eos[0] if isinstance(eos, list) else eos or 0)


def _model() -> UnlearningForCausalLM:
    from unlearngate.server.worker.model import loaded_model

    return loaded_model()


def _pairs(plan: Plan, target_TV: Tensor) -> Pairs:
    """Each of the plan's terms in every row, term by term."""
    num_rows, vocab_size = target_TV.shape
    terms = [term for term in plan.terms for _ in range(num_rows)]
    return Pairs.build(
        [*range(num_rows)] * len(plan.terms),
        [term.weight for term in terms],
        [term.gate_nats for term in terms],
        [plan.keep_ratio] * num_rows,
        lowers_N=[term.lowers for term in terms],
        tail_ratio_R=[plan.tail_ratio] * num_rows,
        vocab_size=vocab_size,
        device=target_TV.device,
    )
