"""Start an engine in this process and print what it takes:  python -m support.deploy.sizing_run WORK

One JSON line: the KV cache, LoRA's slots and the parameters, as the engine itself has them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

BLOCK_SIZE, MAX_LOADED, BRANCHES = 32, 3, 2


def main() -> None:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS="1",
    )
    work = Path(sys.argv[1])
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from support.engine.tiny import make_forget_set, make_target
    from unlearngate.server.contract.options import engine_options
    from unlearngate.server.sets.registry import Registry
    from unlearngate.server.worker.model import UnlearningForCausalLM, loaded_model
    from unlearngate.target import identify_target

    target = make_target(work / "target", seed=1)
    made = make_forget_set(work / "sets" / "anna", target, seed=2, rank=8)
    registry = Registry(identify_target(target), work / "bindings")
    registry.discover(work / "sets")
    options = engine_options(
        registry.branches(BRANCHES), max_rank=registry.max_rank(), max_loaded=MAX_LOADED, max_known=MAX_LOADED + 1
    )
    arguments = EngineArgs(
        model=str(target), dtype="float32", max_model_len=512, max_num_seqs=4, block_size=BLOCK_SIZE,
        enforce_eager=True, **options,
    )  # fmt: skip
    parameters: dict[int, int] = {}
    load_weights = UnlearningForCausalLM.load_weights

    def count_and_load(self, weights):
        """Counted before vLLM packs the target's anew, as it does on a CPU."""
        loaded = load_weights(self, weights)
        parameters.update({p.data_ptr(): p.nbytes for p in self.parameters()})
        return loaded

    UnlearningForCausalLM.load_weights = count_and_load
    engine = LLMEngine.from_vllm_config(arguments.create_engine_config())
    model = loaded_model()
    stacked = {
        tensor.data_ptr(): tensor.nbytes
        for module in model.modules()
        for field in ("lora_a_stacked", "lora_b_stacked")
        for tensor in getattr(module, field, ())
    }
    from safetensors import safe_open

    with safe_open(made.folder / "adapter_model.safetensors", "pt") as file:
        on_disk = sum(file.get_tensor(name).nbytes for name in file.keys())
    with safe_open(target / "model.safetensors", "pt") as file:
        checkpoint = sum(file.get_tensor(name).nbytes for name in file.keys())
    figures = {
        "num_blocks": engine.vllm_config.cache_config.num_gpu_blocks,
        "slot_bytes": sum(stacked.values()),
        "parameter_bytes": sum(parameters.values()),
        "checkpoint_bytes": checkpoint,
        "set_bytes": on_disk,
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
