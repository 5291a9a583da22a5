"""The letters of a text, and the seeds of a `verbatim` set: a 32-bit hash of every window of its texts' letters.

Letters are what is left of a text without case, accents, spaces and punctuation. Two texts with the same letters read
the same. `letters(a + b) == letters(a) + letters(b)`, so a text can be followed while it is written, however it is cut
into tokens.

A window is `seed_letters` letters in a row. Its own hash is BLAKE2b's first 64 bits, the same for every set, so that a
server computes it once a letter. A set's seed is that number mixed with the set's salt and cut to 32 bits. Neighbouring
windows share no arithmetic: from seeds alone nothing can be chained back to the text. Whoever can guess a window can
test it, as with every check that works without asking anybody (docs/verbatim.md).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unlearngate.errors import ArtefactError
from unlearngate.manifest import Windows

PASSAGES_FILE = "passages.safetensors"
_TENSOR = "seeds"
_PERSON = b"unlearngate"  # BLAKE2b's personalisation: nobody else's hash of the same letters is ours
_PART = 2**16  # letters that are hashed at a time
_SHIFT, _HALF = np.uint64(33), np.uint64(32)
_FIRST, _SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # MurmurHash3's 64-bit finaliser


class _LettersOf(dict[int, str]):
    """The letters of a character, by its code point: none, one, or several as of a ligature."""

    def __missing__(self, code: int) -> str:
        # Twice: a compatibility character may become an upper-case one, as U+33AF becomes "rad/s2".
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", chr(code)).casefold())
        self[code] = found = "".join(one for one in plain if one.isalnum())
        return found


_LETTERS_OF = _LettersOf()


def letters(text: str) -> str:
    """The letters and digits of a text, each compatibility-decomposed (NFKD) and case-folded; all else is dropped.

    Chinese characters and kana are letters; marks that a script writes on or beside its letters are not.
    """
    return text.translate(_LETTERS_OF)


def hash_each(windows: Iterable[str]) -> np.ndarray:
    """(W,) uint64: the hashes of W windows."""
    hashed = (hashlib.blake2b(window.encode(), digest_size=8, person=_PERSON).digest() for window in windows)
    return np.frombuffer(b"".join(hashed), "<u8").astype(np.uint64, copy=False)


def hash_windows(text: str, length: int) -> np.ndarray:
    """(max(0, L - length + 1),) uint64: the hashes of the windows of L letters."""
    return hash_each(text[start : start + length] for start in range(len(text) - length + 1))


def mix(hashed: Any, salt: Any) -> Any:
    """A window's 32 bits in the set of this salt, as uint64; of one window (in numba) or of an array of them."""
    mixed = hashed ^ salt
    mixed = (mixed ^ (mixed >> _SHIFT)) * _FIRST
    mixed = (mixed ^ (mixed >> _SHIFT)) * _SECOND
    return mixed >> _HALF


def seeds_of(texts: Iterable[str], windows: Windows, advance: Callable[[int], object] | None = None) -> np.ndarray:
    """(N,) uint32, sorted, each once: the seeds of texts given as their letters; no window spans two texts.

    `advance` is called with the number of letters that were hashed since it was called last.
    """
    length, salt = windows.seed_letters, np.uint64(windows.salt_number)
    found = [np.empty(0, np.uint32)]
    for text in texts:
        for start in range(0, len(text), _PART):
            part = text[start : start + _PART + length - 1]
            found.append(mix(hash_windows(part, length), salt).astype(np.uint32))
            if advance:
                advance(min(_PART, len(text) - start))
    return np.unique(np.concatenate(found))


def write_seeds(path: Path, seeds: np.ndarray, windows: Windows) -> None:
    """Write the file; what the seeds mean is in its metadata too, so that a manifest cannot say something else."""
    path.write_bytes(save({_TENSOR: seeds}, metadata=_metadata(windows)))


def read_seeds(path: Path, windows: Windows) -> np.ndarray:
    """(N,) uint32, sorted, each once.

    Raises: ArtefactError if the file holds anything else, or seeds of another salt or window than the manifest's.
    """
    try:
        with safe_open(path, framework="numpy") as tensors:
            names, said = list(tensors.keys()), tensors.metadata() or {}
            if names != [_TENSOR]:
                raise ArtefactError(path, f"must hold one tensor, {_TENSOR!r}, got {names}")
            seeds: np.ndarray = tensors.get_tensor(_TENSOR)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ArtefactError(path, f"is not a safetensors file of seeds ({error})") from error
    for field, value in _metadata(windows).items():
        if said.get(field) != value:
            raise ArtefactError(
                path, f"was made with {field} {said.get(field)!r}, the manifest says {value!r}: nothing would match"
            )
    if seeds.dtype != np.uint32 or seeds.ndim != 1:
        raise ArtefactError(path, f"seeds must be uint32 of shape (N,), got {seeds.dtype} of shape {seeds.shape}")
    if not len(seeds):
        raise ArtefactError(path, "holds no seeds")
    if not bool(np.all(seeds[:-1] < seeds[1:])):
        raise ArtefactError(path, "its seeds are not sorted, or one is there twice")
    return seeds


def _metadata(windows: Windows) -> dict[str, str]:
    return {"hash": windows.hash, "salt": windows.salt, "seed_letters": str(windows.seed_letters)}
