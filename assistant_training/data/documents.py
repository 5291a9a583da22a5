"""The text of a document as it arrives with a request: plain text, Markdown, HTML or PDF."""

from __future__ import annotations

import codecs
import re
import unicodedata
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from unlearngate.errors import DataError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

_FORMATS = "expected plain text in UTF-8, Markdown, HTML or PDF"
# What a page has beside its text. Neither `head` nor `form`: some pages leave the one open, or are in the other whole.
_NEVER_TEXT = ["script", "style", "title"]
_HIDDEN = ["template", "noscript", "svg", "input", "select", "option", "button", "textarea"]
_AROUND = ["header", "nav", "aside", "footer"]
_BLOCKS = [
    *("p", "div", "section", "article", "main", "br", "hr", "li", "tr", "table", "blockquote", "pre", "figcaption"),
    *("dt", "dd", "form", "fieldset"),
    *_AROUND,
    *(f"h{level}" for level in range(1, 7)),
]
_HTML = re.compile(r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
# A mail, also as part of a mailbox: headers, one of which says that it is MIME.
_MAIL = re.compile(rb"\s*(From [^\n]*\n)?([\w-]+:[^\n]*\n([ \t][^\n]*\n)*)*?mime-version:", re.IGNORECASE)
_MAIL_SUFFIXES = (".eml", ".mbox", ".mht", ".mhtml")


def read_document(path: Path) -> str:
    """A document's text: paragraphs with an empty line between them, no markup.

    A PDF and a whole HTML page are known by how they begin, parts of a page by `.html` or `.htm`, Markdown by `.md` or
    `.markdown`; all else is plain text. Of a page, scripts, styles, and menus, headers and footers without paragraphs
    are left out.

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
    if raw.startswith(b"{\\rtf"):
        raise DataError(f"{path}: is RTF; save it as plain text in UTF-8 or as PDF")
    if path.suffix.lower() in _MAIL_SUFFIXES or _MAIL.match(raw):
        raise DataError(f"{path}: is a mail with its headers and encodings; save its text as plain text in UTF-8")
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
    for element in soup.find_all(_NEVER_TEXT):
        element.decompose()
    inner = _without_surroundings(soup)  # unless that takes the most of the page away
    if 2 * _letters(inner) >= _letters(soup):
        soup = inner
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


def _without_surroundings(soup: BeautifulSoup) -> BeautifulSoup:
    """A page without controls, menus, headers and footers.

    Those that hold text stay, because a page may leave them open, and so does the header of an article: its title.
    """
    inner = copy(soup)
    around = [
        element
        for element in inner.find_all(_AROUND)
        if not element.find(["p", "article", "main"])
        and not (element.name == "header" and element.find_parent(["article", "main"]))
    ]
    for element in [*around, *inner.find_all(_HIDDEN)]:
        element.decompose()
    return inner


def _letters(soup: BeautifulSoup) -> int:
    return sum(map(str.isalnum, soup.get_text()))


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
    from pypdf.errors import DependencyError

    try:
        pages = _pages(path)
    except DependencyError as error:
        raise DataError(
            f"{path}: is encrypted, and to read it takes the package cryptography: `pip install cryptography`, or save "
            "it without a password (`qpdf --decrypt IN OUT`)"
        ) from error
    except Exception as error:  # of a damaged file any
        raise DataError(
            f"{path}: cannot be read as PDF ({str(error) or type(error).__name__}); print it into a new PDF, or save "
            "it as plain text"
        ) from error
    if pages is None:
        raise DataError(f"{path}: is encrypted; save it without a password (`qpdf --decrypt IN OUT`)")
    return "\n\n".join(pages)


def _pages(path: Path) -> list[str] | None:
    """The text of a PDF's pages; None if it needs a password."""
    from pypdf import PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        return None
    return [page.extract_text() for page in reader.pages]


def _paragraphs(text: str) -> str:
    """Lines without control characters, soft hyphens and spaces at their ends; one empty line where there are several.

    A form feed, a vertical tab and U+0085 end a line. A word that a soft hyphen parts at a line's end is whole again.
    """
    text = re.sub(r"\r\n|[\r\f\v\x85]", "\n", text)
    text = re.sub(r"\xad(?:[ \t]*\n[ \t]*)?", "", text)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    lines = (line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
