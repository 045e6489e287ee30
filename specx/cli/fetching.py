"""Downloads on stderr, whatever command they happen in."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from specx.cli.console import Screen
from specx.cli.progress import LogProgress, Progress

if TYPE_CHECKING:
    from specx.checkpoints.download import Download, Notice


@contextlib.contextmanager
def downloads_shown(screen: Screen, progress: Progress | None = None) -> Iterator[None]:
    """Show downloads in this block: by ``progress``, or in lines above a command's own display."""
    from specx.checkpoints.download import Notice, listening

    shown = progress or (Progress() if screen.quiet else LogProgress(screen.note, ""))

    def hear(event: "Download | Notice") -> None:
        if isinstance(event, Notice):
            screen.note(event.text)
        else:
            shown.download(event)

    with listening(hear):
        yield
