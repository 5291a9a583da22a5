"""A checkpoint folder as a frozen target, in this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.assistant_training.data.chat import set_switches
from unlearngate.assistant_training.model.processes import Processes
from unlearngate.errors import TrainingError
from unlearngate.target import TargetIdentity, identify_target


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """A target that forget sets can be trained on, and the switches that its chat template is used with."""

    model: Any
    tokenizer: Any
    identity: TargetIdentity
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def with_switches(self, switches: Mapping[str, Any]) -> LoadedTarget:
        """The same with these switches, fixed in the tokenizer's chat template from now on.

        Raises: DataError if the template has no such switch.
        """
        set_switches(self.tokenizer, switches)
        return replace(self, chat_template_kwargs={**self.chat_template_kwargs, **switches})


def load_target(
    folder: Path,
    *,
    model_id: str | None = None,
    device: str | None = None,
    architectures: Collection[str] | None = None,
) -> LoadedTarget:
    """Load a Hugging Face checkpoint folder as a frozen target.

    Args:
        folder: config.json, *.safetensors and a tokenizer with a chat template.
        model_id: the target's public name; the folder's name if None.
        device: "cpu", "cuda", ...; None: this process's own GPU, if there is one.
        architectures: those that are served; None takes any that can be trained on.

    Raises: ArtefactError if a file is missing; TrainingError if no forget set could be trained on it, or served.
    """
    identity = identify_target(folder, model_id)
    if architectures is not None and identity.architecture not in architectures:
        raise TrainingError(
            f"{folder} is a {identity.architecture}, which the server does not serve; "
            f"it serves {', '.join(architectures)}"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError(f"{folder}: only a fast tokenizer (tokenizer.json) knows where in a text its tokens are")
    if tokenizer.chat_template is None:
        raise TrainingError(
            f"{folder}: the tokenizer has no chat template, so nobody knows how the server would put a question; "
            "add the one you will serve with as chat_template to tokenizer_config.json"
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"{folder}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never seen: padding is masked and unlabelled
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    if not hasattr(getattr(model, "model", None), "layers"):
        raise TrainingError(f"{folder}: {type(model).__name__} keeps its layers elsewhere than in model.layers")
    model.requires_grad_(False)
    model.to(device or Processes().device)
    return LoadedTarget(model.eval(), tokenizer, identity)
