"""Requests that contradict themselves: what they allow leaves a sequence no token to go on with.

Allowed tokens, bad words, `min_tokens` and a grammar each exclude tokens. Where together they exclude all, vLLM samples
something all the same, whose probability is no number. That token gives it away: one of them excludes it. A grammar's
engine ends the sequence then with an error; the others are looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_FIELDS = ("allowed_token_ids", "bad_words", "min_tokens")


class Constraints:
    """What a sequence's tokens must be, followed token by token."""

    def __init__(self, params: Any) -> None:
        """Read vLLM's parameters of the sequence, as the engine gets them."""
        self._has_grammar = params.structured_outputs is not None
        self._fields = [field for field in _FIELDS if getattr(params, field)]
        # A reasoning budget puts its end into the text, whatever else is asked.
        watched = bool(self._fields) and getattr(params, "thinking_token_budget", None) is None
        self._allowed = frozenset(params.allowed_token_ids) if watched and params.allowed_token_ids else None
        self._bad = [tuple(words) for words in params.bad_words_token_ids or ()] if watched else []
        # With a grammar vLLM lets a sequence end early rather than have no token.
        self._least = params.min_tokens if watched and not self._has_grammar else 0
        self._ends = frozenset(params.all_stop_token_ids)
        self._remembered = max(map(len, self._bad), default=1) - 1
        self._last: tuple[int, ...] = ()
        self._num_tokens = 0

    def contradiction(self, tokens: Sequence[int], *, cumulative: bool = False) -> str | None:
        """Why a sequence cannot go on, if one of its next tokens is excluded; None if none is.

        Args:
            tokens: the ids of those that were sampled since the last call, or of all if `cumulative`.
            cumulative: whether `tokens` has those of earlier calls.
        """
        for token in tokens[self._num_tokens :] if cumulative else tokens:
            if self._excludes(token):
                return self._sentence(self._num_tokens)
            self._last = (*self._last, token)[-self._remembered :] if self._remembered else ()
            self._num_tokens += 1
        return None

    def broken_off(self) -> str | None:
        """Why the engine ended the sequence with an error, if its grammar may be the reason."""
        # The last token is the one that the grammar rejected.
        return self._sentence(max(0, self._num_tokens - 1)) if self._has_grammar else None

    def _excludes(self, token: int) -> bool:
        if self._allowed is not None and token not in self._allowed:
            return True
        if self._num_tokens < self._least and token in self._ends:
            return True
        return any(word[-1] == token and self._follows(word[:-1]) for word in self._bad)

    def _follows(self, words: tuple[int, ...]) -> bool:
        return not words or self._last[-len(words) :] == words

    def _sentence(self, num_tokens: int) -> str:
        fields = [*self._fields, *(["the structured output"] if self._has_grammar else [])]
        what = " and ".join(filter(None, [", ".join(fields[:-1]), fields[-1]]))
        together = "contradict each other" if len(fields) > 1 else "cannot be kept to"
        return f"{what} {together}: after {num_tokens} of the answer's tokens none is left to go on with; ask for less"
