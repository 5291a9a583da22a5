"""Training that starts from an earlier set's LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearngate.artefact import ForgetSet, load_forget_set
from unlearngate.assistant_training.model.assistant import adapter_tensors, load_adapter_tensors
from unlearngate.assistant_training.train.check import Limits
from unlearngate.errors import TrainingError
from unlearngate.target import TargetIdentity

_LOST = 0.02
_MAY_DIFFER = {"model_id", "weights_digest"}


def read_earlier(folder: Path, kind: str, target: TargetIdentity, *, other_weights: bool = False) -> ForgetSet:
    """An earlier set of this kind and target, to go on from.

    Args:
        folder: the set's.
        kind: which it must have.
        target: what is trained on.
        other_weights: whether it may be of other weights in the same shape, such as the target's last version.

    Raises: ArtefactError if it is damaged or of another target; TrainingError if it is of another kind or shape.
    """
    earlier = load_forget_set(folder)
    if earlier.manifest.kind != kind:
        raise TrainingError(f"{folder} is a set of kind {earlier.manifest.kind!r}; only {kind!r} can be gone on from")
    if not other_weights:
        return load_forget_set(folder, target)
    theirs, own = earlier.manifest.made_for.model_dump(), target.model_dump()
    if others := sorted(key for key in own.keys() - _MAY_DIFFER if own[key] != theirs[key]):
        raise TrainingError(
            f"{folder} is of another model: they differ in {', '.join(others)}; only the weights may be others"
        )
    return earlier


def start_at(adapted: Any, earlier: Any, after: ForgetSet) -> None:
    """Put an earlier set's LoRA on a model.

    Args:
        adapted: the model that will be trained.
        earlier: the earlier set's, of the same class.
        after: that set.

    Raises: TrainingError if it is of another shape.
    """
    tensors, own = adapter_tensors(earlier), adapter_tensors(adapted)
    alphas = [_alpha(model) for model in (earlier, adapted)]
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in own.items()} or (
        alphas[0] != alphas[1]
    ):
        raise TrainingError(
            f"{after.name} has LoRA of rank {after.manifest.rank} and alpha {alphas[0]} on {len(tensors) // 2} linear "
            f"maps, and the set that goes on from it would have alpha {alphas[1]} on {len(own) // 2}; give the same "
            "layers, rank and alpha"
        )
    load_adapter_tensors(adapted, tensors)


def as_before(after: ForgetSet) -> Limits:
    """What the set showed on its own target, less two points, as so few conversations tell; at least what any must."""
    keys = ("forget_found", "forget_facts_open", "retain_untouched")  # in Limits' order
    shown = (after.manifest.metrics.get(key, 1.0) - _LOST for key in keys)
    return Limits(*map(max, Limits(), shown))


def _alpha(adapted: Any) -> int:
    return int(getattr(adapted, "peft_model", adapted).peft_config["default"].lora_alpha)
