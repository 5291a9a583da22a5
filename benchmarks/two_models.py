"""The peer: target and assistant as two Hugging Face models in a Python loop, as papers do it.

Speaks as `engine_worker` does. All rows have the first row's set; there is no other way with two models.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.engine_worker import serve
from unlearngate.artefact import load_forget_set

KEEP_RATIO = 0.02


class TwoModels:
    """A target and one assistant of its first layers, with LoRA."""

    def __init__(self, target: Path, sets: Path, name: str, dtype: torch.dtype) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        num_layers = load_forget_set(sets / name).manifest.num_layers
        load = AutoModelForCausalLM.from_pretrained
        self._target = load(target, dtype=dtype).to(self._device).eval()
        assistant = load(target, dtype=dtype, num_hidden_layers=num_layers)
        self._assistant = PeftModel.from_pretrained(assistant, str(sets / name)).to(self._device).eval()

    @torch.inference_mode()
    def run(self, sets: list[list[str]], prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """Decode one batch, every row to the same length."""
        ids = torch.randint(2, self._target.config.vocab_size, (len(sets), prompt_tokens), device=self._device)
        caches: list[Any] = [None, None]
        took = []
        for _ in range(new_tokens):
            began = time.perf_counter()
            logits = []
            for index, model in enumerate((self._target, self._assistant)):
                output = model(input_ids=ids, past_key_values=caches[index], use_cache=True, logits_to_keep=1)
                caches[index] = output.past_key_values
                logits.append(output.logits[:, -1].float())
            target, assistant = logits[0].log_softmax(-1), logits[1].log_softmax(-1)
            kept = target >= target.amax(-1, keepdim=True) + torch.tensor(KEEP_RATIO).log()
            ids = torch.where(kept, target - assistant, -torch.inf).argmax(-1, keepdim=True)
            ids[0].item()  # waits for the device
            took.append(time.perf_counter() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return {"first_token_s": took[0], "step_s": took[1:], "memory_mib": memory}


def main() -> None:
    """Read, decode, answer; ends with its input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--name", default="set-0")
    parser.add_argument("--dtype", default="float32")
    args, _ = parser.parse_known_args()
    serve(lambda: TwoModels(args.target, args.sets, args.name, getattr(torch, args.dtype)))


if __name__ == "__main__":
    main()
