"""Citations such as "baron §5" and the lines of docs/sources.md that explain them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "docs/sources.md").read_text(encoding="utf-8")
FILES = ("projects/**/*.py", "configs/**/*.yaml", "tools/**/*.py", "datasets/*.*", "tests/**/*.py")
SECTION = r"§\d+(?:\.\d+)*"
CITATION = re.compile(rf"\b([a-z]\w*) ({SECTION}(?:, {SECTION})*)")
PAPER = re.compile(rf"\bCLIM paper {SECTION}")


def explained() -> set[tuple[str, str]]:
    """(name, section) of every line, as ("baron", "§5")."""
    lines = set()
    for part in SOURCES.split("\n## ")[1:]:
        name = part.partition("\n")[0]
        lines |= {(name, section) for section in re.findall(rf"^\| ({SECTION}) \|", part, flags=re.MULTILINE)}
    return lines


def places() -> list[tuple[str, str]]:
    """(path:line, text) of every line with a section sign in what the repository holds."""
    paths = {path for pattern in FILES for path in ROOT.glob(pattern)} - {Path(__file__)}
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in sorted(path for path in paths if path.suffix in {".py", ".yaml", ".md"})
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "§" in line
    ]


def citations(text: str) -> list[tuple[str, str]]:
    """(name, section) of all that ``text`` cites, the paper's own sections left out."""
    found = CITATION.findall(PAPER.sub("", text))
    return [(name, section) for name, sections in found for section in sections.split(", ")]


@pytest.mark.parametrize(
    "text, cited",
    [
        ("(baron §5)", [("baron", "§5")]),
        ("ovrcnn §1.2, §3.", [("ovrcnn", "§1.2"), ("ovrcnn", "§3")]),
        ("(detic §2, §5; baron §9)", [("detic", "§2"), ("detic", "§5"), ("baron", "§9")]),
        ("(CLIM paper §3.3, clip_fvlm §2)", [("clip_fvlm", "§2")]),
    ],
)
def test_what_counts_as_a_citation(text, cited):
    assert citations(text) == cited


def test_every_citation_has_its_line():
    lines = explained()
    assert len(lines) > 20
    unknown = [(place, one) for place, text in places() for one in citations(text) if one not in lines]
    assert not unknown


def test_every_section_sign_belongs_to_a_citation():
    """One form everywhere: "baron §5", "baron §5, §7" or "CLIM paper §3.2"."""
    stray = [place for place, text in places() if "§" in CITATION.sub("", PAPER.sub("", text))]
    assert not stray


def test_every_line_is_cited():
    assert explained() == {one for _, text in places() for one in citations(text)}
