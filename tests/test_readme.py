"""What the pages say of columns, recipe fields and endpoints is what the code says, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from stages.artifacts.columns import TABLES
from stages.recipe import Recipe, field_names
from stages.reference import with_reference
from stages.sections import EndpointSection

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "stages" / "REFERENCE.md"
PAGES = sorted(
    page.relative_to(ROOT)
    for page in [
        ROOT / "README.md",
        *(p for d in ("data", "stages", "tests", ".github") for p in (ROOT / d).rglob("*.md")),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST_README = 200


def anchors(page: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_up_to_date():
    text = REFERENCE.read_text(encoding="utf-8")
    assert text == with_reference(text), "run: python -m stages.reference stages/REFERENCE.md"


def test_the_reference_names_every_column_and_every_recipe_field():
    text = REFERENCE.read_text(encoding="utf-8")
    assert all(f"| `{column.name}` |" in text for table in TABLES for column in table.columns)
    names = list(field_names(Recipe))
    fields = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    assert [name for name in fields if f"| `{name}` |" not in text] == []


def test_every_option_of_an_endpoint_is_named():
    text = (ROOT / "stages" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| option of `reward.judge`") : text.index("The judge is sent")]
    assert [name for name in EndpointSection.model_fields if f"`{name}`" not in table] == []


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
