"""Ways around the forget sets that need no running server: what docs/security.md's table says of each is tried here."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import EngineArgs, SamplingParams
from vllm.config import set_current_vllm_config
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from support.engine.tiny import EOS, VOCAB_SIZE, make_forget_set, make_target
from unlearngate.artefact import ADAPTER_FILE, CONFIG_FILE, MANIFEST_FILE, load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.server.contract.branches import CONFIG_FIELD, BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.plan import KEY_VARIABLE, TOKEN_FIELD, Plan, Term, VerbatimSet, sign
from unlearngate.server.engine import client
from unlearngate.server.engine.bindings import Bindings
from unlearngate.server.worker import model as served
from unlearngate.server.worker import plugin
from unlearngate.server.worker.batch import Parts
from unlearngate.server.worker.compat import show_drafters_the_target
from unlearngate.server.worker.lockstep import Read
from unlearngate.server.worker.processor import ComposeLogitsProcessor
from unlearngate.server.worker.prompts import PROMPT_HEAD
from unlearngate.target import file_digest

TESTS = Path(__file__).parents[3]
CPU = torch.device("cpu")
PLAIN = Plan()
ANNA = Plan(7, 0.0, (Term(0, 1.0, 0.0),))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target") / "tiny", seed=1)


@pytest.fixture(scope="module")
def vllm_config(target):
    plugin.register()
    options = engine_options(BranchOptions("LlamaForCausalLM", 0, 2, 2), max_rank=8, max_loaded=2, max_known=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return EngineArgs(model=str(target), max_model_len=64, enforce_eager=True, **options).create_engine_config()


class Worker:
    """The processor as a worker of one of vLLM's runners drives it."""

    def __init__(self, interface, vllm_config):
        self.interface = interface
        runner = (CPU, False) if interface == "v1" else (SimpleNamespace(device=CPU),)
        self.processor = ComposeLogitsProcessor(vllm_config, *runner)

    def announce(self, slot, params):
        """A request takes a batch index (V1) or a slot (V2). True if V2 would ask for its rows."""
        if self.interface == "v2":
            claimed = self.processor.add_request(slot, params)
            self.processor.apply_staged_writes()
            return claimed
        self.processor.update_state(SimpleNamespace(removed=[], added=[(slot, params, [2], [])], moved=[]))
        return True

    def apply(self, logits):
        slots = torch.arange(len(logits))
        zeros = torch.zeros_like(slots)
        context = LogitsContext(
            expanded_idx_mapping=slots,
            idx_mapping=slots,
            idx_mapping_np=slots.numpy(),
            expanded_local_pos=zeros,
            input_ids=zeros,
            pos=zeros,
            seq_lens_upper_bound_np=np.ones(len(logits), dtype=np.int64),
        )
        return self.processor.apply(logits, *([context] if self.interface == "v2" else []))


@pytest.fixture(params=["v1", "v2"])
def worker(request, vllm_config):
    return Worker(request.param, vllm_config)


def params(token, **more):
    return SamplingParams(extra_args=None if token is None else {TOKEN_FIELD: token}, **more)


def token_of_another_server(plan):
    """Signed with another key: another server's, or this one's before it was started again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, secrets.token_hex(32))
        return sign(plan)


BAD_TOKENS = {
    "A1-no-token": lambda: None,
    "A1-forged-token": lambda: sign(ANNA).partition(".")[0] + "." + sign(PLAIN).partition(".")[2],
    "A1-older-token": lambda: token_of_another_server(PLAIN),
    "A1-not-a-token": lambda: 7,
}


# A1: admission, and behind it the worker


@pytest.fixture(scope="module")
def admit(vllm_config):
    """VLLM's own admission, which every Python path to the engine goes through."""
    inputs = InputProcessor(vllm_config)
    return lambda p: inputs.process_inputs("1", {"type": "token", "prompt_token_ids": [5, 6]}, p, ("generate",))


