"""What a terminal shows: no control character of a model, and a live line that leaves no trace."""

import io
import re
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from specx.cli import progress
from specx.cli.format import closing_line, fold, seconds, tab_separated
from specx.cli.progress import LOG_S, LogProgress, SharedProgress, column_after
from specx.core.stats import GenerationStats, Memory, Prefill, StepStats
from specx.errors import one_line, printable, size

WIDTH = 24
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
SHOWN_TEXT = st.text(alphabet="ab \n\t日本é-", max_size=40)
CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\x1b.|.", re.DOTALL)


class Emulator(io.StringIO):
    """As much of a terminal as ``SharedProgress`` uses; ``rows`` grows instead of scrolling.

    A full row holds its wrap back until the next character (``column == width``), as real
    terminals do; moving the cursor forgets that, and wiping then takes the last character along.
    """

    def __init__(self, width=WIDTH):
        super().__init__()
        self.width = width
        self.rows = [[]]
        self.row = self.column = 0
        self.saved = (0, 0)

    def write(self, text):
        for code in CODES.findall(text):
            if code.startswith("\x1b"):
                self._obey(code)
            elif code == "\n":
                self._down()
                self.column = 0
            elif code == "\r":
                self.column = 0
            elif code == "\t":
                self.column = min((self.column // 8 + 1) * 8, self.width - 1)
            else:
                self._put(code)
        return len(text)

    def _obey(self, code):
        if code.endswith("m"):
            return
        self.column = min(self.column, self.width - 1)
        if code == "\x1bD":
            self._down()
        elif code == "\x1b[A":
            self.row -= 1
        elif code == "\x1b7":
            self.saved = (self.row, self.column)
        elif code == "\x1b8":
            self.row, self.column = self.saved
        else:
            assert code == "\x1b[J"
            del self.rows[self.row + 1 :]
            del self.rows[self.row][self.column :]

    def _down(self):
        self.row += 1
        while len(self.rows) <= self.row:
            self.rows.append([])

    def _put(self, char):
        cells = cell_len(char)
        if self.column + cells > self.width:
            self._down()
            self.column = 0
        row = self.rows[self.row]
        row.extend(" " * (self.column + cells - len(row)))
        row[self.column : self.column + cells] = [char, *[""] * (cells - 1)]
        self.column += cells

    @property
    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip()


def some_stats(new_tokens=12):
    steps = [StepStats(nodes=9, depth=3, accepted=a, new_tokens=a + 1) for a in (3, 1, 2)]
    return GenerationStats(
        prompt_tokens=8192,
        new_tokens=new_tokens,
        prefill_target_s=3.0,
        prefill_draft_s=0.2,
        decode_s=0.5,
        steps=steps,
        memory=Memory(peak_bytes=1288490189),
    )


@given(st.lists(SHOWN_TEXT, max_size=12), st.booleans())
@settings(max_examples=300)
def test_the_live_line_leaves_the_text_as_if_it_had_never_been(pieces, draws_every_step):
    plain, shared = Emulator(), Emulator()
    console = Console(file=shared, force_terminal=True, width=WIDTH, color_system=None)
    with mock.patch.object(progress, "REDRAW_S", 0.0 if draws_every_step else 0.1):
        display = SharedProgress(console, "specx")
        for piece in pieces:
            plain.write(piece)
            display.before_text(piece)
            shared.write(piece)
            display.step(some_stats())
        display.close()
    assert shared.text == plain.text
    assert (shared.row, shared.column) == (plain.row, plain.column)


def test_the_live_line_stands_below_the_text():
    terminal = Emulator(60)
    display = SharedProgress(Console(file=terminal, force_terminal=True, width=60), "specx")
    display.before_text("The report")
    terminal.write("The report")
    display.step(some_stats())
    text, line = terminal.text.split("\n")
    assert text == "The report"
    assert line.startswith("12 tok · 22.0 tok/s · 3.00 tok/step = 2.00 accepted + 1")
    terminal.write("^C")  # the terminal's own echo, at the cursor
    display.close()
    assert terminal.text == "The report"


@given(SHOWN_TEXT, st.integers(0, WIDTH))
def test_columns_are_counted_as_a_terminal_does(text, column):
    terminal = Emulator()
    terminal.write("x" * column + text)
    assert column_after(text, column, WIDTH) == terminal.column


@given(ANY_TEXT)
def test_nothing_printable_commands_a_terminal(text):
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert printable(shown) == shown
    assert "\n" not in one_line(text)


def test_ordinary_text_is_shown_as_it_is():
    text = "Größe\t日本語 👩‍👩‍👧 [bold]x[/bold]\n"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch):
    lines, now = [], [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = LogProgress(lines.append, "specx")
    for second in range(35):
        now[0] = float(second)
        log.prefill(Prefill(second * 100, 4000, second + 0.5))
    assert len(lines) == 35 // LOG_S
    assert lines[0] == "prefill 1,000 of 4,000 tokens (95.2 tok/s)"
    now[0] = 60.0
    log.step(some_stats())
    assert "accepted" in lines[-1]
    log.busy("checking against plain decoding")  # the line before is not old yet
    assert "accepted" in lines[-1]
    now[0] = 90.0
    log.busy("checking against plain decoding")
    assert lines[-1] == "checking against plain decoding …"


def test_the_closing_line():
    assert closing_line(some_stats(), "not checked") == (
        "8,192 prompt + 12 new · prefill 3.2 s (2,560 tok/s) · decode 0.50 s (22.0 tok/s)"
        " · 3.00 tok/step = 2.00 accepted + 1 · peak 1.2 GiB · equal to plain: not checked"
    )
    early = closing_line(GenerationStats(prompt_tokens=9), "not checked", "interrupted")
    assert early == "9 prompt + 0 new · prefill 0.0 s · equal to plain: not checked · interrupted"


def test_lines_fold_between_their_parts():
    line = closing_line(some_stats(), "not checked")
    rows = fold(line, 60)
    assert max(map(len, rows)) <= 60
    assert " · ".join(rows) == line


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0 s"), (0.04, "0.04 s"), (3.21, "3.2 s"), (125.9, "2 min 05 s")]
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_sizes_and_tables():
    assert size(612 << 20) == "612 MiB"
    assert size(3 << 29) == "1.5 GiB"
    assert tab_separated(("a", "b"), [("x\ty", "z\nw")]) == "a\tb\nx y\tz w\n"
