"""Forget sets from disk, in force on a Hugging Face target: what a server does with a request that names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.model.assistant import load_assistant, truncate
from unlearngate.assistant_training.model.in_force import LoadedSet, Model
from unlearngate.errors import TrainingError
from unlearngate.manifest import Strength
from unlearngate.sentences import encode_sentence


def with_sets(
    target: Any, tokenizer: Any, sets: Sequence[ForgetSet], strengths: Sequence[Strength | None] | None = None
) -> Model:
    """The target as it answers with these sets in force; the target itself stays as it is.

    Args:
        target: a Hugging Face model in evaluation mode, the one that the sets were trained on.
        tokenizer: its tokenizer.
        sets: verified artefacts, of kind `uld` (composed) or at most one of kind `undial` (put on the target itself).
        strengths: of each set; None takes what its manifest recommends.

    Raises: TrainingError for a set of kind `verbatim`, and for what a server refuses: two sets of kind `undial`, or one
        beside an assistant with a tap; SentenceError if the target cannot say what a set says instead of answers.
    """
    if verbatim := [forget_set.name for forget_set in sets if forget_set.manifest.kind == "verbatim"]:
        raise TrainingError(
            f"{verbatim[0]} is of kind 'verbatim', which a server alone puts in force: serve it, and ask the server "
            "(evaluate --server, attack --server)"
        )
    chosen = strengths or [None] * len(sets)
    undial = [forget_set for forget_set in sets if forget_set.manifest.kind == "undial"]
    if len(undial) > 1:
        names = ", ".join(forget_set.name for forget_set in undial)
        raise TrainingError(f"at most one set of kind 'undial' can be in force at a time, got {names}")
    tapped = [forget_set.name for forget_set in sets if forget_set.manifest.tap_layer]
    if undial and tapped:
        raise TrainingError(
            f"{undial[0].name} of kind 'undial' changes the hidden states that {tapped[0]} starts from; "
            "take one of them: a server refuses both in one request"
        )
    in_force = [
        LoadedSet(
            assistant_of(target, forget_set),
            strength or forget_set.manifest.recommended,
            forget_set.manifest.rule,
            encode_sentence(tokenizer, said) if (said := forget_set.manifest.sentence()) else (),
        )
        for forget_set, strength in zip(sets, chosen, strict=True)
        if forget_set.manifest.kind == "uld"
    ]
    student = _student(target, undial[0]) if undial else target
    return Model(student, tokenizer, in_force)


def assistant_of(target: Any, forget_set: ForgetSet) -> Any:
    """The assistant of a set of kind `uld`, on this target."""
    manifest = forget_set.manifest
    return load_assistant(
        target,
        forget_set.folder,
        num_layers=manifest.num_layers,
        model_id=manifest.made_for.model_id,
        tap_layer=manifest.tap_layer,
    )


def _student(target: Any, forget_set: ForgetSet) -> Any:
    """The target with a set of kind `undial` on it, as a model of its own that shares the target's weights."""
    manifest = forget_set.manifest
    own = truncate(target, manifest.made_for.num_layers, model_id=manifest.made_for.model_id)
    return PeftModel.from_pretrained(own, forget_set.folder).eval()
