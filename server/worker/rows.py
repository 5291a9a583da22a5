"""The logits rows of a step on the V2 runner: which slot each belongs to, where it stands, and what it sees.

Under speculative decoding a request has one row for its last token and one behind each draft token. The row behind
drafts d_1 ... d_j samples what follows them, as if they were in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlearngate.server.worker.compat import LogitsContext
from unlearngate.server.worker.sequences import SlotTokens

if TYPE_CHECKING:
    from unlearngate.server.worker.batch import Batch


def slots_of_rows(ctx: LogitsContext, num_rows: int, rows_of_requests: np.ndarray | None) -> tuple[int, ...]:
    """(R,) the rows' slots; no device is waited for.

    Args:
        ctx: vLLM's, of the step.
        num_rows: R.
        rows_of_requests: (requests,) how many rows each has, if that may be more than one.

    Raises: RuntimeError if that does not give R rows.
    """
    slots: np.ndarray = ctx.idx_mapping_np
    if rows_of_requests is not None and len(rows_of_requests) == len(slots):
        slots = np.repeat(slots, rows_of_requests)
    if len(slots) != num_rows:
        raise RuntimeError(
            f"{num_rows} logits rows for {len(ctx.idx_mapping_np)} requests: whose they are is not known"
        )
    return tuple(slots.tolist())


def output_positions(states: Any, ctx: LogitsContext) -> Tensor:
    """(R,) int64, on the device: the output position that each row samples, below 0 while its prompt is not complete.

    A position is sampled again after a draft token before it was rejected.
    """
    visible_R, slot_R = ctx.pos + 1, ctx.expanded_idx_mapping
    complete_R = visible_R >= states.prefill_len.gpu[slot_R]
    return (visible_R - states.prompt_len.gpu[slot_R]).masked_fill(~complete_R, -1)


def tokens_of_rows(states: Any, ctx: LogitsContext, slots: Sequence[int]) -> list[SlotTokens | None]:
    """The tokens that each row sees; None of a row that vLLM discards. It waits for the device, once."""
    columns = (output_positions(states, ctx), ctx.pos, ctx.expanded_local_pos, ctx.input_ids)
    sequences: list[SlotTokens | None] = []
    drafts: tuple[int, ...] = ()
    numbers = torch.stack([column.long() for column in columns], 1).tolist()
    for slot, (position, place, behind, token) in zip(slots, numbers, strict=True):
        drafts = (*drafts, token) if behind else ()
        sequences.append(SlotTokens(states, slot, place + 1, token, drafts) if position >= 0 else None)
    return sequences


def acting_rows(batch: Batch, open_N: Tensor | None) -> Tensor:
    """(R,) bool, on the device: the rows whose logits a set has changed, or may have.

    Args:
        batch: of the step.
        open_N: bool, which pairs were open; None if it has no pairs.
    """
    if open_N is None:
        return batch.adapted_R
    return batch.adapted_R.long().index_add_(0, batch.pairs.row_N, open_N.long()) > 0


def without_drafts_behind(acting_R: Tensor, draft_R: Tensor) -> Tensor:
    """(R,) the draft token that each row is behind, -1 in place of one that the row before it must not accept.

    Args:
        acting_R: (R,) bool, rows that must accept none.
        draft_R: (R,) int, the tokens. A request's first row is behind no draft, and nobody reads what it has here.
    """
    behind_R = acting_R.roll(1)
    behind_R[:1] = False
    return draft_R.masked_fill(behind_R, -1)


def kept_rows(counts: np.ndarray, num_sampled: Tensor, forgets: np.ndarray) -> tuple[Tensor, Tensor]:
    """What verifying draft tokens has come to, on the device.

    A row behind a draft token is kept if that token was accepted.

    Args:
        counts: (requests,) the rows of each.
        num_sampled: (requests,) how many tokens of each are kept, on the device; 0 while its prompt is not complete.
        forgets: (R,) bool, rows of requests that have a set in force.

    Returns: (R,) bool, rows whose token is kept; (4,) int64, draft tokens without a set in force, with one, and those
        of them that were accepted, without and with.
    """
    request_R = np.repeat(np.arange(len(counts)), counts)
    behind_R = np.arange(len(request_R)) - (np.cumsum(counts) - counts)[request_R]
    host_3R = torch.from_numpy(np.stack([request_R, behind_R, forgets]))
    of_request_R, number_R, forgets_R = host_3R.to(num_sampled.device, non_blocking=True)
    kept_R = number_R < num_sampled[of_request_R]
    drafts_2R = (number_R > 0) & torch.stack([forgets_R == 0, forgets_R > 0])
    return kept_R, torch.cat([drafts_2R.sum(1), (drafts_2R & kept_R).sum(1)])
