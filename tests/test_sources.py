"""Citations such as "baron §5" and the lines of docs/sources.md that explain them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "docs/sources.md").read_text(encoding="utf-8")
FILES = ("projects/**/*.py", "configs/**/*.yaml", "tools/**/*.py", "datasets/*.*", "tests/**/*.py")
SECTION = r"§\d+(?:\.\d+)*"
CITATION = re.compile(rf"\b([a-z]\w*) ({SECTION}(?:, {SECTION})*)")
PAPER = re.compile(rf"\bCLIM paper {SECTION}")


LINES = {
    (part.partition("\n")[0], section)
    for part in SOURCES.split("\n## ")[1:]
    for section in re.findall(rf"^\| ({SECTION}) \|", part, flags=re.MULTILINE)
}
PATHS = sorted({path for pattern in FILES for path in ROOT.glob(pattern)} - {Path(__file__)})
PLACES = [
    (f"{path.relative_to(ROOT)}:{number}", line)
    for path in PATHS
    if path.suffix in {".py", ".yaml", ".md"}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    if "§" in line
]


def citations(text: str) -> list[tuple[str, str]]:
    """(name, section) of all that ``text`` cites, the paper's own sections left out."""
    found = CITATION.findall(PAPER.sub("", text))
    return [(name, section) for name, sections in found for section in sections.split(", ")]


def test_every_citation_has_its_line_and_every_line_is_cited():
    assert citations("(detic §2, §5; baron §9)") == [("detic", "§2"), ("detic", "§5"), ("baron", "§9")]
    assert citations("(CLIM paper §3.3, clip_fvlm §2.1)") == [("clip_fvlm", "§2.1")]
    assert not [(place, one) for place, text in PLACES for one in citations(text) if one not in LINES]
    assert LINES == {one for _, text in PLACES for one in citations(text)} and len(LINES) > 20


def test_every_section_sign_belongs_to_a_citation():
    """One form everywhere: "baron §5", "baron §5, §7" or "CLIM paper §3.2"."""
    assert not [place for place, text in PLACES if "§" in CITATION.sub("", PAPER.sub("", text))]
