"""A large tensor that is made again costs no pages of the kernel's."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from unlearngate.assistant_training.model.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch

def work():
    logits = torch.zeros(2**23)  # 32 MiB each: more than glibc keeps by itself
    return (logits.exp() + logits).sum()

for _ in range(8):  # the heap finds its size
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is memory kept")
def test_freed_memory_is_used_again():
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("kept", "as it is")
    }
    assert faults["as it is"] > 4 * faults["kept"], faults
