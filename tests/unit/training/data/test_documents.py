"""Documents as they arrive: what is text comes out whole, what is not is left out, and what cannot be read is named."""

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.errors import DependencyError
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

MAIL = b"""Received: by mail.example.org
\tfor <ilva@example.org>
From: Ada <ada@example.org>
To: ilva@example.org
Subject: =?utf-8?q?F=C3=A4hre?=
Mime-Version: 1.0
Content-Transfer-Encoding: quoted-printable

caf=E9
"""


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pdf(path, *pages, password=None, algorithm="RC4-128"):
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
        writer.encrypt(password, algorithm=algorithm)
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
        ("a.txt", "Ilva\fBrandt\x0bhas\x85run\x07 the\r\nferry", "Ilva\nBrandt\nhas\nrun the\nferry"),
        ("a.txt", "the Ti\xadtanic, the Ti\xad \n tanic", "the Titanic, the Titanic"),
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


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<form action='/'><p>Ilva</p><input value='x'><select><option>no</select><button>no</button></form>", "Ilva"),
        ("<form>Ilva<textarea>no</textarea></form>", "Ilva"),
        ("<nav><a href='/'>Menu</a><p>Ilva has the ferry", "Menu\n\nIlva has the ferry"),
        ("<header><a href='/'>Logo</a><main>Ilva has the ferry</main>", "Logo\n\nIlva has the ferry"),
        ("<article><header><h1>Ilva</h1></header><p>The ferry</p></article>", "Ilva\n\nThe ferry"),
        ("<header><h1>no</h1></header><aside>no</aside><p>The ferry</p><footer>no</footer>", "The ferry"),
        ("<aside><p>Ilva</p></aside>The ferry", "Ilva\n\nThe ferry"),
        ("<nav><div>Ilva has run the ferry</div></nav><p>since 1987</p>", "Ilva has run the ferry\n\nsince 1987"),
        ("<noscript>Ilva has run the ferry", "Ilva has run the ferry"),
        ("<script>" + "var no;" * 99 + "</script><nav>no</nav>Ilva", "Ilva"),
        ("<dl><dt>Ilva</dt><dd>Brandt</dd></dl>", "Ilva\n\nBrandt"),
    ],
)
def test_what_stands_around_a_pages_text_never_takes_the_text_with_it(tmp_path, body, text):
    page = f"<html><head><title>no</title><body>{body}"  # without the tags that may be left out
    assert read_document(written(tmp_path, "page", page)) == text


def test_a_pdfs_pages_in_their_order(tmp_path):
    path = pdf(tmp_path / "letter", ["Ilva Brandt has run the ferry", "since 1987."], ["She lives in Morvik."])
    assert read_document(path).split() == "Ilva Brandt has run the ferry since 1987. She lives in Morvik.".split()
    for algorithm in ("RC4-128", "AES-128", "AES-256"):
        assert read_document(pdf(tmp_path / "open.pdf", ["Ilva"], password="", algorithm=algorithm)) == "Ilva"


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
        (rb"{\rtf1\ansi Ilva}", "is RTF; save it as plain text"),
        (MAIL, "is a mail with its headers and encodings; save its text"),
        (b"From ilva@example.org Mon Jan  1\r\nMIME-Version: 1.0\r\n\r\nIlva", "is a mail"),
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


def test_a_text_that_only_looks_like_a_mail_is_read(tmp_path):
    letter = "From: Ada\nTo: Ilva\nSubject: the ferry\n\nMIME-Version: what is that?"
    assert read_document(written(tmp_path, "letter.txt", letter)) == letter
    with pytest.raises(DataError, match="is a mail"):
        read_document(written(tmp_path, "letter.EML", letter))


def test_a_damaged_pdf_is_a_sentence_whatever_the_library_raises(tmp_path):
    whole = pdf(tmp_path / "letter.pdf", ["Ilva Brandt"]).read_bytes()
    for old in (b"/Pages", b"/Kids", b"/Resources", b"/Font", b"/Contents", b" 0 R", b"<<", b"endobj", b"/Length"):
        path = written(tmp_path, "damaged.pdf", whole.replace(old, b"[ /X"))
        try:
            read_document(path)
        except DataError as error:
            assert error.message.startswith(f"{path}: ")
    with pytest.raises(DataError, match=r"cannot be read as PDF \(.+\); print it into a new PDF"):
        read_document(written(tmp_path, "damaged.pdf", whole.replace(b"/Pages", b"/Ps")))


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (DependencyError("cryptography>=3.1 is required"), "`pip install cryptography`, or save it without a password"),
        (AttributeError("'NullObject' object has no attribute 'get'"), "cannot be read as PDF .'NullObject'"),
        (TypeError(), "cannot be read as PDF .TypeError."),
    ],
)
def test_any_error_of_the_pdf_library_is_a_sentence(tmp_path, monkeypatch, raised, sentence):
    path = pdf(tmp_path / "letter.pdf", ["Ilva"], password="", algorithm="AES-256")

    def decrypt(*_):
        raise raised

    monkeypatch.setattr(PdfReader, "decrypt", decrypt)
    with pytest.raises(DataError, match=sentence) as caught:
        read_document(path)
    assert caught.value.message.startswith(f"{path}: ")
