"""What the README says of columns and recipe fields is what the code says."""

from pathlib import Path

from stages.artifacts.columns import TABLES
from stages.recipe import Recipe, field_names
from stages.reference import with_reference
from stages.sections import EndpointSection

README = Path(__file__).parents[1] / "README.md"


def test_the_reference_is_up_to_date():
    text = README.read_text(encoding="utf-8")
    assert text == with_reference(text), "run: python -m stages.reference README.md"


def test_the_reference_names_every_column_and_every_recipe_field():
    text = README.read_text(encoding="utf-8")
    assert all(f"| `{column.name}` |" in text for table in TABLES for column in table.columns)
    names = list(field_names(Recipe))
    fields = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    assert [name for name in fields if f"| `{name}` |" not in text] == []


def test_the_readme_names_every_option_of_an_endpoint():
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| option of `reward.judge`") : text.index("The judge is sent")]
    assert [name for name in EndpointSection.model_fields if f"`{name}`" not in table] == []
