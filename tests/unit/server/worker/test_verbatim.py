"""Withheld texts in the processor, against vLLM's own batch of V1 and the request states that V2 keeps."""

import json
import random
import string
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import EngineArgs, SamplingParams
from vllm.config import set_current_vllm_config
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from support.engine.tiny import EOS, VOCAB_SIZE, make_target, make_tokenizer
from support.texts import longest_run, save_texts
from unlearngate.artefact import MANIFEST_FILE
from unlearngate.kernels.pairs import CUT
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, VerbatimSet, sign
from unlearngate.server.worker import plugin
from unlearngate.server.worker.processor import ComposeLogitsProcessor
from unlearngate.server.worker.spelling import Spelling

CPU = torch.device("cpu")
MAX_REQUESTS, MAX_LEN = 6, 512
TOKENIZER = make_tokenizer()
LONGEST = 39


def ids(text):
    return TOKENIZER(text).input_ids


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory):
    """The configuration of an engine for sets of this kind alone: without branches, without LoRA."""
    target = make_target(tmp_path_factory.mktemp("target"), seed=1)
    plugin.register()
    options = engine_options(BranchOptions("LlamaForCausalLM", 0, 1, 0), max_rank=8, max_loaded=2, max_known=4)
    assert "enable_lora" not in options
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return EngineArgs(
            model=str(target), max_model_len=MAX_LEN, enforce_eager=True, **options
        ).create_engine_config()


@pytest.fixture(scope="module")
def text():
    rng = random.Random(7)
    return " ".join("".join(rng.choices(string.ascii_letters, k=rng.randint(2, 9))) for _ in range(150))


@pytest.fixture(scope="module")
def novel(text, tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("sets") / "novel", text)


@pytest.fixture(scope="module")
def withholding(novel):
    return Plan(verbatim=(VerbatimSet(novel.digest, str(novel.folder)),))


def params(plan):
    return SamplingParams(extra_args={TOKEN_FIELD: sign(plan)})


def can_only_end(row):
    return torch.isneginf(row).sum() == VOCAB_SIZE - 1 and float(row[EOS]) == 0.0


class Writer:
    """A sequence that goes on with the text wherever its logits let it."""

    def __init__(self, text, at, given):
        self.raw, self.at = ids(text), at + given
        self.prompt, self.output = ids("say: ") + self.raw[at : at + given], []

    def logits(self):
        wanted = torch.randn(VOCAB_SIZE)
        wanted[self.raw[self.at]] = 50.0
        wanted[EOS] = -50.0
        return wanted

    def take(self, row):
        token = int(row.argmax())
        self.output.append(token)
        self.at += token == self.raw[self.at]

    def said(self):
        return TOKENIZER.decode(self.prompt + self.output)


def test_the_tokenizers_special_tokens_write_nothing_and_its_others_their_bytes():
    spelling = Spelling.of(TOKENIZER, VOCAB_SIZE)
    assert spelling.tokens[EOS] == spelling.tokens[0] == spelling.tokens[VOCAB_SIZE - 1] == b""
    assert b"".join(spelling.tokens[token] for token in ids("né 日")) == "né 日".encode()


def test_a_plan_keeps_its_sets_in_its_token(withholding):
    from unlearngate.server.contract.plan import verify

    assert verify(sign(withholding)) == withholding


def test_v1_follows_vllms_batch_through_adds_removals_moves_and_preemption(vllm_config, withholding, text, seed):
    rng = random.Random(seed)
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    with set_current_vllm_config(vllm_config):
        batch = InputBatch(
            max_num_reqs=MAX_REQUESTS,
            max_model_len=MAX_LEN,
            max_num_batched_tokens=MAX_LEN,
            device=CPU,
            vocab_size=VOCAB_SIZE,
            block_sizes=[32],
            max_num_blocks_per_req=[16],
            logitsprocs=LogitsProcessors([processor]),
        )
    writers = {}
    for number in range(12):
        writer = Writer(text, rng.randrange(len(text) - 400), rng.choice([0, 10, 38]))
        while longest_run(text, writer.said()) > LONGEST:
            writer.prompt.pop()
        writers[f"{number}"] = (writer, withholding if number % 3 else Plan())
    waiting, running = sorted(writers), []
    for _ in range(250):
        if running and rng.random() < 0.2:
            gone = rng.choice(running)
            batch.remove_request(gone)
            running.remove(gone)
            waiting.append(gone)  # preempted: it comes back with what it said so far
        while waiting and len(running) < MAX_REQUESTS and rng.random() < 0.7:
            name = waiting.pop(rng.randrange(len(waiting)))
            running.append(name)
            batch.add_request(state(name, *writers[name]))
        batch.condense()
        if len(running) > 1 and rng.random() < 0.5:
            batch.swap_states(*rng.sample(range(len(running)), 2))
        batch.refresh_metadata()
        here = [writers[name] for name in batch.req_ids]
        if not here:
            continue
        logits = torch.stack([writer.logits() for writer, _ in here])
        before = logits.clone()
        processor.apply(logits)
        for row, (writer, plan) in enumerate(here):
            assert plan.verbatim or torch.equal(logits[row], before[row])
            if rng.random() < 0.9 and len(writer.output) < 60:  # else a row that vLLM discards
                writer.take(logits[row])
    for writer, plan in writers.values():
        longest = longest_run(text, writer.said())
        assert longest <= LONGEST if plan.verbatim else longest >= len(writer.output) / 3, f"seed {seed}"
    assert any(longest_run(text, w.said()) == LONGEST for w, plan in writers.values() if plan.verbatim)


