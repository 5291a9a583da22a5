"""The tests' reader of event streams."""

import httpx

from support.events import events_of


def test_a_line_ends_with_a_line_feed_alone():
    text = 'data: {"text":"a\u2028b\x0bc\x85d\r"}'
    parts = [part.encode() for part in (text[:9], text[9:] + "\n\nda", "ta: [DONE]\n\n")]
    assert list(events_of(httpx.Response(200, content=iter(parts)))) == [text, "data: [DONE]"]
