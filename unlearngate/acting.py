"""Whether a forget set can act at all, as far as its manifest tells; and what an operator has forced all the same.

A set that cannot act would be "in force" without taking anything away, so it is refused wherever sets are taken in:
`unlearngate sets add` and `verify`, a server's start, its watched folder and its admin route. An operator may force a
version. FOLDER/.forced holds the digests that `sets add --force` has put into FOLDER, one a line.
"""

from __future__ import annotations

import math
from pathlib import Path

from unlearngate.artefact import ForgetSet
from unlearngate.errors import ArtefactError
from unlearngate.files import write_whole
from unlearngate.manifest import ForgetSetManifest

FORCED_FILE = ".forced"
# A centred logit is at most ln V, so a set lowers a token by at most weight x ln V: at 0.05 and V = 128,000 by 0.6
# nats, which does not even halve its probability.
LEAST_WEIGHT = 0.05
LEAST_GATE_OPEN = 0.5  # of the forget tokens that training measured


def why_idle(manifest: ForgetSetManifest) -> str | None:
    """Why a set at its recommended strength takes nothing away, or None."""
    if manifest.target is None:  # kind verbatim: it has seeds, or it would not have been loaded
        return None
    strength, most_nats = manifest.recommended, math.log(manifest.target.vocab_size)
    gate_open = manifest.metrics.get("forget_gate_open", 1.0)
    if strength.weight < LEAST_WEIGHT:
        return (
            f"its recommended weight is {strength.weight:g}: below {LEAST_WEIGHT:g} no token's probability falls even "
            "by half; calibrate it"
        )
    if strength.gate_nats > most_nats:
        return (
            f"its gate opens at {strength.gate_nats:g} nats of evidence, of which there are at most ln V = "
            f"{most_nats:.2f} (V = {manifest.target.vocab_size}); calibrate it"
        )
    # Not `gate_open < ...`: the measure of a training that went wrong may be NaN.
    if manifest.kind == "uld" and not gate_open >= LEAST_GATE_OPEN:
        measured = [
            f"{of} {manifest.metrics[name]:.2f}"
            for of, name in (("forget", "forget_evidence_median"), ("retain", "retain_evidence_median"))
            if name in manifest.metrics
        ]
        medians = f" (median evidence in nats: {', '.join(measured)})" if measured else ""
        return (
            f"its gate of {strength.gate_nats:g} nats was open at {gate_open:.1%} of the forget set's tokens when it "
            f"was trained{medians}, and at least {LEAST_GATE_OPEN:.0%} are needed; train it longer"
        )
    return None


def refuse_idle(forget_set: ForgetSet) -> None:
    """Refuse a set that cannot act.

    Raises: ArtefactError with the figures, and what to do.
    """
    reason = why_idle(forget_set.manifest)
    if reason:
        raise ArtefactError(
            forget_set.folder,
            f"would be in force and do nothing: {reason}, or force it (`unlearngate sets add --force`, or "
            "POST /v1/forget_sets?force=true)",
        )


def forced_digests(folder: Path) -> frozenset[str]:
    """The digests that an operator has forced into this folder of sets."""
    try:
        return frozenset((folder / FORCED_FILE).read_text(encoding="utf-8", errors="replace").split())
    except FileNotFoundError:
        return frozenset()


def force(folder: Path, digest: str) -> None:
    """Note that an operator has forced a version into this folder of sets; call it before the version is there."""
    digests = forced_digests(folder) | {digest}
    write_whole(folder / FORCED_FILE, "".join(f"{one}\n" for one in sorted(digests)))