def state(name, writer, plan):
    return CachedRequestState(
        req_id=name,
        prompt_token_ids=writer.prompt,
        mm_features=[],
        sampling_params=params(plan),
        generator=None,
        block_ids=([0],),
        num_computed_tokens=0,
        output_token_ids=writer.output,
    )


def context(slots, sequences):
    """A row of each slot; the sequences are what is in them so far."""
    mapping, zeros = torch.tensor(slots), torch.zeros(len(slots), dtype=torch.int64)
    lengths = [len(tokens) for tokens in sequences]
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots),
        expanded_local_pos=zeros,
        input_ids=torch.tensor([tokens[-1] for tokens in sequences], dtype=torch.int32),
        pos=torch.tensor(lengths) - 1,
        seq_lens_upper_bound_np=np.array(lengths),
    )


class States:
    """V2's request states as far as custom processors see them (LogitsProcRequestState)."""

    def __init__(self):
        self.device = CPU
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(MAX_REQUESTS, MAX_LEN, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(gpu=torch.zeros(MAX_REQUESTS, dtype=torch.int32))
        self.prefill_len = SimpleNamespace(gpu=torch.zeros(MAX_REQUESTS, dtype=torch.int32))

    def put(self, slot, writer):
        tokens = writer.prompt + writer.output
        self.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens)
        self.prompt_len.gpu[slot], self.prefill_len.gpu[slot] = len(writer.prompt), len(tokens)


def test_v2_follows_slots_that_are_used_again_and_prompts_that_come_in_parts(vllm_config, withholding, text, seed):
    rng = random.Random(seed)
    states = States()
    processor = ComposeLogitsProcessor(vllm_config, states)
    done = []
    slots = {}
    for _ in range(200):
        for slot in range(MAX_REQUESTS):
            if slot not in slots or rng.random() < 0.02:
                if slot in slots:
                    done.append(slots[slot])
                writer = Writer(text, rng.randrange(len(text) - 400), rng.choice([0, 10, 30]))
                writer.plan = rng.choice([withholding, withholding, Plan()])
                slots[slot] = writer
                states.put(slot, writer)
                assert processor.add_request(slot, params(writer.plan)) == bool(writer.plan.verbatim)
                if len(writer.prompt) > 6:
                    part = torch.randn(1, VOCAB_SIZE)
                    assert torch.equal(processor.apply(part.clone(), context([slot], [writer.prompt[:6]])), part)
        here = rng.sample(sorted(slots), rng.randint(1, MAX_REQUESTS))
        writers = [slots[slot] for slot in here]
        logits = torch.stack([writer.logits() for writer in writers])
        before = logits.clone()
        processor.apply(logits, context(here, [w.prompt + w.output for w in writers]))
        for row, (slot, writer) in enumerate(zip(here, writers, strict=True)):
            assert writer.plan.verbatim or torch.equal(logits[row], before[row])
            if len(writer.output) < 60:
                writer.take(logits[row])
                states.all_token_ids.gpu[slot, len(writer.prompt) + len(writer.output) - 1] = writer.output[-1]
    for writer in [*done, *slots.values()]:
        assert longest_run(text, writer.said()) <= LONGEST or not writer.plan.verbatim, f"seed {seed}"
    assert any(longest_run(text, w.said()) == LONGEST for w in [*done, *slots.values()] if w.plan.verbatim)


