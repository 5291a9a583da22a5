"""Bodies that are no requests, each of which must be a 400 in OpenAI's shape: by name, bytes and content type."""

from __future__ import annotations

JSON = "application/json"
_ASKS = b'"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]'


def _with(more: bytes) -> bytes:
    return b"{" + _ASKS + b", " + more + b"}"


def _messages(content: bytes) -> bytes:
    return b'{"model": "demo", "messages": [{"role": "user", "content": ' + content + b"}]}"


GOOD = _with(b'"temperature": 0')
BODIES: dict[str, tuple[bytes, str]] = {
    **{
        name: (content, JSON)
        for name, content in {
            "nothing": b"",
            "half": GOOD[:-20],
            "more behind": GOOD + b"x",
            "two values": GOOD + GOOD,
            "a list": b"[" + GOOD + b"]",
            "a number": b"7",
            "a string": b'"' + b"a" * 100 + b'"',
            "null": b"null",
            "single quotes": GOOD.replace(b'"', b"'"),
            "a comment": _with(b'/* */ "n": 1'),
            "a trailing comma": GOOD[:-1] + b",}",
            "a control character": _messages(b'"\x01"'),
            "not UTF-8": _messages(b'"\xff\xfe"'),
            "an overlong byte": _messages(b'"\xc0\xaf"'),
            "UTF-16": GOOD.decode().encode("utf-16"),
            "UTF-32": GOOD.decode().encode("utf-32"),
            "a raw half pair": _messages(b'"\xed\xa0\x80"'),
            "an escaped half pair": _messages(b'"\\ud800"'),
            "a half pair to stop at": _with(b'"stop": ["\\uDFFF"]'),
            "a half pair as an id": _with(b'"request_id": "\\ud834"'),
            "a half pair as a key": _with(b'"\\ud834": 1'),
            "NaN": _with(b'"temperature": NaN'),
            "NaN as a bias": _with(b'"logit_bias": {"5": NaN}'),
            "NaN in a set": _with(b'"forget_sets": [{"name": "tobias-renkel", "weight": NaN}]'),
            "infinity": _with(b'"logit_bias": {"5": -Infinity}'),
            "infinity in digits": _with(b'"logit_bias": {"5": 1e999}'),
            "an integer of 5000 digits": _with(b'"seed": ' + b"9" * 5000),
            "an integer of 400 digits": _with(b'"temperature": ' + b"9" * 400),
            "an integer beyond 64 bits": _with(b'"seed": 9223372036854775808'),
            "more tokens than there are": _with(b'"max_tokens": 99999999999999999999'),
            "more choices than allowed": _with(b'"n": 129'),
            "lists to the end": b"[" * 200_000,
            "objects to the end": b'{"a":' * 200_000,
            "deep tools": _with(b'"tools": ' + b"[" * 900 + b"]" * 900),
            "deep messages": _messages(b"[" * 900 + b"]" * 900),
            "deep sets": _with(b'"forget_sets": ' + b"[" * 900 + b"]" * 900),
            "a million wrong messages": b'{"model": "demo", "messages": [' + b"1," * 10**6 + b"1]}",
            "wrong biases": _with(b'"logit_bias": {' + b",".join(b'"%d": "x"' % i for i in range(10**5)) + b"}"),
            "a set 20,000 times": _with(b'"forget_sets": [' + b'"tobias-renkel",' * 20_000 + b'"tobias-renkel"]'),
            "a long request id": _with(b'"request_id": "' + b"a" * 2**21 + b'"'),
        }.items()
    },
    "text": (GOOD, "text/plain"),
    "a form": (b"model=demo", "application/x-www-form-urlencoded"),
    "parts": (b"--x\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    "another kind of JSON": (GOOD, "application/vnd.api+json"),
    "no type": (GOOD, ""),
}
