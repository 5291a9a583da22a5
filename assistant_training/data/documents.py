"""The text of a document as it arrives with a request: plain text, Markdown, HTML or PDF."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from unlearngate.errors import DataError

_FORMATS = "expected plain text in UTF-8, Markdown, HTML or PDF"
# What a page has beside its text.
_NOT_TEXT = ["script", "style", "template", "noscript", "svg", "nav", "header", "footer", "aside", "form", "head"]
_BLOCKS = [
    *("p", "div", "section", "article", "main", "br", "hr", "li", "tr", "table", "blockquote", "pre", "figcaption"),
    *(f"h{level}" for level in range(1, 7)),
]
_HTML = re.compile(r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)


def read_document(path: Path) -> str:
    """A document's text: paragraphs with an empty line between them, no markup.

    A PDF and a whole HTML page are known by how they begin, parts of a page by `.html` or `.htm`, Markdown by `.md` or
    `.markdown`; all else is plain text. Of a page, scripts, styles, menus, headers and footers are left out.

    Raises: DataError naming the file: it cannot be read, holds no text, is encrypted, or is of another kind.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if raw.startswith(b"%PDF-"):
        text, why = _of_pdf(path), "its pages are pictures; have them read first, for instance by `ocrmypdf IN OUT`"
    else:
        text, why = _of_text(path, _decoded(path, raw)), "the file is empty, or has nothing but markup"
    text = _paragraphs(text)
    if not any(map(str.isalnum, text)):
        raise DataError(f"{path}: holds no text: {why}")
    return text


def _decoded(path: Path, raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    if b"\0" in raw:
        raise DataError(f"{path}: is no text; {_FORMATS}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 (byte {error.start}: 0x{raw[error.start]:02x}); save it as UTF-8, for instance by "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error


def _of_text(path: Path, text: str) -> str:
    suffix = path.suffix.lower()
    if suffix in (".html", ".htm", ".xhtml") or _HTML.match(text):
        return _of_html(text)
    return _of_markdown(text) if suffix in (".md", ".markdown") else text


def _of_html(page: str) -> str:
    from bs4 import BeautifulSoup
    from bs4.element import PreformattedString

    soup = BeautifulSoup(page, "html.parser")
    for element in soup.find_all(_NOT_TEXT):
        element.decompose()
    for text in soup.find_all(string=True):
        if isinstance(text, PreformattedString):  # a comment, a doctype
            text.extract()
        elif text.find_parent("pre") is None:  # line ends in the source are spaces
            text.replace_with(re.sub(r"\s+", " ", text))
    for element in soup.find_all(["td", "th"]):
        element.insert_after(" ")
    for element in soup.find_all(_BLOCKS):
        element.insert_before("\n\n")
        element.insert_after("\n\n")
    return soup.get_text()


def _of_markdown(text: str) -> str:
    from markdown_it import MarkdownIt

    blocks = []
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        if block.type == "inline":
            parts = [part for part in block.children or () if part.type != "html_inline"]
            blocks.append("".join("\n" if part.type.endswith("break") else part.content for part in parts))
        elif block.type in ("fence", "code_block"):
            blocks.append(block.content)
        elif block.type == "html_block":
            blocks.append(_of_html(block.content))
    return "\n\n".join(blocks)


def _of_pdf(path: Path) -> str:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{path}: is encrypted; save it without a password (`qpdf --decrypt IN OUT`)")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except (PyPdfError, ValueError, KeyError, RecursionError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as PDF ({error})") from error


def _paragraphs(text: str) -> str:
    """Lines without control characters and spaces at their ends; one empty line where there are several."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    lines = (line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