def test_admission_takes_a_signed_request(admit):
    assert admit(params(sign(ANNA))).sampling_params.extra_args[TOKEN_FIELD] == sign(ANNA)


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_prompt_that_reaches_a_worker_without_our_signature_is_not_scored(monkeypatch, token):
    """A1-prompt-fails-closed"""
    config = SimpleNamespace(vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    model = SimpleNamespace(config=config, hidden_size=8)  # without a head to ask
    monkeypatch.setattr(served, "loaded_model", lambda: model)
    log_p = PROMPT_HEAD.logits(torch.randn(3, 24), params(token(), prompt_logprobs=0)).log_softmax(-1)
    assert log_p[:, EOS].tolist() == [0.0] * 3
    assert torch.isneginf(log_p).sum() == 3 * (VOCAB_SIZE - 1)


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_admission_refuses_a_request_without_our_signature(admit, token):
    """A1-validate-params: beam search, scoring, batch files and offline use build such parameters themselves."""
    with pytest.raises(VLLMValidationError, match="composition token"):
        admit(params(token()))


@pytest.mark.parametrize("plan", [PLAIN, ANNA], ids=["plain", "anna"])
def test_an_engine_whose_process_has_no_key_admits_nothing(admit, monkeypatch, plan):
    """A1-no-key: an engine that was started with our options, but not by our launcher."""
    token = sign(plan)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(VLLMValidationError, match="start the engine through `unlearngate serve`"):
        admit(params(token))


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"prompt_logprob_token_ids": [[5]]}, id="A2-prompt-logprob-token-ids"),
        pytest.param({"prompt_logprob_token_ids": np.array([[0]])}, id="A2-prompt-logprob-token-zero"),
    ],
)
def test_logprobs_of_the_prompt_that_vllm_does_not_compose_are_refused_with_a_good_token_too(asked):
    with pytest.raises(ValueError, match="prompt_logprob_token_ids are the plain target's"):
        ComposeLogitsProcessor.validate_params(params(sign(ANNA), **asked))


def test_logprobs_of_the_prompt_are_refused_where_they_could_not_be_composed(admit):
    """A2-prompt-logprobs-verbatim: such a set only forbids tokens. A2-prompt-logprobs-cached: no logits."""
    withholding = Plan(verbatim=(VerbatimSet("0" * 64, "/nowhere"),))
    for plan, asked, sentence in [
        (withholding, {}, "not served with sets of kind verbatim"),
        (ANNA, {"skip_reading_prefix_cache": False}, "a position from the cache has no logits"),
    ]:
        with pytest.raises(VLLMValidationError, match=sentence):
            admit(params(sign(plan), prompt_logprobs=0, **asked))
    assert admit(params(sign(ANNA), prompt_logprobs=0)).sampling_params.skip_reading_prefix_cache


def test_a_replayed_trace_is_refused(admit):
    """A3-trace-decode-token-ids"""
    with pytest.raises(VLLMValidationError, match="trace replay is not"):
        admit(params(sign(ANNA), trace_decode_token_ids=[5, 6, 7]))


@pytest.mark.parametrize("carried", [None, 0, 8], ids=["none", "zero", "another"])
def test_a_token_runs_with_its_own_adapter_only(target, carried):
    """A1-adapter-check: whatever gave the request another adapter on its way."""
    ran = []
    engine = SimpleNamespace(generate=lambda *_, lora_request: ran.append(lora_request))
    client.check_adapters(engine)
    lora = None if carried is None else SimpleNamespace(lora_int_id=carried)
    with pytest.raises(RuntimeError, match="a request for adapter 7 was about to run with adapter"):
        engine.generate([5], params(sign(ANNA)), lora_request=lora)
    with pytest.raises(ValueError, match="composition token"):
        engine.generate([5], params(None), lora_request=None)
    assert ran == []
    engine.generate([5], params(sign(ANNA)), lora_request=SimpleNamespace(lora_int_id=7))
    assert len(ran) == 1


