"""What the tokens of a vocabulary write, as letters: a token may begin or end within a character of UTF-8.

Special tokens write nothing: a client is not shown them, so the letters before and behind are neighbours.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from unlearngate.letters import letters

Node = tuple[str, int, int]  # a letter, and the words from here to there that have it next


class Words(NamedTuple):
    """All different words of at least so many letters, sorted; the tokens of word i are ids[begin[i] : begin[i + 1]].

    A word is the letters of the whole characters in a token.
    """

    words: list[str]
    begin: list[int]
    ids: np.ndarray  # int64
    first: list[Node]

    def next_letters(self, low: int, high: int, depth: int) -> Iterator[Node]:
        """The letters at `depth` of these words, which are alike before it and longer."""
        while low < high:
            word = self.words[low]
            end = bisect_left(self.words, word[:depth] + chr(ord(word[depth]) + 1), low, high)
            yield word[depth], low, end
            low = end

    def tokens(self, low: int, high: int) -> np.ndarray:
        """(K,) int64: the tokens of these words."""
        return self.ids[self.begin[low] : self.begin[high]]


class Spelling:
    """What each token writes, and which tokens write a word."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """Read the vocabulary.

        Args:
            tokens: the bytes that each token writes; none for one that a client is not shown.
        """
        self.tokens = tokens
        self._whole: list[str | None] = []  # a token's letters, if it begins and ends with a character
        self._of_word: dict[str, list[int]] = {}
        self.joining: list[int] = []  # tokens that begin within a character
        for token, written in enumerate(tokens):
            word, left = read(b"", written)
            joins = bool(written) and 0x80 <= written[0] < 0xC0
            if joins:
                self.joining.append(token)
            self._whole.append(None if left or joins else word)
            if word:
                self._of_word.setdefault(word, []).append(token)
        self.longest = max(map(len, self._of_word), default=0)
        self.longest_joining = max((len(read(b"", tokens[token])[0]) for token in self.joining), default=0)
        self._words: dict[int, Words] = {}

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int) -> Spelling:
        """The spelling of a Hugging Face tokenizer's tokens, for a model with so many logits."""
        import xgrammar

        vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        tokens = [bytes(token) for token in vocabulary.decoded_vocab]
        tokens += [b""] * (vocab_size - len(tokens))
        # xgrammar knows a special token by its text alone; the tokenizer says which ones it leaves out.
        shown = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if not added.special}
        hidden = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        for token in {*shown, *hidden, *tokenizer.all_special_ids} & set(range(vocab_size)):
            tokens[token] = shown.get(token, "").encode()
        return cls(tokens)

    def read(self, pending: bytes, token: int) -> tuple[str, bytes]:
        """As the function `read`, of a token."""
        if not pending and (whole := self._whole[token]) is not None:
            return whole, b""
        return read(pending, self.tokens[token])

    def words(self, at_least: int) -> Words:
        """The words of at least so many letters, 1 or more; each number's are kept."""
        if at_least not in self._words:
            words = sorted(word for word in self._of_word if len(word) >= at_least)
            ids = [self._of_word[word] for word in words]
            begin = [0, *np.cumsum([len(of_word) for of_word in ids]).tolist()]
            made = Words(words, begin, np.array([token for of_word in ids for token in of_word], np.int64), [])
            made.first.extend(made.next_letters(0, len(words), 0))
            self._words[at_least] = made
        return self._words[at_least]

    def tokens_of(self, word: str) -> np.ndarray:
        """(K,) int64: the tokens that write these letters."""
        return np.array(self._of_word[word], np.int64)


def read(pending: bytes, written: bytes) -> tuple[str, bytes]:
    """The letters of what is written behind an unfinished character, and what is unfinished then.

    Bytes that finish no character are no letters.
    """
    text, used = codecs.utf_8_decode(pending + written, "ignore", False)
    return letters(text), (pending + written)[used:]


@cache
def most_letters(pending: bytes) -> int:
    """The most letters that a character with this beginning has."""
    first = pending[0]
    missing = (2 if first < 0xE0 else 3 if first < 0xF0 else 4) - len(pending)
    most = 0
    for number in range(64**missing):
        rest = bytes(0x80 | number >> 6 * place & 0x3F for place in reversed(range(missing)))
        most = max(most, len(read(pending, rest)[0]))
    return most
