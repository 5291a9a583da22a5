"""Keeps sequences from saying withheld texts: loads the sets that plans name, follows the sequences, masks tokens.

A sequence with a backslash is read in two ways, as it stands and as JSON's strings are read; neither may hold a run.
A set that cannot be loaded, and a sequence that cannot be followed, end: nothing is served without what was asked for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from unlearngate.artefact import load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.kernels.pairs import CUT
from unlearngate.passages import PASSAGES_FILE, read_seeds
from unlearngate.server.contract.plan import Plan, VerbatimSet
from unlearngate.server.worker.json_spelling import JsonSpelling
from unlearngate.server.worker.sequences import Tokens
from unlearngate.server.worker.spelling import Spelling
from unlearngate.server.worker.withheld import Trail, Withheld, WithheldSet
from unlearngate.target import load_tokenizer

logger = logging.getLogger(__name__)

_KEPT_BYTES = 2 * 2**30  # of sets that no sequence has any more
_KEPT_COMBINATIONS = 64


@dataclass(slots=True)
class Reading:
    """Where a sequence stands: as it is read, and once it has a backslash also as JSON's strings are read."""

    trail: Trail
    escaped: Trail | None = None

    def copy(self) -> Reading:
        """One that goes on alone."""
        return Reading(self.trail.copy(), self.escaped and self.escaped.copy())


@dataclass(slots=True)
class Followed:
    """A sequence with sets of kind `verbatim`, and the readings of the rows of its last step.

    Of those the next step goes on with the one that has its tokens but the last: vLLM keeps the first drafts, or none.
    """

    withheld: Withheld
    readings: list[Reading]

    def reading(self, tokens: Tokens) -> Reading:
        """What a row goes on from: its sequence's last step, or behind a draft token the row before it."""
        if tokens.num_drafts:
            self.readings.append(self.readings[-1].copy())
        else:
            before = len(tokens) - 1
            fitting = (reading for reading in self.readings if reading.trail.num_tokens == before)
            self.readings = [next(fitting, self.readings[0])]
        return self.readings[-1]