def test_v2_judges_a_row_by_the_draft_tokens_before_it(vllm_config, withholding, text, seed):
    """Drafts go on with the text, or not; a few are kept. Every row forbids what a sequence with its tokens would."""
    rng = random.Random(seed)
    slots = rng.sample(range(MAX_REQUESTS), 3)
    states, alone = States(), States()
    processor, by_rows = (ComposeLogitsProcessor(vllm_config, of) for of in (states, alone))
    sequences = {}
    for slot in slots:
        start = rng.randrange(len(text) - 400)
        prompt = ids("say: ") + ids(text[start : start + 30])
        sequences[slot] = (prompt, ids(text[start + 30 : start + 300]))
        states.put(slot, SimpleNamespace(prompt=prompt, output=[]))
        processor.add_request(slot, params(withholding))
    forbidden = 0
    for _ in range(60):
        counts = [rng.randint(1, 5) for _ in slots]
        rows = []  # slot, number, all that the row sees
        for slot, count in zip(slots, counts, strict=True):
            tokens, rest = sequences[slot]
            drafts = [token if rng.random() < 0.95 else rng.choice([2, *ids("\\")]) for token in rest[: count - 1]]
            rows += [(slot, number, tokens + drafts[:number]) for number in range(count)]
        processor.expect_rows(np.array(counts))
        whole = context([slot for slot, _, _ in rows], [seen for _, _, seen in rows])
        whole = replace(
            whole, idx_mapping_np=np.array(slots), expanded_local_pos=torch.tensor([number for _, number, _ in rows])
        )
        logits = processor.apply(torch.zeros(len(rows), VOCAB_SIZE), whole)
        for row, (slot, _, seen) in zip(logits, rows, strict=True):
            alone.put(slot, SimpleNamespace(prompt=seen, output=[]))
            by_rows.add_request(slot, params(withholding))
            one = by_rows.apply(torch.zeros(1, VOCAB_SIZE), context([slot], [seen]))[0]
            assert torch.equal(row, one), f"seed {seed}"
            forbidden += int(torch.isneginf(row).sum())
        for slot, count in zip(slots, counts, strict=True):
            kept = rng.randrange(count)  # of its drafts
            tokens = next(seen for s, number, seen in rows if s == slot and number == kept)
            rest = sequences[slot][1][kept:]
            after = rest[0] if rng.random() < 0.97 else 2
            sequences[slot] = ([*tokens, after], rest[1:])
            states.all_token_ids.gpu[slot, : len(tokens) + 1] = torch.tensor([*tokens, after])
    assert forbidden > 10


def both(vllm_config):
    """The processor of either runner, and how a single row of it is put in."""
    v1 = ComposeLogitsProcessor(vllm_config, CPU, False)

    def add_v1(plan, prompt):
        v1.update_state(SimpleNamespace(removed=[0], added=[(0, params(plan), prompt, [])], moved=[]))
        return lambda row: v1.apply(row[None])[0]

    states = States()
    v2 = ComposeLogitsProcessor(vllm_config, states)

    def add_v2(plan, prompt):
        states.put(0, SimpleNamespace(prompt=prompt, output=[]))
        v2.add_request(0, params(plan))
        return lambda row: v2.apply(row[None], context([0], [prompt]))[0]

    return add_v1, add_v2


@pytest.fixture(scope="module")
def near_the_end(text):
    """A prompt of 39 letters of the text, and the tokens of the next letter in all its forms."""
    start = next(i for i in range(len(text)) if sum(map(str.isalpha, text[:i])) == LONGEST)
    letter = next(c for c in text[start:] if c.isalpha())
    return ids(text[:start]), {ids(letter.lower())[0], ids(letter.upper())[0]}


def test_only_the_tokens_that_complete_a_run_are_taken_from_a_row(vllm_config, withholding, near_the_end):
    prompt, next_tokens = near_the_end
    for add in both(vllm_config):
        logits = torch.randn(VOCAB_SIZE)
        masked = add(withholding, prompt)(logits.clone())
        assert set(torch.isneginf(masked).nonzero().flatten().tolist()) == next_tokens
        assert torch.equal(masked[~torch.isneginf(masked)], logits[~torch.isneginf(masked)])


@pytest.mark.parametrize("others", [-torch.inf, CUT])
def test_a_row_that_has_nothing_else_left_can_only_end(vllm_config, withholding, near_the_end, others):
    prompt, next_tokens = near_the_end
    for add in both(vllm_config):
        logits = torch.full((VOCAB_SIZE,), others)
        logits[list(next_tokens)] = 1.0
        assert can_only_end(add(withholding, prompt)(logits))


