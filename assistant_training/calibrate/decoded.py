"""Decode at the chosen setting: what is recited, what stays as it was, and whether what is said reads as language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rich.progress import Progress

from unlearngate.assistant_training.calibrate.held_out import WordedQuestion
from unlearngate.assistant_training.calibrate.kept import Arrays, Kept
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings
from unlearngate.assistant_training.evaluate.fluency import fluency_ratio
from unlearngate.assistant_training.evaluate.metrics import recited, rouge_recall
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import LoadedTarget

_ROWS = 4  # times the batch size: a step of decoding has the logits of one token of each row


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
    some: dict[str, list[WordedQuestion]] = {}
    for name, questions in asked.items():
        count = min(settings.decoded, len(questions))
        some[name] = [questions[index] for index in np.linspace(0, len(questions) - 1, count).round().astype(int)]
    bar = progress.add_task("decoding answers", total=2 * sum(map(len, some.values())))
    decoded: dict[str, dict[str, Arrays]] = {}
    for suffix, sets in (("_plain", ()), ("", in_force)):
        decoded[suffix] = _decode_all(target, some, sets, settings, kept, partial(progress.advance, bar))
    progress.update(bar, completed=2 * sum(map(len, some.values())))  # what was kept is done
    figures = {}
    for name, questions in some.items():
        said = {suffix: _answers(arrays[name]) for suffix, arrays in decoded.items()}
        answers = [one.answer for one in questions]
        for suffix, tokens in said.items():
            texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
            figures[f"decoded_{name}_recited{suffix}"] = float(recited(answers, texts).mean())
            figures[f"decoded_{name}_rouge{suffix}"] = float(rouge_recall(answers, texts).mean())
        figures[f"decoded_{name}_cut"] = float(np.mean([one.num_tokens > settings.max_tokens for one in questions]))
        same = [plain == now for plain, now in zip(said["_plain"], said[""], strict=True)]
        figures[f"decoded_{name}_unchanged"] = float(np.mean(same))
    figures["fluency_ratio"] = fluency_ratio(
        decoded[""]["forget"]["mean_log_p"], decoded["_plain"]["forget"]["mean_log_p"]
    )
    return figures


def _decode_all(
    target: LoadedTarget,
    questions: dict[str, list[WordedQuestion]],
    in_force: Sequence[LoadedSet],
    settings: CalibrationSettings,
    kept: dict[str, Kept],
    advance: Callable[[int], object],
) -> dict[str, Arrays]:
    """Of each file the answers' tokens one after the other, their lengths, and mean ln p under the target alone.

    What is not kept of all files is decoded together: a step of many rows costs little more than one of few.
    """
    strengths = [list(one.strength.model_dump().values()) for one in in_force]
    groups = {name: f"decoded {len(some)} {settings.max_tokens} {strengths}" for name, some in questions.items()}
    found = {name: arrays for name, group in groups.items() if (arrays := kept[name].get(group)) is not None}
    missing = [(name, one) for name, some in questions.items() if name not in found for one in some]
    said: list[list[int]] = []
    usual: list[list[float]] = []
    for start in range(0, len(missing), rows := _ROWS * settings.batch_size):
        prompts = [one.prompt for _, one in missing[start : start + rows]]
        said += greedy(
            *(target.model, prompts),
            eos_id=target.tokenizer.eos_token_id,
            max_tokens=settings.max_tokens,
            in_force=in_force,
            usual=usual,
        )
        advance(len(prompts))
    for name in questions.keys() - found.keys():
        own = [index for index, (of, _) in enumerate(missing) if of == name]
        found[name] = {
            "tokens": np.array([token for index in own for token in said[index]], dtype=np.int64),
            "lengths": np.array([len(said[index]) for index in own]),
            "mean_log_p": np.array([np.mean(usual[index]) for index in own]),
        }
        kept[name].put(groups[name], found[name])
    return found


def _answers(arrays: Arrays) -> list[list[int]]:
    return [part.tolist() for part in np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])]
