"""HTML, and what DOCX and EPUB contain of it, to blocks. Parsed by selectolax (extra ``docs``)."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from specx.documents.blocks import Block, one_spaced
from specx.errors import DocumentError

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_NO_TEXT = frozenset(
    ("head", "script", "style", "noscript", "template", "svg", "math", "nav", "iframe", "object",
     "canvas", "select", "textarea", "button", "-comment", "!doctype")
)  # fmt: skip
_INLINE = frozenset(
    ("-text", "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del",
     "dfn", "em", "font", "i", "img", "ins", "kbd", "label", "mark", "q", "ruby", "rp", "rt", "s",
     "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr")
)  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CLOSED_BY_OTHERS = frozenset(
    ("p", "li", "td", "th", "tr", "dt", "dd", "tbody", "thead", "tfoot", "option", "html", "head",
     "body", "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source",
     "track", "wbr")
)  # fmt: skip
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,40})")
_MOST_NESTED = 2000  # the parser's time grows with the square


def html_blocks(text: str, what: str) -> Iterator[Block]:
    """The readable blocks of a page. Raises ``DocumentError`` for a page that is built to hang."""
    from selectolax.lexbor import LexborHTMLParser

    _check_nesting(text, what)
    tree = LexborHTMLParser(text)
    body = tree.body or tree.root
    if body is not None:
        yield from _Reader().read(body)


class _Reader:
    """Collects inline text until a block begins or ends."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._cells: list[str] = []
        self._level = self._pre = self._rows = 0

    def read(self, body: "LexborNode") -> Iterator[Block]:
        for node, begins in _walk(body):
            tag = node.tag or ""
            if tag == "-text":
                self._pieces.append(node.text_content or "")
            elif tag == "br":
                self._pieces.append("\n" if self._pre else " ")
            elif tag not in _INLINE:
                yield from self._border(tag, begins)
        yield from self._flush()

    def _border(self, tag: str, begins: bool) -> Iterator[Block]:
        """A block begins or ends here."""
        if tag in ("td", "th") and self._rows:
            self._cells += [] if begins else [one_spaced("".join(self._pieces))]
            self._pieces.clear()
            return
        if self._rows and tag != "tr":
            self._pieces.append(" ")  # paragraphs within a cell stay on its row
            return
        yield from self._flush()
        if tag == "tr":
            self._rows += 1 if begins else -1
            if not begins and any(self._cells):
                yield Block(" | ".join(self._cells), is_row=True)
            self._cells = []
        elif tag == "pre":
            self._pre += 1 if begins else -1
        elif tag == "li" and begins:
            self._pieces.append("- ")
        self._level = _HEADINGS.get(tag, 0) if begins else 0

    def _flush(self) -> Iterator[Block]:
        text = "".join(self._pieces)
        text = text.strip("\n").rstrip() if self._pre else one_spaced(text)
        self._pieces.clear()
        if text and text != "-":
            yield Block(text, self._level)


def _walk(root: "LexborNode") -> Iterator[tuple["LexborNode", bool]]:
    """Nodes below ``root`` in order, each when it begins and, with children, when it ends."""
    node = root.child
    while node is not None:
        yield node, True
        if node.child is not None and node.tag not in _NO_TEXT:
            node = node.child
            continue
        if node.tag not in ("-text", "br"):
            yield node, False
        while node is not None and node.next is None:
            node = node.parent
            if node is None or node.mem_id == root.mem_id:
                return
            yield node, False
        node = node.next if node is not None else None


def _check_nesting(text: str, what: str) -> None:
    depth = 0
    for close, tag in _TAG.findall(text):
        if tag.lower() not in _CLOSED_BY_OTHERS:
            depth = max(0, depth - 1) if close else depth + 1
            if depth > _MOST_NESTED:
                reason = f"{_MOST_NESTED:,} elements are open at once"
                raise DocumentError(f"{what} is nested too deeply", reason=reason)
