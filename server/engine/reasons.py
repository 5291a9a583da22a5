"""Why the engine or a compiler of definitions refuses a request, as one sentence.

vLLM asks several compilers, and passes on what the last one said: with its own name for the definition, over several
lines, or without the reason, which is then the error's cause. An unexpected failure has no words at all.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from unlearngate.server.engine.compat import VLLMError, VLLMValidationError

# Where a definition can be in a request.
_PLACES = {
    "json": "the JSON schema (response_format, structured_outputs.json or a tool's parameters)",
    "regex": "structured_outputs.regex",
    "choice": "structured_outputs.choice",
    "grammar": "structured_outputs.grammar",
    "structural_tag": "the structural tag (response_format, structured_outputs.structural_tag or a strict tool)",
}
_OF_A_COMPILER = re.compile("Grammar error|Failed to |Invalid .*specification|The provided JSON schema")
# Before the reason: its file and line within the compiler, or in the grammar that vLLM made of the definition.
_NOT_THE_REASON = re.compile(
    r"^(Grammar error: |Failed to [\w ]+: |Invalid [\w ]+(specification|error): "
    r"|(\[[\d:]+\] )?\S+\.cc:\d+: |at \d+\(\d+\): )+"
)
_RUST = re.compile(r"^error: (.+)$", re.MULTILINE)


def reason_of(error: BaseException) -> str:
    """The reason in one line: of the error, or of its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, ValidationError):
        return f"{error.errors()[0]['loc'][0]} has the wrong type"
    text = str(error).strip()
    said = _RUST.search(text)
    line = said[1] if said else text.partition("\n")[0]
    return _NOT_THE_REASON.sub("", line) or type(error).__name__


def explained(error: VLLMError, params: Any) -> VLLMError | None:
    """The error in words that say what is wrong; None if its own do.

    Args:
        error: what vLLM raised when it was asked to generate.
        params: vLLM's sampling parameters of the request.
    """
    if not str(error):
        if isinstance(error.__cause__, OverflowError):
            return VLLMValidationError("a number of this request does not fit the 64 bits that the engine reads")
        return type(error)(f"the engine could not run this request: {reason_of(error)}")
    if params.structured_outputs and _OF_A_COMPILER.match(str(error)):
        kind = next((kind for kind in _PLACES if getattr(params.structured_outputs, kind)), "json")
        return VLLMValidationError(f"{_PLACES[kind]} cannot be used: {reason_of(error)}")
    return None
