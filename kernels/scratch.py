"""Memory that the Triton kernels keep between their launches, and what they return."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearngate.kernels.pairs import Composition

SMALLEST_BLOCK = 2048  # tokens; the finest split of a row among programs
_SMALL_VOCAB = 131_072


def sample_size(vocab_size: int) -> int:
    """How many logits of a row are sampled to guess where its k-th largest lies; a power of two."""
    return 4096 if vocab_size <= _SMALL_VOCAB else 8192


def max_candidates(vocab_size: int) -> int:
    """How many logits near the guess are kept for the exact selection; a power of two.

    The guess is eight standard deviations of a sample's rank wide. Where they are largest, at k = V / 2, that is
    4 / sqrt(sample_size) of the vocab: 6 %, as many as fit here for V = 131,072. Ties beyond that cost time only.
    """
    return 2 * sample_size(vocab_size)


class Scratch:
    """Allocated once for the largest batch, at addresses that stay.

    num_pairs: the largest N, padding included.
    """

    def __init__(self, num_pairs: int, vocab_size: int, device: torch.device | str) -> None:
        self.num_pairs = num_pairs
        self.vocab_size = vocab_size
        self.max_chunks = max(1, -(-vocab_size // SMALLEST_BLOCK))
        num_candidates = max_candidates(vocab_size)

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        # Of each chunk of a row: an assistant's max, sum of exp, sum of exp * shifted, min; a target's max (once it is
        # decided what to keep: the best kept u), and the most that was added to its own logits.
        self.pair_parts = floats(4, num_pairs, self.max_chunks)
        self.row_parts = floats(2, num_pairs, self.max_chunks)
        # Of each row: where its k-th largest should lie, the logits there, counters (zero between calls), the decision.
        self.bracket = floats(2, num_pairs)
        self.candidates = floats(num_pairs, 0 if vocab_size <= num_candidates else num_candidates)
        self.counters = torch.zeros(3, num_pairs, dtype=torch.int32, device=device)
        self.threshold = floats(num_pairs)
        self.action = torch.empty(num_pairs, dtype=torch.int32, device=device)
        # Of each pair: max, ln of the mean of exp(a - max), weight (0 if not open), the least that it may take.
        self.centring = floats(4, num_pairs)
        self._open_N = torch.empty(num_pairs, dtype=torch.bool, device=device)
        self._evidence_N = floats(num_pairs)
        self._bad_N = torch.empty(num_pairs, dtype=torch.bool, device=device)

    def result(self, num_pairs: int, vocab_size: int) -> Composition:
        """Where the kernels write what `compose` returns.

        Raises: ValueError if this scratch is smaller, or for another vocab.
        """
        if num_pairs > self.num_pairs:
            raise ValueError(f"this scratch is for at most {self.num_pairs} pairs, got {num_pairs}")
        if vocab_size != self.vocab_size:
            raise ValueError(f"this scratch is for a vocab of {self.vocab_size}, got {vocab_size}")
        return Composition(self._open_N[:num_pairs], self._evidence_N[:num_pairs], self._bad_N[:num_pairs])
