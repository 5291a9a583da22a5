"""Which tokens would complete a run of a withheld text: docs/verbatim.md has the rule and the promise.

A sequence is followed letter by letter. A set's *run* is seed_letters - 1 and the number of windows in a row, ending at
the last letter, that are in the set; 0 if the last window is not. A token is forbidden if after one of its letters a
run would have the set's `letters`. If so many letters of a text came out, all their windows would be in the set.

A token whose run begins within it must write letters - seed_letters + 1 letters of the text, which is at least
seed_letters (manifest.Windows). So it contains a whole window of its own, and a set's tokens of that kind are found
once, when it is loaded. All other tokens only matter while a run is there, and are found by walking through the
vocabulary's letters, window by window.

Shape legend: S sets, L letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from unlearngate.manifest import Windows
from unlearngate.passages import hash_each, hash_windows
from unlearngate.server.worker.spelling import Spelling, Words, most_letters

if TYPE_CHECKING:
    from unlearngate.kernels.numba_seeds import SeedIndex  # numba: only once a worker runs

_PART = 64  # tokens that are read back at first to find where a sequence stands


class WithheldSet:
    """One set in a vocabulary."""

    def __init__(self, windows: Windows, index: SeedIndex, spelling: Spelling) -> None:
        self.windows, self.index = windows, index
        self.letters, self.seed_letters = windows.letters, windows.seed_letters
        self._spelling = spelling
        long_words = spelling.words(self.letters - self.seed_letters + 1).words
        self.long_words = [
            word for word in long_words if self.index.contains(hash_windows(word, self.seed_letters)).any()
        ]

    def completing(self, tail: str, windows: int) -> list[np.ndarray]:
        """The tokens, by their whole characters, that would complete a run.

        Args:
            tail: the last letters, at least seed_letters - 1 if there are as many.
            windows: in a row, ending at the last letter.
        """
        found = [self._spelling.tokens_of(word) for word in self.long_words if self.completes(tail, windows, word)]
        need = max(1, self.letters - self.seed_letters + 1 - windows)
        if windows and need <= self._spelling.longest:
            words = self._spelling.words(need)
            self._walk(words, 0, len(words.words), self._before(tail), need, 0, found)
        return found

    def completes(self, tail: str, windows: int, word: str) -> bool:
        """Whether these letters would complete a run: the rule itself."""
        text = self._before(tail) + word
        in_set = self.index.contains(hash_windows(text, self.seed_letters)).tolist()
        for one in in_set:
            windows = (windows + 1) * one
            if windows and windows + self.seed_letters - 1 >= self.letters:
                return True
        return False

    def goes_on(self, tail: str, letter: str) -> bool:
        """Whether the window that this letter ends is in the set."""
        return bool(self.index.contains(hash_windows(self._before(tail) + letter, self.seed_letters)).any())

    def _before(self, tail: str) -> str:
        return tail[-(self.seed_letters - 1) :]

    def _walk(
        self, words: Words, low: int, high: int, tail: str, need: int, depth: int, found: list[np.ndarray]
    ) -> None:
        """Add the tokens of the words whose next letters, up to `need`, all go on with the run."""
        nodes = list(words.next_letters(low, high, depth)) if depth else words.first
        in_set = self.index.contains(hash_each(tail + letter for letter, _, _ in nodes)).tolist()
        for (letter, begin, end), goes_on in zip(nodes, in_set, strict=True):
            if goes_on and depth + 1 == need:
                found.append(words.tokens(begin, end))
            elif goes_on:
                self._walk(words, begin, end, tail[1:] + letter, need, depth + 1, found)


@dataclass(slots=True)
class Trail:
    """Where a sequence stands: what its next token is judged by."""

    windows_S: np.ndarray  # int64: of each set, its windows in a row; at most as many as make a run
    num_tokens: int = -1  # that were followed; -1: it was not begun
    last_token: int = -1
    tail: str = ""
    pending: bytes = b""

    def copy(self) -> Trail:
        """One that goes on alone."""
        return replace(self, windows_S=self.windows_S.copy())


class Withheld:
    """The sets that are in force in a sequence."""

    def __init__(self, sets: Sequence[WithheldSet], spelling: Spelling) -> None:
        self.sets, self._spelling = sets, spelling
        self._by_length: dict[int, list[int]] = {}
        for number, one in enumerate(sets):
            self._by_length.setdefault(one.seed_letters, []).append(number)
        self._most_S = np.array([one.letters - one.seed_letters + 1 for one in sets])
        self._with_long_words = [number for number, one in enumerate(sets) if one.long_words]
        self._kept = max(self._by_length) - 1
        self._longest = max(one.letters for one in sets)

    def begin(self) -> Trail:
        """The trail of a sequence of which nothing was read yet."""
        return Trail(np.zeros(len(self.sets), np.int64))

    def follow(
        self,
        trails: Sequence[Trail],
        lengths: Sequence[int],
        last_tokens: Sequence[int],
        read_back: Callable[[int, int, int], Sequence[int]],
    ) -> list[int]:
        """Bring trails up to their sequences: by one token, or from their last letters if they do not fit.

        Args:
            trails: of sequences with these sets.
            lengths: the tokens that each has, with its prompt.
            last_tokens: the last of them.
            read_back: of (number of the trail, begin, end), tokens of its sequence.

        Returns: the numbers of those that have a token that is none, and so cannot be followed.
        """
        written, lost = [], []
        for number, (trail, length, last) in enumerate(zip(trails, lengths, last_tokens, strict=True)):
            if length == trail.num_tokens and last == trail.last_token:
                written.append("")
                continue
            try:
                if length == trail.num_tokens + 1 and trail.num_tokens >= 0:
                    text, trail.pending = self._read(trail.pending, [last])
                else:
                    trail.windows_S[:], trail.tail = 0, ""
                    text, trail.pending = self._read_back(length, partial(read_back, number))
                trail.num_tokens, trail.last_token = length, last
            except ValueError:
                text, trail.num_tokens = "", -1
                lost.append(number)
            written.append(text)
        self._advance(trails, written)
        return lost

    def completing(self, trail: Trail) -> np.ndarray:
        """(K,) int64: the tokens that would complete a run; one may be there twice."""
        numbers = {*np.flatnonzero(trail.windows_S).tolist(), *self._with_long_words}
        found = [np.empty(0, np.int64)]
        for number in sorted(numbers):
            found += self.sets[number].completing(trail.tail, int(trail.windows_S[number]))
        tokens = np.concatenate(found)
        if not trail.pending:
            return tokens
        return np.concatenate([tokens[~self._spelling.joins_V[tokens]], np.array(self._joining(trail), np.int64)])

    def _joining(self, trail: Trail) -> list[int]:
        """The tokens that would go on with what is unfinished and complete a run."""
        missing_S = np.maximum(1, self._most_S - trail.windows_S)
        least, more = int(missing_S.min()), most_letters(trail.pending)
        found = []
        goes_on: dict[tuple[int, str], bool] = {}  # by set and letter
        for most, token in self._spelling.joining:
            if most + more < least:
                break
            word, _ = self._spelling.read(trail.pending, token)
            if len(word) >= least:
                for number in np.flatnonzero(missing_S <= len(word)).tolist():
                    one, key = self.sets[number], (number, word[0])
                    if key not in goes_on:
                        goes_on[key] = one.goes_on(trail.tail, word[0])
                    # Else the run would have to begin behind the first letter.
                    if goes_on[key] or len(word) > self._most_S[number]:
                        if one.completes(trail.tail, int(trail.windows_S[number]), word):
                            found.append(token)
        return found

    def _read(self, pending: bytes, tokens: Sequence[int]) -> tuple[str, bytes]:
        text = []
        for token in tokens:
            if not 0 <= token < len(self._spelling.tokens):
                raise ValueError(f"token {token} is none of the vocabulary's {len(self._spelling.tokens)}")
            word, pending = self._spelling.read(pending, token)
            text.append(word)
        return "".join(text), pending

    def _read_back(self, length: int, read: Callable[[int, int], Sequence[int]]) -> tuple[str, bytes]:
        """The last letters of a sequence, as many as a run has if there are as many, and what is unfinished."""
        part = _PART
        while True:
            begin = max(0, length - part)
            tokens = read(begin, length)
            text, pending = self._read(b"", tokens)
            # Whether a row of bytes shows anything depends on its beginning.
            if begin == 0 or (len(text) >= self._longest and tokens[0] not in self._spelling.single_bytes):
                return text[-self._longest :], pending
            part *= 4

    def _advance(self, trails: Sequence[Trail], written: Sequence[str]) -> None:
        """Move each trail on by the letters that were written."""
        for length, numbers in self._by_length.items():
            hashed = []
            for trail, text in zip(trails, written, strict=True):
                hashed.append(hash_windows(trail.tail[-(length - 1) :] + text, length) if text else _NONE)
            ends = np.cumsum([len(of_trail) for of_trail in hashed]).tolist()
            hashed_L = np.concatenate(hashed)
            if not len(hashed_L):
                continue
            found_SL = np.stack([self.sets[number].index.contains(hashed_L) for number in numbers])
            most_S = self._most_S[numbers]
            for trail, of_trail, end in zip(trails, hashed, ends, strict=True):
                windows_S = trail.windows_S[numbers]
                for letter in range(end - len(of_trail), end):
                    windows_S = (windows_S + 1) * found_SL[:, letter]
                trail.windows_S[numbers] = np.minimum(windows_S, most_S)
        for trail, text in zip(trails, written, strict=True):
            trail.tail = (trail.tail + text)[-self._kept :]


_NONE = np.empty(0, np.uint64)
