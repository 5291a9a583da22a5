"""Decode at the chosen setting: what is recited, what stays as it was, and whether what is said reads as language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rich.progress import Progress

from unlearngate.assistant_training.calibrate.held_out import WordedQuestion
from unlearngate.assistant_training.calibrate.kept import Arrays, Kept
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings
from unlearngate.assistant_training.evaluate.fluency import fluency_ratio, mean_log_p
from unlearngate.assistant_training.evaluate.metrics import recited, rouge_recall
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import LoadedTarget


def decode(
    target: LoadedTarget,
    asked: dict[str, list[WordedQuestion]],
    in_force: Sequence[LoadedSet],
    settings: CalibrationSettings,
    kept: dict[str, Kept],
    progress: Progress,
) -> dict[str, float]:
    """What greedy decoding gives with and without the set in force, for evenly spread questions of each file.

    Returns: of each file the shares of answers recited, unchanged, and known to be longer than what is decoded (cut),
        and the mean ROUGE-L recall; and the forget answers' `fluency_ratio`.
    """
    figures = {}
    for name, questions in asked.items():
        count = min(settings.decoded, len(questions))
        some = [questions[index] for index in np.linspace(0, len(questions) - 1, count).round().astype(int)]
        bar = progress.add_task(f"decoding {name} answers", total=2 * count)
        said: dict[str, list[list[int]]] = {}
        usual: dict[str, np.ndarray] = {}
        for suffix, sets in (("_plain", ()), ("", in_force)):
            strengths = [list(one.strength.model_dump().values()) for one in sets]
            group = f"decoded {count} {settings.max_tokens} {strengths}"
            advance = partial(progress.advance, bar)
            arrays = kept[name].remember(group, partial(_decode, target, some, sets, settings, advance))
            said[suffix], usual[suffix] = _answers(arrays), arrays["mean_log_p"]
            texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in said[suffix]]
            answers = [one.answer for one in some]
            figures[f"decoded_{name}_recited{suffix}"] = float(recited(answers, texts).mean())
            figures[f"decoded_{name}_rouge{suffix}"] = float(rouge_recall(answers, texts).mean())
        figures[f"decoded_{name}_cut"] = float(np.mean([one.num_tokens > settings.max_tokens for one in some]))
        same = [plain == now for plain, now in zip(said["_plain"], said[""], strict=True)]
        figures[f"decoded_{name}_unchanged"] = float(np.mean(same))
        progress.update(bar, completed=2 * count)  # what was kept is done
        if name == "forget":
            figures["fluency_ratio"] = fluency_ratio(usual[""], usual["_plain"])
    return figures


def _decode(
    target: LoadedTarget,
    questions: Sequence[WordedQuestion],
    in_force: Sequence[LoadedSet],
    settings: CalibrationSettings,
    advance: Callable[[int], object],
) -> Arrays:
    """The answers' tokens one after the other, their lengths, and their mean ln p under the target alone."""
    eos_id, said = target.tokenizer.eos_token_id, []
    for start in range(0, len(questions), settings.batch_size):
        prompts = [one.prompt for one in questions[start : start + settings.batch_size]]
        said += greedy(target.model, prompts, eos_id=eos_id, max_tokens=settings.max_tokens, in_force=in_force)
        advance(len(prompts))
    ended = [ids if len(ids) == settings.max_tokens else [*ids, eos_id] for ids in said]
    return {
        "tokens": np.array([token for ids in said for token in ids], dtype=np.int64),
        "lengths": np.array([len(ids) for ids in said]),
        "mean_log_p": mean_log_p(
            *(target.model, [one.prompt for one in questions], ended),
            pad_id=target.tokenizer.pad_token_id,
            batch_size=settings.batch_size,
        ),
    }


def _answers(arrays: Arrays) -> list[list[int]]:
    return [part.tolist() for part in np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])]
