"""Documents as they arrive: what is text comes out whole, what is not is left out, and what cannot be read is named."""

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from unlearngate.assistant_training.data.documents import read_document
from unlearngate.errors import DataError

PAGE = """<!-- saved --><!DOCTYPE html>
<html><head><title>No text</title><style>p {color: red}</style></head><body>
<nav><a href="/">Menu</a></nav>
<article><h1>The ferry of <i>Morvik</i></h1><p>Ilva Brandt has run
the ferry &amp; the inn since&nbsp;1987.<br>She said so.</p>
<script>var no = "text";</script><!-- nor this -->
<table><tr><th>Year</th><td>1987</td></tr></table><pre>a
  b</pre></article><footer>All rights reserved</footer></body></html>"""
MARKDOWN = """# The ferry of *Morvik*

Ilva Brandt has run the [ferry](https://example.org/ferry) & the inn
since **1987**.

- one `code`
- two <b>bold</b>

```
a
  b
```
"""


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pdf(path, *pages, password=None):
    """A PDF whose pages have these lines, or, for None, nothing but an empty page."""
    writer = PdfWriter()
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    for lines in pages:
        page = writer.add_blank_page(width=300, height=300)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
        )
        shown = DecodedStreamObject()
        shown.set_data("".join(f"BT /F1 9 Tf 9 {250 - 20 * i} Td ({t}) Tj ET " for i, t in enumerate(lines)).encode())
        page[NameObject("/Contents")] = writer._add_object(shown)
    if password is not None:
        writer.encrypt(password)
    writer.write(path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "Ilva Brandt.\r\n\r\n\r\n\r\n 1987 \n", "Ilva Brandt.\n\n1987"),
        ("a", "\ufeffИльва Брандт\u2028водит <b>паром</b>", "Ильва Брандт\u2028водит <b>паром</b>"),
        ("a.txt", "# not *Markdown*", "# not *Markdown*"),
        ("saved", PAGE, None),
        ("part.html", "<p>Ilva<p>Brandt</p><div><span>1987</span>.</div>", "Ilva\n\nBrandt\n\n1987."),
        ("a.md", MARKDOWN, None),
    ],
)  # fmt: skip
def test_text_without_its_markup(tmp_path, name, content, text):
    found = read_document(written(tmp_path, name, content))
    if text is not None:
        assert found == text
        return
    flat = " ".join(found.split())
    assert flat.startswith("The ferry of Morvik Ilva Brandt has run the ferry & the inn since 1987.")
    assert flat.endswith("a b") and "\n\na\nb" in found
    assert not any(left in flat for left in ("Menu", "No text", "rights", "var", "nor this", "example.org", "<", "*"))


def test_a_pdfs_pages_in_their_order(tmp_path):
    path = pdf(tmp_path / "letter", ["Ilva Brandt has run the ferry", "since 1987."], ["She lives in Morvik."])
    assert read_document(path).split() == "Ilva Brandt has run the ferry since 1987. She lives in Morvik.".split()
    assert read_document(pdf(tmp_path / "open.pdf", ["Ilva"], password="")) == "Ilva"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no text: the file is empty"),
        (b" \n\xef\xbb\xbf", "holds no text"),
        (b"<html><head><title>x</title></head></html>", "holds no text: the file is empty, or has nothing but markup"),
        (b"caf\xe9", r"is not UTF-8 \(byte 3: 0xe9\); save it as UTF-8"),
        ("Ilva".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"PK\x03\x04\0\0", "is no text; expected plain text in UTF-8, Markdown, HTML or PDF"),
        (b"%PDF-1.7\nnothing", "cannot be read as PDF"),
    ],
)
def test_what_has_no_text_is_named_with_what_to_do(tmp_path, content, sentence):
    path = written(tmp_path, "letter", content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_document(path)
    assert str(path) in caught.value.message


def test_a_scan_an_encrypted_pdf_and_no_file_are_named(tmp_path):
    with pytest.raises(DataError, match="its pages are pictures; have them read first"):
        read_document(pdf(tmp_path / "scan.pdf", []))
    with pytest.raises(DataError, match="is encrypted; save it without a password"):
        read_document(pdf(tmp_path / "locked.pdf", ["Ilva"], password="secret"))
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        read_document(tmp_path / "none.pdf")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        read_document(tmp_path)
