"""How bytes are written for people, and text of unknown origin made harmless for a terminal.

It does not know where the words go: errors, tables, pages and terminals all use it.
"""

import re

# C0 without \t and \n, DEL, C1, and the marks that reorder the letters around them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def size(value_bytes: float) -> str:
    """``612 MiB`` or ``1.2 GiB``."""
    mib = value_bytes / 2**20
    return f"{mib:,.0f} MiB" if mib < 1000 else f"{mib / 1024:,.1f} GiB"


def printable(text: str) -> str:
    """``text`` with its control characters as visible signs; newline and tab stay.

    An escape sequence that a model or a file name contains is then read, not obeyed.
    """
    return _UNSAFE.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """``text`` for a message: printable, its line breaks shown as signs too."""
    return printable(text).replace("\n", "\u240a").replace("\t", " ")


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
