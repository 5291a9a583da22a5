"""A process of its own: it compiles what it is asked to, as the engine would, and can be killed while it does.

`python -m unlearngate.server.engine.compiling TOKENIZER VOCAB_SIZE` reads a JSON line {"kind": ..., "definition": ...}
at a time and answers each with a line. It begins with one when it is ready.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

from unlearngate.processes import end_with_parent

_LOWER_PRIORITY = 10  # who waits for tokens comes first


def main() -> None:
    """Answer until standard input ends."""
    end_with_parent(os.getppid())
    os.nice(_LOWER_PRIORITY)
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer, vocab_size = AutoTokenizer.from_pretrained(sys.argv[1]), int(sys.argv[2])
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    compile_as: dict[str, Any] = {
        "json": compiler.compile_json_schema,
        "regex": compiler.compile_regex,
        "grammar": compiler.compile_grammar,
        "structural_tag": compiler.compile_structural_tag,
    }
    _say("ready")
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        with suppress(Exception):  # the engine's own answer says why
            compile_as[asked["kind"]](asked["definition"])
        _say("done")


def _say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    main()
