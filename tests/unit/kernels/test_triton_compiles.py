"""The Triton kernels compile for real GPUs, here too: Triton's compiler needs none. What runs them is another test."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unlearngate.kernels import triton_kernels
from unlearngate.kernels.triton_compose import OPTIONS, num_warps_for

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

TYPES = {
    **dict.fromkeys(["row_ptr"], "*i64"),
    **dict.fromkeys(["first_ptr", "member_ptr", "rank_ptr", "counters_ptr", "action_ptr"], "*i32"),
    **dict.fromkeys(["open_ptr", "bad_ptr", "lowers_ptr"], "*i1"),
    **dict.fromkeys(["vocab_size", "num_used", "num_members", "num_pairs"], "i32"),
    **dict.fromkeys(["max_chunks", "num_chunks"], "i32"),
    **dict.fromkeys(["target_stride", "own_stride", "assistant_stride"], "i32"),
    "limit": "fp32",
}
ALIGNED = {name for name in TYPES if name.endswith("_stride")} | {"vocab_size"}
ARCHITECTURES = (80, 90)
LOGITS = (("*fp32", "*bf16"), ("*bf16", "*bf16"), ("*fp16", "*fp32"))
SETTINGS = {
    "guess_kernel": {"SAMPLE": 4096},
    "read_kernel": {
        "SAMPLED": True,
        "CANDIDATES": 8192,
        "SAMPLING": True,
        "OWN": True,
        "WRITE": True,
        "CHUNKS": 32,
        "BLOCK": 4096,
    },
    "best_kernel": {"BLOCK": 2048},
    "write_kernel": {"SAMPLING": True, "OWN": True, "TAIL": True, "CHUNKS": 64, "BLOCK": 2048},
}


def compiled(name, architecture, logits, ones=(), **changes):
    """As a launch would compile it: pointers and strides divisible by 16, integers that are 1 built in."""
    kernel = getattr(triton_kernels, name)
    constants = {
        **SETTINGS[name],
        **changes,
        **dict.fromkeys(ones, 1),
    }
    types = {**TYPES, "target_ptr": logits[0], "own_ptr": logits[0], "assistant_ptr": logits[1]}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "*fp32")
        for argument in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument in ALIGNED
        if argument not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    vocab_size = 262_144 if 16_384 in changes.values() else 128_256
    options = {"num_warps": num_warps_for(vocab_size), **OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(binary, folder):
    """Registers and bytes of local memory of a thread, as the assembler reports them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    (folder / "kernel.cubin").write_bytes(binary.asm["cubin"])
    report = subprocess.run(
        [tools / "cuobjdump", "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|LOCAL|STACK):(\d+)", report)}


VARIANTS = [
    *((name, {}) for name in SETTINGS),
    ("read_kernel", {"WRITE": False, "BLOCK": 2048, "CHUNKS": 64}),
    ("read_kernel", {"CANDIDATES": 16_384, "CHUNKS": 64}),
    ("read_kernel", {"WRITE": False, "BLOCK": 2048, "CANDIDATES": 16_384, "CHUNKS": 128}),
]


@pytest.mark.parametrize("logits", LOGITS, ids="-".join)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name, changes", VARIANTS)
def test_a_kernel_compiles_and_leaves_room_for_512_threads(tmp_path, name, changes, architecture, logits):
    binary = compiled(name, architecture, logits, **changes)
    used = resources(binary, tmp_path)
    # On a multiprocessor of 65,536 registers: two programs of 8 warps, or one of 16.
    assert used["REG"] * 512 <= 65_536, used
    assert used["LOCAL"] == 0 and used["STACK"] <= 64, used


@pytest.mark.parametrize(
    "name, changes",
    [
        ("read_kernel", {"SAMPLED": False, "CANDIDATES": 1, "CHUNKS": 1}),
        ("read_kernel", {"SAMPLING": False}),
        ("read_kernel", {"OWN": False}),
        ("write_kernel", {"SAMPLING": False, "OWN": False, "TAIL": False, "BLOCK": 4096}),
        ("write_kernel", {"OWN": False}),
        ("guess_kernel", {"SAMPLE": 8192}),
    ],
)
def test_the_other_variants_compile(name, changes):
    assert compiled(name, 90, LOGITS[0], **changes).asm["cubin"]


@pytest.mark.parametrize("name", SETTINGS)
def test_sizes_of_one_compile(name):
    """Triton builds an integer argument that is 1 into the kernel."""
    arguments = getattr(triton_kernels, name).arg_names
    ones = [
        n
        for n in ("vocab_size", "target_stride", "own_stride", "assistant_stride", "num_pairs", "num_chunks")
        if n in arguments
    ]
    assert compiled(name, 90, LOGITS[0], ones).asm["cubin"]


@pytest.mark.parametrize("num_chunks", [8, 16, 32, 64, 128])
def test_all_threads_of_a_program_find_the_same_sums(num_chunks):
    """A fused multiply-add with a shuffled addend rounds differently in the two threads that exchange."""
    lines = compiled("read_kernel", 90, LOGITS[0], CHUNKS=num_chunks).asm["ptx"].splitlines()
    shuffled = {re.search(r"shfl\.sync\S*\s+(%r\d+)", line)[1] for line in lines if "shfl.sync" in line}
    assert shuffled
    assert not [line for line in lines if "fma.rn.f32" in line and shuffled & set(re.findall(r"%r\d+", line))]


def test_the_mean_of_a_uniform_assistant_is_divided_exactly():
    assert "div.rn.f32" in compiled("read_kernel", 90, LOGITS[0]).asm["ptx"]
