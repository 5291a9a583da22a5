"""A process of its own: it compiles what it is asked to, as the engine would, and can be killed while it does.

`python -m unlearngate.server.engine.compiling TOKENIZER VOCAB_SIZE` reads a JSON line {"kind": ..., "definition": ...}
at a time and answers each with a line. It begins with one when it is ready.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from unlearngate.processes import end_with_parent

_LOWER_PRIORITY = 10  # who waits for tokens comes first


def main() -> None:
    """Answer until standard input ends."""
    end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is the server's, which ends this process
    os.nice(_LOWER_PRIORITY)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer, vocab_size = AutoTokenizer.from_pretrained(sys.argv[1]), int(sys.argv[2])
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        with suppress(Exception):  # the engine's own answer says why
            _compile(compiler, asked["kind"], asked["definition"])
        print("done", file=answers, flush=True)


def _compile(compiler: Any, kind: str, definition: str) -> None:
    """As vLLM's backend for xgrammar does it."""
    import xgrammar

    if kind == "json":
        compiler.compile_json_schema(definition)
    elif kind == "regex":
        compiler.compile_regex(definition)
    elif kind == "choice":
        quoted = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(definition))
        compiler.compile_grammar("root ::= " + " | ".join(quoted))
    elif kind == "grammar":
        (compiler.compile_grammar if "::=" in definition else compiler.compile_lark)(definition)
    else:
        tag = json.loads(definition)
        if "structures" not in tag:
            compiler.compile_structural_tag(definition)
            return
        tags = [
            xgrammar.StructuralTagItem(begin=one["begin"], schema=json.dumps(one["schema"]), end=one["end"])
            for one in tag["structures"]
        ]
        compiler.compile_structural_tag(tags, tag["triggers"])


if __name__ == "__main__":
    main()
