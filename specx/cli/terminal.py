"""Plain text on a terminal: what may be written, and where the cursor stands afterwards.

Goes in: strings from models, documents and file names, none of them trusted. Comes out: strings
without control characters, and columns in terminal cells. It does not know Rich, files or models.
"""

import re

_NEWLINE = re.compile(r"\r\n")
# C0 without \t and \n, DEL, C1, and the marks that reorder the letters around them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` as a terminal may show it: control characters become visible signs.

    An escape sequence that a model wrote is then read, not obeyed. Newline and tab stay.
    """
    return _UNSAFE.sub(_picture, _NEWLINE.sub("\n", text))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """``text`` for a message: printable, with its line breaks shown as signs too."""
    return printable(text).replace("\n", "\u240a").replace("\t", " ")


def split_space(text: str) -> tuple[str, str]:
    """White space at the start of ``text``, which needs no line below it, and the rest."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def column_after(text: str, column: int, width: int) -> int:
    """The cursor's column after ``text`` (printable) was written at ``column``, 0 … ``width``.

    ``width`` itself means that the row is full and the terminal will wrap before the next cell.
    """
    from rich.cells import cell_len

    _, newline, rest = text.rpartition("\n")
    if newline:
        column = 0
    for char in rest:
        if char == "\t":
            column = min((column // 8 + 1) * 8, width - 1)
            continue
        cells = cell_len(char)
        column = cells if column + cells > width else column + cells
    return column
