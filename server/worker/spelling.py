"""What the tokens of a vocabulary write, as letters: a token may begin or end within a character of UTF-8.

Special tokens write nothing: a client is not shown them, so the letters before and behind are neighbours.

Vocabularies with byte fallback (SentencePiece's) have a token for each byte beside their words. Hugging Face shows such
bytes only if all in a row are UTF-8: after a byte that breaks a character the others of the row are not letters either.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from unlearngate.passages import letters

BROKEN = b"\xff"  # unfinished, and nothing finishes it: in a row of bytes that is not UTF-8
_ASCII = re.compile(rb"[\x00-\x7f]*")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

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

    ENDS_ESCAPES: bytes = b""  # what tokens begin with that may write something else behind an unfinished escape

    def __init__(self, tokens: Sequence[bytes], single_bytes: Collection[int] = ()) -> None:
        """Read the vocabulary.

        Args:
            tokens: the bytes that each token writes; none for one that a client is not shown.
            single_bytes: with byte fallback, the tokens of bytes.
        """
        self.tokens = tokens
        self.single_bytes = frozenset(single_bytes)
        self._whole: list[str | None] = []  # a token's letters, if it begins and ends with a character
        self._of_word: dict[str, list[int]] = {}
        # Tokens that may write something else behind what is unfinished, with the most letters they write where nothing
        # is, or a backslash; most letters first.
        self.joining: list[tuple[int, int]] = []
        self.joins_V = np.zeros(len(tokens), np.bool_)
        for token, written in enumerate(tokens):
            word, left = self._decode(b"", written)
            begins_within = bool(written) and 0x80 <= written[0] < 0xC0
            is_byte = token in self.single_bytes
            if begins_within or is_byte or (written and written[0] in self.ENDS_ESCAPES):
                behind = len(self._decode(b"\\", written)[0]) if self.ENDS_ESCAPES else 0
                self.joining.append((max(len(word), behind), token))
                self.joins_V[token] = True
            whole = not left and not begins_within and not (is_byte and written[0] >= 0x80)
            self._whole.append(word if whole else None)
            if word:
                self._of_word.setdefault(word, []).append(token)
        self.longest = max(map(len, self._of_word), default=0)
        self.joining.sort(reverse=True)
        self.with_backslash = frozenset(token for token, written in enumerate(tokens) if b"\\" in written)
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
        single_bytes: list[int] = []
        if vocabulary.vocab_type == xgrammar.VocabType.BYTE_FALLBACK:
            names = tokenizer.convert_ids_to_tokens(range(min(vocab_size, len(tokenizer))))
            single_bytes = [token for token, name in enumerate(names) if name and _BYTE.fullmatch(name)]
        return cls(tokens, single_bytes)

    def read(self, pending: bytes, token: int) -> tuple[str, bytes]:
        """The letters of a token behind an unfinished character, and what is unfinished then."""
        if not pending and (whole := self._whole[token]) is not None:
            return whole, b""
        written = self.tokens[token]
        if not written:
            return "", pending
        if self.single_bytes:
            if token not in self.single_bytes:  # whole characters
                pending = _ASCII.match(pending)[0]  # type: ignore[index]
            else:
                try:
                    codecs.utf_8_decode(pending + written, "strict", False)
                except UnicodeDecodeError:
                    return "", BROKEN
        return self._decode(pending, written)

    def _decode(self, pending: bytes, written: bytes) -> tuple[str, bytes]:
        return read(pending, written)

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
    """The most letters that a character with this beginning has, or a bound; 0 for a backslash."""
    if pending in (BROKEN, b"\\"):
        return 0
    if pending[0] < 0x80:  # an escape, of any character
        return 15
    if pending[0] >= 0xF0:  # a quarter of a million characters, none of which has more
        return 3
    missing = (2 if pending[0] < 0xE0 else 3) - len(pending)
    most = 0
    for number in range(64**missing):
        rest = bytes(0x80 | number >> 6 * place & 0x3F for place in reversed(range(missing)))
        most = max(most, len(read(pending, rest)[0]))
    return most
