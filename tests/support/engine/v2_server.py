"""`unlearngate` on vLLM's V2 runner: its Triton kernels and ours run in Triton's interpreter, where there is no GPU.

Run as a program, because the runner is chosen when vLLM is imported:  python -m support.engine.v2_server serve ...
"""

from support.engine.parity import interpret_triton

if __name__ == "__main__":
    interpret_triton()
    from unlearngate.cli import app

    app()
