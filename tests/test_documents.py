"""README, contributing page and pages of the studies: their size, their links, their outline."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "examples").glob("*/README.md"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *STUDIES,
    ROOT / "tests" / "benchmarks" / "README.md",
]
NO_STUDY = {"quickstart", "write_your_own"}
OUTLINE = (
    "**Question.**", "**Data and licence.**", "**Seeds.**", "**Hardware", "```bash",
    "\n| ", "## What fell short", "## Reference",
)  # fmt: skip
README_BYTES = 9_000
PICTURE_BYTES = 150_000


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_stays_short():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_of_the_project(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_the_contributing_page_names_files_that_are_there():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:ppl_med|models|inference|tests|examples)/[\w./]+)`", text)
    assert len(files) > 10
    assert not [file for file in files if not (ROOT / file).exists()]


def test_every_study_has_a_page_that_the_readme_names():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - NO_STUDY
    assert {page.parent.name for page in STUDIES} == scripts
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"](examples/{script}/README.md)" in readme for script in scripts)


@pytest.mark.parametrize("page", STUDIES, ids=name)
def test_a_study_keeps_the_outline(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert [part for part in OUTLINE if part not in text] == []


def test_pictures_are_small():
    pictures = [*(ROOT / ".pictures").iterdir(), *(ROOT / "examples").rglob("*.png")]
    assert not [name(picture) for picture in pictures if picture.stat().st_size > PICTURE_BYTES]
