"""What the pages promise: links lead somewhere, rooms exist, the README stays one page."""

import re
from pathlib import Path

import pytest

from specx.preset.preset import available_presets

_ROOT = Path(__file__).parent.parent
_PAGES = [_ROOT / "README.md", _ROOT / "CHANGELOG.md", *sorted((_ROOT / "docs").glob("*.md"))]
_README_LINES = 200


def _read(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _anchors(page: Path) -> set[str]:
    """Fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_readme_is_one_page() -> None:
    assert len(_read("README.md").splitlines()) <= _README_LINES


def test_the_readme_names_every_preset() -> None:
    """Braces stand for several names, and a row may name a family and its endings."""
    section = _read("README.md").partition("## Models")[2].partition("**A pair of your own**")[0]
    words = " ".join(re.findall(r"`([^`]+)`", section)).split()
    stems = [word for word in words if not word.startswith("-")]
    endings = ["", *(word for word in words if word.startswith("-"))]
    named = {f"{name}{ending}" for stem in stems for name in _expanded(stem) for ending in endings}
    shipped = {entry.name for entry in available_presets() if entry.origin == "shipped"}
    assert shipped <= named


def _expanded(word: str) -> list[str]:
    """``a{b,c}`` as ``ab`` and ``ac``."""
    before, brace, rest = word.partition("{")
    if not brace:
        return [word]
    choices, _, after = rest.partition("}")
    return [f"{before}{choice}{after}" for choice in choices.split(",")]


def test_every_room_has_its_sentence() -> None:
    named = set(re.findall(r"^\| `([^`]+)/` \|", _read("docs/structure.md"), re.MULTILINE))
    assert all((_ROOT / room).is_dir() for room in named)
    rooms = {path.parent.name for path in (_ROOT / "specx").glob("*/__init__.py")}
    assert {f"specx/{room}" for room in rooms} <= named
