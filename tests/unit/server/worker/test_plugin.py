"""What vLLM's plugin changes in each of its processes."""

import subprocess
import sys

QUICK = """
import atexit, multiprocessing, os, sys
from unlearngate.server.worker.plugin import end_without_teardown

class Slow:
    def __del__(self):
        print("torn down", flush=True)

def work(code):
    global kept
    kept = Slow()
    kept.itself = kept
    end_without_teardown()
    atexit.register(print, "said goodbye")
    try:
        sys.exit(9)
    except SystemExit as leaving:
        print("still an exception", leaving.code)
    if code:
        raise ValueError("no")

if __name__ == "__main__":
    codes = []
    for code in (0, 1):
        process = multiprocessing.get_context("spawn").Process(target=work, args=(code,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    print(codes)
"""


def test_a_spawned_process_ends_with_its_code_and_without_teardown(tmp_path):
    (tmp_path / "quick.py").write_text(QUICK)
    done = subprocess.run([sys.executable, tmp_path / "quick.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["still an exception 9", "said goodbye"] * 2 + ["[0, 1]"], done.stderr
    assert done.stderr.count("ValueError: no") == 1


KNOWN = """
import os, subprocess
from unlearngate.server.contract.branches import ARCHITECTURE
from unlearngate.server.contract.options import OWN_GROUP_VARIABLE
from unlearngate.server.worker.plugin import register

os.environ[OWN_GROUP_VARIABLE] = "1"
register()
from vllm import ModelRegistry

def refuse(*args, **kwargs):
    raise AssertionError("another process is asked")

subprocess.run = refuse
found = ModelRegistry.models[ARCHITECTURE].inspect_model_cls()
print(found.architecture, found.is_text_generation_model, found.supports_pp)
"""


def test_our_servers_vllm_knows_the_served_class_without_another_process():
    done = subprocess.run([sys.executable, "-c", KNOWN], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["UnlearningForCausalLM True False"], done.stderr
