"""A checkpoint folder as a frozen target, in this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from unlearngate.assistant_training.data.chat import refuse_lost_text, set_switches
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.model.attention import GROUPED
from unlearngate.assistant_training.model.memory import keep_freed_memory
from unlearngate.assistant_training.model.processes import Processes
from unlearngate.errors import TrainingError
from unlearngate.families import FAMILIES, Family, longest_alike, refusal
from unlearngate.target import TargetIdentity, check_target, identify_target, in_one_line, load_tokenizer


class LoadedTarget:
    """A target that forget sets can be trained on, and the switches that its chat template is used with.

    The weights are read when they are first asked for: `identity` hashes them, `model` loads them. What can be wrong
    with the data and the settings is to be found before.
    """

    def __init__(self, folder: Path, tokenizer: Any, config: Any, model_id: str | None, device: str | None) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self._config, self._model_id, self._device = config, model_id, device
        self.chat_template_kwargs: Mapping[str, Any] = {}

    @property
    def context_length(self) -> int | None:
        """The tokens of the longest conversation that the target is made for; None if its configuration is silent."""
        length: int = getattr(self._config, "max_position_embeddings", None) or 0
        rope = getattr(self._config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)  # Gemma 3 and OLMo 3 have one for each kind of layer
        factor = rope.get("factor") or 1.0
        match rope.get("rope_type"):
            case "linear":  # has the length before it is stretched, and vLLM serves the one after
                length = int(length * factor)
            case "yarn":  # may have either
                length = max(length, int(rope.get("original_max_position_embeddings", length) * factor))
            case "longrope":
                length = longest_alike(rope, length)
        return length or None

    @cached_property
    def identity(self) -> TargetIdentity:
        """What forget sets are bound to."""
        return identify_target(self.folder, self._model_id)

    @cached_property
    def model(self) -> Any:
        """The Hugging Face model, frozen, in evaluation mode, on its device.

        Raises: TrainingError if it lacks weights, or keeps its layers elsewhere than in `model.layers`.
        """
        cap = FAMILIES.get(self._config.architectures[0], Family()).attention_cap
        # Of Hugging Face's other ways some leave out the cap without a word: torch's, which is the default, is one.
        attention = {"attn_implementation": "eager"} if cap and getattr(self._config, cap) else {}
        model, read = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in what it says
            **attention,
        )
        if lost := sorted([*read["missing_keys"], *(name for name, *_ in read["mismatched_keys"])]):
            raise TrainingError(
                f"{self.folder}: {len(lost)} tensors that the model of its config.json needs are not in the weights, "
                f"or in another shape, such as {lost[0]}; download the weights again, or give the config.json that "
                "belongs to them"
            )
        if not hasattr(getattr(model, "model", None), "layers"):
            raise TrainingError(
                f"{self.folder}: {type(model).__name__} keeps its layers elsewhere than in model.layers"
            )
        model.requires_grad_(False)
        model.to(self._device or Processes().device)
        if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(GROUPED)
        return model.eval()

    def with_switches(self, switches: Mapping[str, Any]) -> LoadedTarget:
        """The same with these switches, fixed in the tokenizer's chat template from now on.

        Raises: DataError if the template has no such switch.
        """
        set_switches(self.tokenizer, switches)
        self.chat_template_kwargs = {**self.chat_template_kwargs, **switches}
        return self


def load_target(
    folder: Path,
    *,
    model_id: str | None = None,
    device: str | None = None,
    architectures: Collection[str] | None = None,
) -> LoadedTarget:
    """Open a Hugging Face checkpoint folder as a frozen target; its weights are read when they are asked for.

    Args:
        folder: config.json, *.safetensors and a tokenizer with a chat template.
        model_id: the target's public name; the folder's name if None.
        device: "cpu", "cuda", ...; None: this process's own GPU, if there is one.
        architectures: those that are served; None takes any that can be trained on.

    Raises: ArtefactError if a file is missing or damaged; TrainingError if no forget set could be trained on it, or
        served; DataError if its chat template refuses a question and its answer, or loses one of them.
    """
    keep_freed_memory()
    architecture = check_target(folder)
    if architectures is not None and architecture not in architectures:
        raise TrainingError(f"{folder}: {refusal(architecture, architectures)}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a configuration's values lead to has no narrower kind
        raise TrainingError(f"{folder / 'config.json'}: Hugging Face cannot use it ({in_one_line(error)})") from error
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError(f"{folder}: only a fast tokenizer (tokenizer.json) knows where in a text its tokens are")
    if tokenizer.chat_template is None:
        raise TrainingError(
            f"{folder}: the tokenizer has no chat template, so nobody knows how the server would put a question; "
            "add the one you will serve with as chat_template to tokenizer_config.json"
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"{folder}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= config.vocab_size:
        tokenizer.pad_token = tokenizer.eos_token  # never seen: padding is masked and unlabelled
    refuse_lost_text(tokenizer)
    _refuse_too_few_rows(folder, tokenizer, config.vocab_size)
    return LoadedTarget(folder, tokenizer, config, model_id, device)


def _refuse_too_few_rows(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Refuse a target whose conversations have tokens that were added to its tokenizer and not to its embeddings."""
    tokens = {*encode(tokenizer, "a", "b").input_ids, tokenizer.eos_token_id}
    if beyond := sorted(token for token in tokens if token >= vocab_size):
        said = f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}, which is token {beyond[0]}"
        raise TrainingError(
            f"{folder}: its chat template uses {said}, and the embeddings have {vocab_size} rows; resize and train "
            "them, or take the tokenizer that belongs to the weights"
        )