def test_a_set_that_is_gone_or_another_ends_its_rows(vllm_config, novel, text, tmp_path):
    other = save_texts(tmp_path / "sets" / "other", text[::-1])
    damaged = save_texts(tmp_path / "damaged" / "novel", text)
    (damaged.folder / MANIFEST_FILE).write_text("{}")
    for folder, digest in (
        (tmp_path / "none", novel.digest),
        (other.folder, novel.digest[::-1]),
        (damaged.folder, damaged.digest),
    ):
        for add in both(vllm_config):
            row = add(Plan(verbatim=(VerbatimSet(digest, str(folder)),)), ids("hello"))(torch.randn(VOCAB_SIZE))
            assert can_only_end(row)


def test_a_sequence_that_cannot_be_followed_ends(vllm_config, withholding):
    v1 = ComposeLogitsProcessor(vllm_config, CPU, False)
    rows = [([2, 3], [-1]), (None, [2]), ([2], [VOCAB_SIZE]), ([2, 3], [4])]
    added = [(i, params(withholding), prompt, output) for i, (prompt, output) in enumerate(rows)]
    v1.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    logits = torch.randn(4, VOCAB_SIZE)
    plain = logits[3].clone()
    v1.apply(logits)
    assert [bool(can_only_end(row)) for row in logits] == [True, True, True, False]
    assert torch.equal(logits[3], plain)


def test_sets_are_loaded_once_and_dropped_when_they_are_many(vllm_config, withholding, text, tmp_path, monkeypatch):
    from unlearngate.server.worker import verbatim

    monkeypatch.setattr(verbatim, "_KEPT_BYTES", 1)
    monkeypatch.setattr(verbatim, "_KEPT_COMBINATIONS", 2)
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    plans = [withholding]
    for number in range(3):
        made = save_texts(tmp_path / f"s{number}", text[number * 50 :])
        plans.append(Plan(verbatim=(VerbatimSet(made.digest, str(made.folder)), *withholding.verbatim)))
    for index, plan in enumerate(plans):
        processor.update_state(SimpleNamespace(removed=[], added=[(index, params(plan), [2], [])], moved=[]))
    kept = processor._verbatim
    assert len(kept._combinations) == 2 and len(kept._sets) == 1
    followed = processor._followed[3].withheld
    processor.update_state(SimpleNamespace(removed=[], added=[(4, params(plans[3]), [2], [])], moved=[]))
    assert processor._followed[4].withheld is followed
    assert len(processor.apply(torch.randn(5, VOCAB_SIZE))) == 5


def test_a_token_over_many_sets_is_decided_by_each(vllm_config, withholding, text, near_the_end, tmp_path):
    """A set of shorter runs beside the other: its next letter is taken sooner."""
    short = save_texts(tmp_path / "short", text, letters=30)
    plan = replace(withholding, verbatim=(VerbatimSet(short.digest, str(short.folder)), *withholding.verbatim))
    start = next(i for i in range(len(text)) if sum(map(str.isalpha, text[:i])) == 29)
    for add in both(vllm_config):
        assert torch.isneginf(add(plan, ids(text[:start]))(torch.zeros(VOCAB_SIZE))).sum() == 2
        assert torch.isneginf(add(withholding, ids(text[:start]))(torch.zeros(VOCAB_SIZE))).sum() == 0


def test_a_text_with_short_lines_does_not_come_out_of_a_json_string(vllm_config, tmp_path, seed):
    """Its escaped line breaks would be letters otherwise: no run would be as long."""
    rng = random.Random(seed)
    poem = "\n".join("".join(rng.choices(string.ascii_lowercase, k=18)) for _ in range(12))
    made = save_texts(tmp_path / "poem", poem)
    plan = Plan(verbatim=(VerbatimSet(made.digest, str(made.folder)),))
    for withholds in (plan, Plan()):
        processor = ComposeLogitsProcessor(vllm_config, CPU, False)
        writer = Writer(json.dumps({"poem": poem}) + " " * 50, 0, 0)
        added = [(0, params(withholds), writer.prompt, writer.output)]
        processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
        for _ in range(120):
            writer.take(processor.apply(writer.logits()[None])[0])
        shown = writer.said().replace("\\n", "\n")
        assert longest_run(poem, writer.said()) < 40, "the raw answer has letters of line breaks in it"
        assert (longest_run(poem, shown) == LONGEST) if withholds is plan else (longest_run(poem, shown) > 60)