@pytest.mark.parametrize("steering", [{}, {"min_tokens": 9}, {"allowed_token_ids": [5]}, {"ignore_eos": True}], ids=str)
@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_row_that_reaches_a_worker_without_our_signature_can_only_end(worker, token, steering):
    """A1-worker-fails-closed: the Rust frontend, or a request written to the engine's socket."""
    assert worker.announce(0, params(token(), max_tokens=20, **steering)), "vLLM skips a row that no processor claims"
    assert worker.announce(1, params(sign(PLAIN))) in (True, False)
    logits = torch.randn(2, VOCAB_SIZE)
    plain = logits.clone()
    ended = worker.apply(logits)
    assert ended[0].isneginf().nonzero().flatten().tolist() == [v for v in range(VOCAB_SIZE) if v != EOS]
    assert ended[0, EOS] == 0
    assert torch.equal(ended[1], plain[1])


def test_a_row_that_nobody_announced_can_only_end(worker):
    """A1-unannounced-row"""
    assert worker.apply(torch.randn(3, VOCAB_SIZE)).softmax(-1)[:, EOS].tolist() == [1, 1, 1]


# A5: silent pass-through


def test_a_recycled_slot_keeps_nothing_of_its_last_request(worker, monkeypatch):
    """A5-slot-reuse: refused, plain, governed, refused and plain again in one slot."""
    monkeypatch.setattr(served, "_loaded", None)
    logits = torch.randn(1, VOCAB_SIZE)
    for token, outcome in [(None, "ends"), (sign(PLAIN), "plain"), (sign(ANNA), "composes"), (None, "ends")] * 2:
        claimed = worker.announce(0, params(token))
        assert claimed or outcome == "plain"
        if outcome == "composes":  # A5-no-wrapper: there is no branch to compose from, and no answer without one
            with pytest.raises(RuntimeError, match="no UnlearningForCausalLM is loaded"):
                worker.apply(logits.clone())
        else:
            row = worker.apply(logits.clone())
            assert torch.equal(row, logits) == (outcome == "plain")


@pytest.mark.parametrize("lowers", [False, True])
def test_a_row_whose_branch_did_not_run_over_it_can_only_end(vllm_config, monkeypatch, lowers):
    """A5-branch-not-run: whoever is to blame. tests/support/engine/parity.py does the same to an engine."""
    hidden = Parts.build([1, 0], [0, 1, 2], 2).unstack(torch.randn(3, 8)).view(2, 2, 8)
    logits_NV = hidden[:, 1] @ torch.randn(8, VOCAB_SIZE)
    stand_in = AssistantOf(logits_NV)
    monkeypatch.setattr(served, "_loaded", weakref.ref(stand_in))
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    asked = params(sign(Plan(1, 0.1, (Term(0, 1.0, 0.0, lowers),))))
    processor.update_state(SimpleNamespace(removed=[], added=[(i, asked, [2], []) for i in range(2)], moved=[]))
    own = torch.randn(2, VOCAB_SIZE)
    composed = processor.apply(own.clone())
    assert torch.isfinite(composed[0]).all() and not torch.equal(composed[0], own[0])
    assert composed[1].argmax() == EOS and composed[1].exp().sum() == 1.0


class AssistantOf:
    """Stands where the loaded model stands: one branch said this in all rows."""

    composer, is_steered = None, None

    def __init__(self, logits_NV: torch.Tensor) -> None:
        self.logits_NV = logits_NV

    def take_assistant_logits(self) -> served.AssistantLogits:
        return served.AssistantLogits(len(self.logits_NV), None, self.logits_NV.clone())


