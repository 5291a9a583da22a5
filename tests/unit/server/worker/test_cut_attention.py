"""A branch's attention over some of a batch's requests: vLLM's CPU kernels against attention in float64."""

import random

import pytest
import torch
from vllm import EngineArgs
from vllm.config import set_current_vllm_config
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

from support.engine.tiny import make_target
from unlearngate.server.worker.batch import Parts
from unlearngate.server.worker.compat import (
    attend_part,
    parts_of_step,
    remember_attention_of_steps,
    run_in_parts,
    starts_of_requests,
)

HEADS, KV_HEADS, SIZE, BLOCK, BLOCKS = 4, 2, 32, 32, 40
CPU = torch.device("cpu")
NAMES = ("target.0", "branch_a.0", "branch_a.1", "branch_b.0")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    target = make_target(tmp_path_factory.mktemp("target"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        options = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "block_size": BLOCK}
        return EngineArgs(model=str(target), **options).create_engine_config()


class Requests:
    """Their blocks, and all queries, keys and values that each layer has seen."""

    def __init__(self, rng: random.Random, number: int) -> None:
        free = rng.sample(range(1, BLOCKS), BLOCKS - 1)
        self.blocks = torch.tensor([[free.pop() for _ in range(4)] for _ in range(number)], dtype=torch.int32)
        self.seen: list[dict[str, torch.Tensor]] = [{} for _ in range(number)]
        self.lengths = [0] * number

    def step(self, lengths: list[int]) -> CommonAttentionMetadata:
        """VLLM's view of a step in which each request has so many tokens."""
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        places = [
            int(self.blocks[request, position // BLOCK]) * BLOCK + position % BLOCK
            for request, length in enumerate(lengths)
            for position in range(self.lengths[request], self.lengths[request] + length)
        ]
        self.lengths = [old + new for old, new in zip(self.lengths, lengths, strict=True)]
        return CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=torch.tensor(self.lengths, dtype=torch.int32),
            num_reqs=len(lengths),
            num_actual_tokens=len(places),
            max_query_len=max(lengths),
            max_seq_len=max(self.lengths),
            block_table_tensor=self.blocks,
            slot_mapping=torch.tensor(places),
        )

    def expected(self, layer: str, request: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """In float64; (2, tokens, heads, size) keys and values join what the layer has seen of the request."""
        seen = self.seen[request].get(layer, kv[:, :0])
        seen = self.seen[request][layer] = torch.cat([seen, kv], dim=1)
        keys, values = seen.double().repeat_interleave(HEADS // KV_HEADS, dim=2).transpose(1, 2)
        last = torch.arange(seen.shape[1] - len(q), seen.shape[1])
        hidden = torch.arange(seen.shape[1]) > last[:, None]
        scores = q.double().transpose(0, 1) @ keys.mT / SIZE**0.5
        return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1).flatten(1)


def test_each_request_sees_its_own_past_in_the_rows_that_are_asked_for_and_nothing_is_written_for_others(config, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    remember_attention_of_steps()
    with set_current_vllm_config(config):
        layers = {name: Attention(HEADS, SIZE, SIZE**-0.5, KV_HEADS, prefix=name) for name in NAMES}
        spec = layers[NAMES[0]].get_kv_cache_spec(config)
        builder = CPUAttentionMetadataBuilder(spec, list(NAMES), config, CPU)
    for layer in layers.values():
        layer.kv_cache = torch.randn(BLOCKS, KV_HEADS, BLOCK, 2 * SIZE)  # what others have left
    needed = [0, 2, 1, 0, 1, 2]
    rng.shuffle(needed)
    requests = Requests(rng, len(needed))
    written = {name: layer.kv_cache.clone() for name, layer in layers.items()}
    for _ in range(4):
        lengths = [rng.choice([1, 1, rng.randint(2, 20)]) for _ in needed]
        common = requests.step(lengths)
        metadata = builder.build(0, common)
        context = ForwardContext(
            no_compile_layers=layers,
            attn_metadata=dict.fromkeys(NAMES, metadata),
            slot_mapping=dict.fromkeys(NAMES, common.slot_mapping),
        )
        with override_forward_context(context):
            starts = starts_of_requests(NAMES[0])
            assert starts == common.query_start_loc.tolist() and parts_of_step() is None
            scored, cuts_target = [rng.random() < 0.3 for _ in needed], rng.random() < 0.5
            parts = Parts.build(needed, starts, starts[-1], scored=scored, cuts_target=cuts_target)
            with run_in_parts(parts, [NAMES[:1], NAMES[1:3], NAMES[3:]]):
                assert parts_of_step() is parts
                for name in NAMES:
                    part = {"target": 0, "branch_a": 1, "branch_b": 2}[name.partition(".")[0]]
                    own = [request for request, number in enumerate(needed) if number >= part]
                    sizes = [lengths[request] for request in own]
                    q, k, v = (torch.randn(sum(sizes), n * SIZE) for n in (HEADS, KV_HEADS, KV_HEADS))
                    asked = sizes  # in a branch's last layer, and in the target's if it is the same, fewer queries
                    if name in (NAMES[2:] if not cuts_target else (NAMES[0], *NAMES[2:])):
                        asked = [lengths[request] if scored[request] else 1 for request in own]
                    of_request = zip(q.split(sizes), asked, strict=True)
                    found = attend_part(name, torch.cat([one[-n:] for one, n in of_request]), k, v).split(asked)
                    parts_of_it = (x.view(len(x), -1, SIZE).split(sizes) for x in (q, k, v))
                    for request, got, *qkv in zip(own, found, *parts_of_it, strict=True):
                        wanted = requests.expected(name, request, qkv[0], torch.stack(qkv[1:]))[-len(got) :]
                        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5, msg=f"seed {seed}")
            assert parts_of_step() is None and context.attn_metadata == dict.fromkeys(NAMES, metadata)
    for name, layer in layers.items():
        part = {"target": 0, "branch_a": 1, "branch_b": 2}[name.partition(".")[0]]
        theirs = torch.ones(BLOCKS, dtype=torch.bool)
        theirs[requests.blocks[torch.tensor(needed) >= part].flatten()] = False
        assert torch.equal(layer.kv_cache[theirs], written[name][theirs]), f"seed {seed}: {name}"
        assert not torch.equal(layer.kv_cache, written[name])


def test_while_the_engine_starts_there_are_no_requests():
    with override_forward_context(ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})):
        assert starts_of_requests("any") is None
        parts = Parts.whole(3, 1)
        with run_in_parts(parts, [["any"], ["any"]]):
            assert parts_of_step() is parts
