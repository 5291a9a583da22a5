"""What tokens write inside JSON's strings, where a line break is an escape with a letter in it."""

from __future__ import annotations

import codecs
import re

from unlearngate.passages import letters
from unlearngate.server.worker.spelling import Spelling

_HEX = re.compile(r"[0-9a-fA-F]{0,4}")
_NO_LETTERS = "nrtbf"


class JsonSpelling(Spelling):
    """As `Spelling`, but an escape writes the character that it stands for. What is unfinished may begin with one."""

    ENDS_ESCAPES = rb"\nrtbfu0123456789abcdefABCDEF"

    def _decode(self, pending: bytes, written: bytes) -> tuple[str, bytes]:
        raw = pending + written
        text, used = codecs.utf_8_decode(raw, "ignore", False)
        shown, at = [], 0
        while (escape := text.find("\\", at)) >= 0:
            shown.append(text[at:escape])
            kind = text[escape + 1 : escape + 2]
            if kind == "u":
                digits = _HEX.match(text, escape + 2)[0]  # type: ignore[index]
                at = escape + 2 + len(digits)
                if len(digits) == 4:
                    shown.append(chr(int(digits, 16)))
                elif at == len(text):
                    return letters("".join(shown)), text[escape:].encode() + raw[used:]
            elif not kind:
                return letters("".join(shown)), text[escape:].encode() + raw[used:]
            else:
                at = escape + 2
                shown.append("" if kind in _NO_LETTERS else kind)
        return letters("".join(shown) + text[at:]), raw[used:]