def test_a_preempted_request_comes_back_with_its_plan(vllm_config):
    """A5-preemption: V1 removes a preempted request and adds it again, at another index."""
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    with set_current_vllm_config(vllm_config):
        batch = InputBatch(4, 64, 64, CPU, VOCAB_SIZE, [32], [2], logitsprocs=LogitsProcessors([processor]))
    plans = {name: Plan(i + 1, 0.0, (Term(0, i + 1.0, 0.0),)) for i, name in enumerate("abcd")}

    def run(*names):
        for name in [n for n in batch.req_ids if n not in names]:
            batch.remove_request(name)
        for name in [n for n in names if n not in batch.req_id_to_index]:
            batch.add_request(request(name))
        batch.condense()
        batch.refresh_metadata()
        assert {n: processor._plans[i] for n, i in batch.req_id_to_index.items()} == {n: plans[n] for n in names}

    def request(name):
        made = {"prompt_token_ids": [2], "mm_features": [], "generator": None, "block_ids": ([0],)}
        progress = {"num_computed_tokens": 0, "output_token_ids": []}
        return CachedRequestState(req_id=name, sampling_params=params(sign(plans[name])), **made, **progress)

    run("a", "b")
    run("b", "c")  # a is preempted, and c takes its index
    run("b", "c", "a")
    run("a", "d")
    run("d", "b", "a", "c")


def drafts(vllm_config, token, counts):
    """A processor of the V2 runner with one request and a row for each of its draft tokens; and its logits."""
    processor = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    processor.add_request(1, params(token))
    processor.expect_rows(counts)
    rows = torch.arange(3)
    context = LogitsContext(
        expanded_idx_mapping=torch.ones_like(rows),
        idx_mapping=torch.tensor([1]),
        idx_mapping_np=np.array([1]),
        expanded_local_pos=rows,
        input_ids=rows,
        pos=rows,
        seq_lens_upper_bound_np=np.array([3]),
    )
    return processor, lambda: processor.apply(torch.randn(3, VOCAB_SIZE), context)


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_every_row_behind_a_draft_token_of_a_refused_request_can_only_end(vllm_config, token):
    """A5-draft-rows."""
    _, run = drafts(vllm_config, token(), np.array([3]))
    assert run().softmax(-1)[:, EOS].tolist() == [1, 1, 1]


@pytest.mark.parametrize("counts", [None, [2], [1, 2]])
def test_rows_whose_request_is_not_known_are_not_guessed(vllm_config, counts):
    """A5-rows-without-owner: a vLLM that verifies drafts in another way than ours knows, or in parts."""
    with pytest.raises(RuntimeError, match="whose they are is not known"):
        drafts(vllm_config, sign(PLAIN), counts and np.array(counts))[1]()


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
@pytest.mark.parametrize(
    "plan, is_taken", [(PLAIN, True), (ANNA, False), (Plan(7, 0.0, (), adapts_target=True), False)], ids=str
)
def test_a_guess_that_an_answer_is_made_to_say_does_not_show_whether_the_drafter_has_it(
    vllm_config, monkeypatch, method, plan, is_taken
):
    """A5-drafter-guess: with the right guess the answer would come faster. Where a set acts, no draft is accepted."""
    stand_in = AssistantOf(torch.randn(3, VOCAB_SIZE))
    monkeypatch.setattr(served, "_loaded", weakref.ref(stand_in))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(vllm_config, "speculative_config", SimpleNamespace(method=method))
    processor, run = drafts(vllm_config, sign(plan), np.array([3]))
    run()
    guess = torch.tensor([2, 7, 9])  # what a mask, or a grammar, leaves of each row, and what was drafted
    assert processor.allow_drafts(guess).tolist() == ([2, 7, 9] if is_taken else [2, -1, -1])


def test_a_drafter_is_given_the_targets_hidden_states_alone():
    """A5-drafter-sees: of the target's, branches behind it, the final ones and those before a layer."""
    show_drafters_the_target()
    target, branch, residual = torch.randn(3, 2, 8)
    wide = torch.cat([target, branch], -1)
    model = SimpleNamespace(hidden_size=8)
    for hidden in (wide, target):  # a batch without any set has no branches
        assert torch.equal(model_runner.get_drafter_hidden_states(model, hidden), target)
    read = Read(2, (1, 3))
    for layer in range(4):
        read.before(layer, torch.cat([layer * target, branch]), torch.cat([residual, branch]) if layer else None)
    assert torch.equal(torch.stack(read.all()), torch.stack([target + residual, 3 * target + residual]))
    with pytest.raises(RuntimeError, match=r"reads layers \(9,\), of which only 0 ran"):
        Read(2, (9,)).all()


