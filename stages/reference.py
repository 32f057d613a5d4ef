"""Reference tables, generated from the column specs and the typed recipe.

    python -m stages.reference stages/REFERENCE.md

rewrites what stands between the `<!-- artifacts -->` and `<!-- recipe -->` marks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.artifacts.columns import TABLES, TableSpec
from stages.recipe import Recipe


def artifacts_markdown() -> str:
    """One table for each artifact: columns, types, meanings, nulls."""
    return "\n".join(_table(spec) for spec in TABLES)


def recipe_markdown() -> str:
    """One table of every recipe field: name, default, meaning."""
    rows = ["| field | default | meaning |", "|---|---|---|", *_fields(Recipe(), "")]
    return "\n".join(rows) + "\n"


def with_reference(text: str) -> str:
    """The text with both references between their marks brought up to date."""
    for mark, content in (("artifacts", artifacts_markdown()), ("recipe", recipe_markdown())):
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        text = pattern.sub(rf"\g<1>{content.replace(chr(92), chr(92) * 2)}\g<2>", text)
    return text


def _table(spec: TableSpec[Any]) -> str:
    head = f"**`{spec.name}`**, written by {spec.producer}, read by {spec.consumers}\n"
    rows = ["| column | type | meaning | null |", "|---|---|---|---|"]
    rows += [f"| `{c.name}` | {_type(str(c.type))} | {c.meaning} | {c.null or 'never'} |" for c in spec.columns]
    return "\n".join([head, *rows, ""])


def _type(arrow: str) -> str:
    return re.sub(r"struct<[^>]*>", "image", arrow).replace("element: ", "").replace("item: ", "")


def _fields(section: BaseModel, prefix: str) -> list[str]:
    rows = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            rows += _fields(value, f"{prefix}{name}.")
        else:
            default = ", ".join(value) if isinstance(value, dict) else str(value)
            rows.append(f"| `{prefix}{name}` | `{_escape(default)}` | {_escape(field.description or '')} |")
    return rows


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")
