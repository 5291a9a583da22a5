"""How usual what was said is to the target: perplexities of answers to forget prompts, with the set and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearngate.assistant_training.attack.asking import CHAT, Tell
from unlearngate.assistant_training.attack.run import Outcome
from unlearngate.assistant_training.evaluate.fluency import fluency_ratio, mean_log_p
from unlearngate.assistant_training.model.loaded_target import LoadedTarget

_BATCH = 16


def with_fluency(outcome: Outcome, target: LoadedTarget, tell: Tell) -> Outcome:
    """The outcome, where each kind that ends in a user's turn has its `fluency`.

    It is `evaluate.fluency.fluency_ratio`: the perplexity of what was said with the set, over that of what was said
    without, both under the target without the set and given the same prompt; the first answer to each forget prompt,
    without its end token. Kinds that begin the answer, ask for JSON or sample have none.

    Args:
        outcome: its answers are read.
        target: what the server serves.
        tell: hears how many kinds are done.
    """
    kinds = []
    for index, figures in enumerate(outcome.kinds):
        rows = [row for row in outcome.answers if row["kind"] == figures.kind and _counts(row)]
        kinds.append(figures._replace(fluency=_ratio(rows, target) if rows else None))
        tell(index + 1, len(outcome.kinds))
    return replace(outcome, kinds=kinds)


def _counts(row: Mapping[str, Any]) -> bool:
    """Whether both sides answered, with a word at least, a greedy request that is messages and nothing else."""
    if row["group"] != "forget" or row["route"] != CHAT or row["request"].keys() != {"messages"}:
        return False
    said = [row[side]["texts"] for side in ("with_set", "target")]
    return row["request"]["messages"][-1]["role"] == "user" and all(texts and texts[0].strip() for texts in said)


def _ratio(rows: Sequence[Mapping[str, Any]], target: LoadedTarget) -> float:
    tokenizer = target.tokenizer
    render: Callable[..., str] = tokenizer.apply_chat_template
    texts = [render(row["request"]["messages"], tokenize=False, add_generation_prompt=True) for row in rows]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]

    def scored(side: str) -> Any:
        answers = tokenizer([row[side]["texts"][0] for row in rows], add_special_tokens=False)["input_ids"]
        return mean_log_p(target.model, prompts, answers, pad_id=tokenizer.eos_token_id, batch_size=_BATCH)

    return fluency_ratio(scored("with_set"), scored("target"))