@pytest.mark.parametrize("kept", [1, 2])
def test_the_logprobs_of_a_rejected_row_are_not_given_out(kept):
    """A5-rejected-logprobs: vLLM's own cut, by the tokens that are kept of requests with three rows and two."""
    tokens = np.arange(5)[:, None]
    made = LogprobsLists(tokens, -tokens.astype(np.float32), tokens[:, 0], [0, 3, 5])
    assert made.slice_request(1, kept).logprob_token_ids[:, 0].tolist() == [3, 4][:kept]
    assert made.slice_request(0, kept).logprobs[:, 0].tolist() == [0, -1][:kept]


# Pitfalls 7, 8 and 10: adapters


@pytest.mark.parametrize(
    "wrong",
    [
        "base_model.model.layers.0.self_attn.q_proj",
        "base_model.model.assistant_a.layers.0.self_attn.q_proj",
        "base_model.model.target.model.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.0.self_attn.query",
        "base_model.model.lm_head",
    ],
)
def test_an_adapter_whose_names_match_no_module_is_refused(target, tmp_path, wrong):
    """P8-adapter-matches-nothing: vLLM loads it "successfully", and the answers are the plain target's."""
    folder = make_forget_set(tmp_path / "anna", target, seed=1).folder
    tensors = load_file(folder / ADAPTER_FILE)
    right = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({name.replace(right, wrong): t for name, t in tensors.items()}, folder / ADAPTER_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"] = {name: file_digest(folder / name) for name in (ADAPTER_FILE, CONFIG_FILE)}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="lands on no module"):
        load_forget_set(folder)


def test_an_adapters_id_is_never_used_twice(target, tmp_path):
    """P7-adapter-ids: the engine knows an adapter by its id alone."""
    sets = [make_forget_set(tmp_path / name, target, seed=i) for i, name in enumerate(["anna", "bert"])]
    bindings = Bindings(tmp_path / "bindings")
    ids = []
    for _ in range(3):
        for forget_set in sets:
            binding = bindings.bind([forget_set])
            ids.append(binding.adapter_id)
            bindings.unbind(binding)
    assert len(set(ids)) == 6 and min(ids) > 0


def test_another_version_of_a_set_finds_nothing_of_the_last_one_in_the_prefix_cache(target, tmp_path):
    """P7-stale-prefix-cache: vLLM keys its cache by an adapter's name and path."""
    bindings = Bindings(tmp_path / "bindings")
    first = bindings.bind([make_forget_set(tmp_path / "anna", target, seed=1)])
    shutil.rmtree(tmp_path / "anna")
    second = bindings.bind([make_forget_set(tmp_path / "anna", target, seed=2)])
    assert first.name != second.name and first.folder != second.folder


def test_code_compiled_for_other_branches_is_not_taken(vllm_config):
    """P10-compile-cache: vLLM keys it by the configuration, which says which branches there are, and by a tag."""
    hashes = set()
    for options in (None, {"tap_layer": 0, "num_layers": 1}, {"tap_layer": 1, "num_layers": 1}):
        config = vllm_config.model_config.hf_config.__class__(**vllm_config.model_config.hf_config.to_dict())
        if options:
            setattr(config, CONFIG_FIELD, options)
        hashes.add(vllm_config.with_hf_config(config, architectures=["LlamaForCausalLM"]).compute_hash())
    assert len(hashes) == 3


# A2: what is computed where


def test_both_runners_sample_from_the_same_distribution_whatever_steers_it(tmp_path, seed):
    """A2-penalties, A2-logit-bias: vLLM's own samplers, V2's with Triton interpreted, on the same random requests."""
    command = [sys.executable, TESTS / "support" / "engine" / "both_runners.py", "--requests", "24", "--seed", seed]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run([*map(str, command), "--work", tmp_path], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["penalised"] > 3 and figures["withheld"] > 2
    assert figures["difference"] < 1e-6