class Verbatim:
    """The sets of one engine process."""

    def __init__(self, tokenizer_folder: Path, vocab_size: int, eos: int) -> None:
        """Load nothing yet: the vocabulary is read, in about a second, when the first plan names a set.

        Args:
            tokenizer_folder: the target's.
            vocab_size: V, the number of its logits.
            eos: the token that ends a sequence.
        """
        self._tokenizer_folder, self._vocab_size, self._eos = tokenizer_folder, vocab_size, eos
        self._sets: OrderedDict[str, WithheldSet] = OrderedDict()  # by digest, least recently used first
        self._combinations: OrderedDict[tuple[str, ...], Withheld] = OrderedDict()
        self._read_in_json: WeakKeyDictionary[Withheld, Withheld] = WeakKeyDictionary()

    def begin(self, plan: Plan) -> Followed | None:
        """What follows a sequence of this plan; None if it has no such set.

        Raises: ValueError if a set cannot be loaded.
        """
        if not plan.verbatim:
            return None
        digests = tuple(one.digest for one in plan.verbatim)
        if digests not in self._combinations:
            sets = [self._load(one) for one in plan.verbatim]
            self._combinations[digests] = Withheld(sets, self._spelling)
            self._drop_unused()
        self._combinations.move_to_end(digests)
        withheld = self._combinations[digests]
        return Followed(withheld, [Reading(withheld.begin())])

    def forbid(self, logits: Tensor, rows: Sequence[tuple[int, Followed, Tokens]]) -> None:
        """Let no row sample a token that would complete a run, in place; if nothing is left, the row can only end.

        Args:
            logits: (R, V), composed.
            rows: number, state and tokens of each row that has such sets and is not discarded.
        """
        for count in sorted({tokens.num_drafts for _, _, tokens in rows}):
            self._forbid_each(logits, [row for row in rows if row[2].num_drafts == count])

    def _forbid_each(self, logits: Tensor, rows: Sequence[tuple[int, Followed, Tokens]]) -> None:
        """Do it for one row of each sequence, whose rows before it are done."""
        readings = [followed.reading(tokens) for _, followed, tokens in rows]
        for reading, (_, followed, tokens) in zip(readings, rows, strict=True):
            if reading.escaped is None and self._met_escapes(reading.trail, tokens):
                reading.escaped = followed.withheld.begin()
        lost: set[int] = set()
        for escaped in (False, True):
            together: dict[int, list[int]] = {}
            for place, (reading, (_, followed, _)) in enumerate(zip(readings, rows, strict=True)):
                if not escaped or reading.escaped:
                    together.setdefault(id(followed.withheld), []).append(place)
            for places in together.values():
                lost |= self._forbid_alike(logits, rows, readings, places, escaped=escaped)
        for place in lost:
            logger.error("a sequence has a token that is none and cannot be followed: it is ended")
            self._end(logits[rows[place][0]])

    def _forbid_alike(
        self,
        logits: Tensor,
        rows: Sequence[tuple[int, Followed, Tokens]],
        readings: Sequence[Reading],
        places: Sequence[int],
        *,
        escaped: bool,
    ) -> set[int]:
        """Do it for rows of the same sets, in one of the two ways to read them; returns those that are lost."""
        here = [rows[place] for place in places]
        withheld = self._in_json(here[0][1].withheld) if escaped else here[0][1].withheld
        read = [readings[place] for place in places]
        trails = [reading.escaped if escaped and reading.escaped else reading.trail for reading in read]
        lengths, last = [len(tokens) for _, _, tokens in here], [tokens.last for _, _, tokens in here]
        lost = withheld.follow(trails, lengths, last, partial(_read, here))
        for number, ((row, _, _), trail) in enumerate(zip(here, trails, strict=True)):
            if number not in lost and len(tokens_K := withheld.completing(trail)):
                self._mask(logits[row], tokens_K)
        return {places[number] for number in lost}

    def _met_escapes(self, trail: Trail, tokens: Tokens) -> bool:
        """Whether a sequence has a backslash, as far as that is not known yet."""
        if trail.num_tokens == len(tokens) - 1:
            return tokens.last in self._spelling.with_backslash
        return not self._spelling.with_backslash.isdisjoint(tokens.read(0, len(tokens)))

    def _mask(self, logits_V: Tensor, tokens_K: np.ndarray) -> None:
        """Take tokens from a row; on a GPU without a host sync."""
        logits_V[torch.from_numpy(tokens_K).to(logits_V.device)] = -torch.inf
        # What a composition cut is not possible either: it would be drawn evenly, and be noise.
        none_left = ~(logits_V > CUT / 2).any()
        logits_V.masked_fill_(none_left, -torch.inf)
        logits_V[self._eos].masked_fill_(none_left, 0.0)

    def _end(self, logits_V: Tensor) -> None:
        logits_V.fill_(-torch.inf)
        logits_V[self._eos] = 0.0

    def _load(self, named: VerbatimSet) -> WithheldSet:
        if named.digest not in self._sets:
            from unlearngate.kernels.numba_seeds import SeedIndex  # vLLM stumbles over numba when it starts a worker

            try:
                forget_set = load_forget_set(Path(named.folder))
                windows = forget_set.manifest.windows
                if forget_set.digest != named.digest or windows is None:
                    raise ArtefactError(forget_set.folder, "was replaced after the request was decided")
                seeds = read_seeds(forget_set.folder / PASSAGES_FILE, windows)
                index = SeedIndex(seeds, windows.salt_number)
                self._sets[named.digest] = WithheldSet(windows, index, self._spelling)
            except ArtefactError as error:
                raise ValueError(error.message) from error
        self._sets.move_to_end(named.digest)
        return self._sets[named.digest]

    def _drop_unused(self) -> None:
        """Forget what was used longest ago; sequences that run keep theirs."""
        while len(self._combinations) > _KEPT_COMBINATIONS:
            self._combinations.popitem(last=False)
        while len(self._sets) > 1 and sum(one.index.size_bytes for one in self._sets.values()) > _KEPT_BYTES:
            self._sets.popitem(last=False)

    def _in_json(self, withheld: Withheld) -> Withheld:
        """The same sets, for sequences that are read as JSON's strings are."""
        if withheld not in self._read_in_json:
            sets = [WithheldSet(one.windows, one.index, self._json_spelling) for one in withheld.sets]
            self._read_in_json[withheld] = Withheld(sets, self._json_spelling)
        return self._read_in_json[withheld]

    @cached_property
    def _json_spelling(self) -> JsonSpelling:
        return JsonSpelling(self._spelling.tokens, self._spelling.single_bytes)

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling.of(load_tokenizer(self._tokenizer_folder), self._vocab_size)


def _read(rows: Sequence[tuple[int, Followed, Tokens]], number: int, begin: int, end: int) -> Sequence[int]:
    return rows[number][2].read(begin, end)
