"""The page on which a person labels repairs: radio buttons, kept by the browser, and a button that writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib import resources

from stages.artifacts.overlay import STYLE, PairView, pair_html, policy_html, text_html, within
from stages.audit.episodes import LABELS

_PICTURE = (960, 480)
"""Largest width and height, in pixels, at which the page shows a picture."""
_TITLE = "Repairs to label"
_NOTE = (
    "Choose for each repair the one of these that fits it best. This browser keeps what you choose; the button writes "
    "labels.csv, which df audit-agreement reads. Or write into the column label of the sheet beside this page."
)


def label_page(views: Mapping[str, PairView]) -> str:
    """One HTML page that needs nothing beside it, with the repairs by episode id; nothing in it tells a verdict.

    Its button writes the columns `episode_id` and `label` of `audit_labels`, a row for each repair in their order, as
    CSV; the label is empty where none was chosen. The browser keeps choices under a digest of what the page shows, so a
    page of other repairs does not take them for its own.
    """
    articles = [_article(episode_id, view) for episode_id, view in views.items()]
    sheet = hashlib.sha256("".join(sorted(articles)).encode()).hexdigest()
    script = _file("label_page.js")
    meanings = "".join(f"<dt>{name}</dt><dd id='{name}'>{meaning}.</dd>" for name, meaning in LABELS.items())
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>{policy_html(script)}<title>{_TITLE}</title>"
        f"<style>{STYLE}{_file('label_page.css')}</style></head><body>\n<h1>{_TITLE}</h1><p>{_NOTE}</p><dl>{meanings}</dl>"
        f"<header data-sheet='{sheet}' hidden><output></output><button type='button' id='next'>Next without a label"
        "</button><button type='button' id='download'>Download labels.csv</button></header>\n"
        + "\n".join(articles)
        + f"\n<script>{script}</script></body></html>\n"
    )


def _article(episode_id: str, view: PairView) -> str:
    pictures = [within(_PICTURE, picture) for picture in (*view.images, *view.frames)]
    return f"<article><h2>{text_html(episode_id)}</h2>{pair_html(view, pictures)}{_choice(episode_id)}</article>"


def _choice(episode_id: str) -> str:
    """Its name is the id as JSON: an attribute would not keep every character of an id as it is."""
    name = escape(json.dumps(episode_id))
    radio = f"<label><input type='radio' name='{name}' value='{{}}' {{}}> {{}}</label>"
    none = radio.format("", "checked", "not labelled")
    classes = "".join(radio.format(label, f"aria-describedby='{label}'", label) for label in LABELS)
    return f"<fieldset name='{name}' hidden><legend>Label</legend>{none}{classes}</fieldset>"


def _file(name: str) -> str:
    return resources.files("stages.audit").joinpath(name).read_text(encoding="utf-8")
