"""What a forget set says instead of an answer, as the target's tokens."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from unlearngate.errors import SentenceError
from unlearngate.target import load_tokenizer

LONGEST = 128  # tokens of a sentence, with the one that ends it


def encode_sentence(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of an answer that says this text and ends.

    Args:
        tokenizer: the target's, as Hugging Face loads it.
        text: what to say from an answer's first token on.

    Returns: token ids, at most `LONGEST`; the last one is the tokenizer's end-of-sequence.
    Raises: SentenceError if it is too long, the tokenizer has no end-of-sequence, or a special token is in the text.
    """
    if tokenizer.eos_token_id is None:
        raise SentenceError(f"{text!r} cannot be said: the target's tokenizer has no end-of-sequence token")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if special := set(ids) & set(tokenizer.all_special_ids):
        shown = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(sorted(special)))
        raise SentenceError(f"{text!r} cannot be said: the target's tokenizer makes special tokens of it ({shown})")
    if len(ids) >= LONGEST:
        raise SentenceError(
            f"{text!r} is {len(ids) + 1} of the target's tokens, with the one that ends it; at most {LONGEST} fit"
        )
    return (*ids, tokenizer.eos_token_id)


class Sentences:
    """Encodes sentences with a target's tokenizer, which is loaded for the first one; any thread may ask."""

    def __init__(self, target_folder: Path) -> None:
        self._folder = target_folder
        self._tokenizer: Any = None
        self._known: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def tokens(self, text: str) -> tuple[int, ...]:
        """As `encode_sentence`; each text is encoded once."""
        with self._lock:
            if text not in self._known:
                if self._tokenizer is None:
                    self._tokenizer = load_tokenizer(self._folder)
                self._known[text] = encode_sentence(self._tokenizer, text)
            return self._known[text]
