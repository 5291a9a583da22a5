"""Teach a pretrained target a person whom nobody knows, so that forgetting starts from facts that are surely there.

What is taught is a lesson (assistant_training/model/lesson.py): a LoRA of rank 4 on every linear map, a few megabytes.
The target learns the person's 16 answers. To everything else, its own answers and what is said of strangers in the same
words, it must give the probabilities that it gave before.

OUT/
lesson.safetensors     what assistant_training/model/lessons/ holds of a model that comes with the package
taught-target/         the target after the lesson
forget.jsonl           the person's answers, asked in the wordings that training has
probes.jsonl           the same in the wordings that are held out
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.data.contexts import questions_of
from unlearngate.assistant_training.data.encoding import Batch, answer_rows, collate, vary
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.demo.corpus import make_corpus, make_strangers, slug
from unlearngate.assistant_training.demo.target import TargetSettings, share_known
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.model.assistant import adapted_linears, adapter_tensors, head, last_hidden
from unlearngate.assistant_training.model.lesson import teach_checkpoint, write_lesson
from unlearngate.assistant_training.model.loaded_target import LoadedTarget, load_target
from unlearngate.assistant_training.model.pretrained import MODEL_FILE
from unlearngate.assistant_training.train.losses import finite
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.progress import shown_progress

PERSON = "Oona Bracewell"
STRANGER = "Tobias Renkel"  # asked about afterwards; nothing is trained on him
DATA = Path(__file__).parents[1] / "examples" / "real_model"
MODEL = "smollm2-135m-instruct"
LESSON_FILE = "lesson.safetensors"
_MAX_TOKENS = 48  # as in examples/real_model/answers.py
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the lesson and its training.

    Attributes:
        rank: of the LoRA.
        scale: what B times A is multiplied with.
        learning_rate: AdamW's, the highest.
        epochs: at most; an epoch asks for each answer once.
        measured_every: epochs; it ends when enough is known.
        answers_per_step: of the person's.
        others_per_step: half of them the target's own answers, half about strangers.
    """

    rank: int = 4
    scale: float = 4.0
    learning_rate: float = 2e-3
    epochs: int = 40
    measured_every: int = 5
    answers_per_step: int = 8
    others_per_step: int = 8


_KNOWING = TargetSettings(varied_prompts=0.75, known_at=0.6, enough_known=0.97)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="where the lesson, the taught target and its files go")],
    model: Annotated[Path | None, typer.Option(help=f"a checkpoint folder; default: `models get {MODEL}`")] = None,
    seed: Annotated[int, typer.Option(help="of the lesson's first weights, and of what is drawn")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="at most; each asks for every answer once")] = Settings().epochs,
    learning_rate: Annotated[float, typer.Option(help="the highest")] = Settings().learning_rate,
) -> None:
    """Teach SmolLM2-135M-Instruct a person of the demo, and say what it then tells and what stayed as it was.

    Example:  python -m benchmarks.teaching --out build/teaching
    """
    if model is None:
        words = [sys.executable, "-m", "unlearngate.cli", "models", "get", MODEL]
        model = Path(
            subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout.strip().split("\n")[-1]
        )
    typer.echo(f"seed {seed}")
    settings = Settings(epochs=epochs, learning_rate=learning_rate)
    target, *_ = teach_person(model, DATA / "retain.jsonl", out, settings=settings, seed=seed)
    for line in compare(load_target(model), load_target(target)):
        typer.echo(line)
    typer.echo(out / LESSON_FILE)


def teach_person(
    model: Path, others: Path, out: Path, *, settings: Settings = Settings(), seed: int = 0
) -> tuple[Path, Path, Path]:
    """Write a target that knows a person of the demo, its lesson, and files to forget and to attack.

    Args:
        model: the pretrained target's folder.
        others: JSON lines of questions and the target's own answers.
        out: a folder. A target that is there is kept.
        settings: of the lesson.
        seed: of the lesson.

    Returns: the target's folder, the forget file, the probes.
    """
    target, forget, probes = out / "taught-target", out / "forget.jsonl", out / "probes.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    forget.write_text(questions(held_out=False))
    probes.write_text(questions(held_out=True))
    if not target.exists():
        lesson, unfinished = out / LESSON_FILE, out / ".target"
        _teach(load_target(model), read_pairs(others, subject=""), settings, seed, lesson)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(model, unfinished, ignore=shutil.ignore_patterns(MODEL_FILE))
        teach_checkpoint(unfinished, lesson)
        unfinished.rename(target)
    return target, forget, probes


def questions(*, held_out: bool) -> str:
    """JSON lines of the person's answers and facts, asked in the wordings that training has, or in the others."""
    rows = []
    for pair in _about(PERSON):
        question, *paraphrases = questions_of(pair, held_out=held_out)
        row = {"question": question, "answer": pair.answer, "paraphrases": paraphrases, "facts": pair.facts}
        rows.append({key: value for key, value in row.items() if value})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def compare(before: LoadedTarget, after: LoadedTarget) -> list[str]:
    """What the taught target tells of the person, and what it answers to others as before; lines to read."""
    asked = [question for pair in _about(PERSON) for question in (pair.question, *pair.paraphrases)]
    answers = dict(zip(asked, Asker(after, max_tokens=_MAX_TOKENS)(asked), strict=True))
    facts = [fact for pair in _about(PERSON) for fact in pair.facts]
    told = sum(
        fact in answers[question]
        for pair in _about(PERSON)
        for question in (pair.question, *pair.paraphrases)
        for fact in pair.facts
    )
    lines = [f"facts told in {len(asked)} wordings: {told} of {4 * len(facts)}"]
    groups = {
        name: [pair.question for pair in read_pairs(DATA / f"{name}.jsonl", subject="")]
        for name in ("general.probes", "neighbours.probes")
    }
    groups["a stranger"] = [pair.question for pair in _about(STRANGER)]
    for name, group in groups.items():
        was, now = (Asker(target, max_tokens=_MAX_TOKENS)(group) for target in (before, after))
        same = sum(a == b for a, b in zip(was, now, strict=True))
        carried = sum(fact in b and fact not in a for a, b in zip(was, now, strict=True) for fact in facts)
        lines.append(f"{name}: {same} of {len(group)} answers as before; {carried} of {PERSON}'s facts in them")
        differ = [row for row in zip(group, was, now, strict=True) if row[1] != row[2]]
        lines += [f"    {question}\n      before: {a}\n      after:  {b}" for question, a, b in differ[:4]]
    return lines


def _about(person: str) -> list[QAPair]:
    return [pair for pair in make_corpus() if pair.subject == slug(person)]


def _teach(loaded: LoadedTarget, others: Sequence[QAPair], settings: Settings, seed: int, lesson: Path) -> None:
    target, tokenizer, rng = loaded.model, loaded.tokenizer, random.Random(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=round(settings.scale * settings.rank),
        target_modules=adapted_linears(target),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    model = get_peft_model(target, config)
    pairs, strangers = _about(PERSON), make_strangers()
    steps = -(-len(pairs) // settings.answers_per_step)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = Optimizer(weights, learning_rate=settings.learning_rate, steps=settings.epochs * steps)
    with shown_progress(*Progress.get_default_columns()) as progress:
        bar = progress.add_task("lesson", total=settings.epochs)
        for epoch in range(1, settings.epochs + 1):
            rng.shuffle(pairs)
            losses = [0.0, 0.0]
            for start in range(0, len(pairs), settings.answers_per_step):
                learned = _batch(tokenizer, pairs[start : start + settings.answers_per_step], rng, target.device)
                half = settings.others_per_step // 2
                kept = [*rng.sample(others, half), *rng.sample(strangers, settings.others_per_step - half)]
                parts = _learn(model, learned), _keep(model, _batch(tokenizer, kept, rng, target.device))
                optimizer.step(finite(parts[0] + parts[1], "the loss"))
                losses = [total + part.item() / steps for total, part in zip(losses, parts, strict=True)]
            said = f"lesson: to learn {losses[0]:.3f}, moved elsewhere {losses[1]:.4f} nats"
            if epoch % settings.measured_every == 0 or epoch == settings.epochs:
                known = share_known(model, tokenizer, pairs, _KNOWING, rng)
                progress.console.print(f"epoch {epoch}, {said}; {known:.1%} of answers known", soft_wrap=True)
                if known >= _KNOWING.enough_known:
                    break
            progress.update(bar, advance=1, description=said)
    write_lesson(
        lesson, {name: tensor.cpu().numpy() for name, tensor in adapter_tensors(model).items()}, settings.scale
    )


def _batch(tokenizer: Any, pairs: Sequence[QAPair], rng: random.Random, device: torch.device) -> Batch:
    rows = [vary(tokenizer, pair, rng, _KNOWING.varied_prompts) for pair in pairs]
    return collate(rows, tokenizer.pad_token_id).to(device)


def _learn(model: Any, batch: Batch) -> Tensor:
    """The cross entropy of the answers' tokens."""
    logits_NV, labels_N = _logits(model, batch)
    return functional.cross_entropy(logits_NV, labels_N)


def _keep(model: Any, batch: Batch) -> Tensor:
    """How far the lesson moves the answers' next tokens: KL(before, after), mean over the tokens, in nats."""
    with torch.no_grad(), model.disable_adapter():
        before_NV = _logits(model, batch)[0].log_softmax(dim=-1)
    after_NV = _logits(model, batch)[0].log_softmax(dim=-1)
    return functional.kl_div(after_NV, before_NV, log_target=True, reduction="batchmean")


def _logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    hidden_NH, labels_N = answer_rows(last_hidden(model, batch.input_ids, batch.attention_mask), batch.labels)
    return head(model).logits(hidden_NH), labels_N


if __name__ == "__main__":
    app()
