"""The page to label, in a real browser: by mouse and by keyboard, kept over a reload, and into `df audit-agreement`."""

import base64
import hashlib
import io
import re
import time

import pytest
from PIL import Image

from audited import IGNORED, PASTED, episode, rl_repair, write_problems
from browser import chromium, tab
from stages.artifacts.audit_labels import read_labels
from stages.artifacts.columns import AUDIT_AGREEMENT
from stages.artifacts.overlay import MarkedToken, PairView
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.audit.episodes import CLEAN, LABELS
from stages.audit.label_page import label_page
from stages.audit_agreement import AuditAgreement
from stages.audit_sample import TO_LABEL, AuditSample

in_a_browser = pytest.mark.skipif(
    chromium() is None, reason="NO CHROMIUM: the page to label was not tried in a browser"
)
NASTY = 'a",\r\n</fieldset><script>document.title = "owned"</script>\'"é'
VERDICTS = {"p0": CLEAN, "p1": CLEAN, "p2": PASTED, "p3": IGNORED, NASTY: PASTED}
"""Of the only repair of each problem."""
SETS = "[...document.querySelectorAll('fieldset')]"
TOLD = "document.querySelector('output').textContent"


def view(**changes):
    error, repair = [MarkedToken("8", True)], [MarkedToken("7", True)]
    return PairView(
        **{"question": "?", "answer": "7", "images": [], "frames": [], "error": error, "repair": repair} | changes
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """All repairs of `VERDICTS`, drawn to be labelled; the folder beside holds what `df audit-sample` was given."""
    folder = tmp_path_factory.mktemp("audit")
    rl_repair(folder / "rl", [episode(problem_id, verdict) for problem_id, verdict in VERDICTS.items()])
    problems = write_problems(folder / "problems.parquet", VERDICTS)
    execute(AuditSample(folder / "rl", problems, len(VERDICTS), False, seed=0), folder / "sample")
    return folder / "sample"


@pytest.fixture(scope="module")
def page(sample):
    with tab() as opened:
        opened.call("Emulation.setFocusEmulationEnabled", enabled=True)
        opened.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(sample.parent))
        opened.open(sample / TO_LABEL / "page.html")
        yield opened


def radio(problem_id, label):
    """JavaScript that finds a button."""
    episode_id, place = f"0/{problem_id}/1/2", ["", *LABELS].index(label)
    return f"{SETS}.find((set) => JSON.parse(set.name) === {episode_id!r}).elements[{place}]"


def chosen(page):
    """Labels by episode id, in the order of the page."""
    return dict(page.run(f"{SETS}.map((set) => [JSON.parse(set.name), set.querySelector(':checked').value])"))


def downloaded(page, folder):
    page.run("document.querySelector('#download').click()")
    file = folder / "labels.csv"
    for _ in range(100):
        if file.is_file():
            return file
        time.sleep(0.1)
    raise AssertionError(f"no {file} after ten seconds")


@in_a_browser
def test_labels_by_mouse_and_by_keyboard_are_kept_and_come_back(page, sample):
    assert page.run(TOLD) == "0 of 5 labelled"
    page.run(radio("p0", CLEAN) + ".click()")
    page.run(radio(NASTY, PASTED) + ".click()")
    page.run(radio("p1", "") + ".focus()")
    for _ in range(2):
        page.press("ArrowRight")
    assert page.run(TOLD) == "3 of 5 labelled"
    labels = {f"0/{name}/1/2": "" for name in VERDICTS}
    labels |= {"0/p0/1/2": CLEAN, "0/p1/1/2": [*LABELS][1], f"0/{NASTY}/1/2": PASTED}
    assert chosen(page) == labels
    page.open(sample / TO_LABEL / "page.html")
    assert (chosen(page), page.run(TOLD)) == (labels, "3 of 5 labelled")


@in_a_browser
def test_a_key_leads_from_the_button_to_the_next_one_without_a_label(page):
    page.run("document.querySelector('#next').focus()")
    page.press("Enter")
    unlabelled = page.run("document.activeElement.name")
    assert unlabelled == page.run(
        "[...document.querySelectorAll('fieldset')].find((set) => set.elements[0].checked).name"
    )


@in_a_browser
def test_what_the_button_writes_is_what_the_agreement_reads(page, sample, tmp_path):
    """Two clean repairs and two pasted ones; a person takes one of each for the other, and leaves the fifth out."""
    for name, label in {"p0": CLEAN, "p1": PASTED, "p2": CLEAN, "p3": "", NASTY: PASTED}.items():
        page.run(radio(name, label) + ".click()")
    labels = downloaded(page, sample.parent)
    assert [label.episode_id for label in read_labels(labels)] == list(chosen(page))
    manifest = execute(AuditAgreement(sample.parent / "rl", labels), tmp_path / "out").manifest
    assert (manifest["rows_in"], manifest["rows_out"], manifest["dropped"]) == (5, 4, {"not_filled_in": 1})
    rows = iterate_rows(tmp_path / "out" / f"{AUDIT_AGREEMENT.name}.parquet", AUDIT_AGREEMENT)
    table = {row["measure"]: row["value"] for row in rows if row["section"] == "overall"}
    assert [table[name] for name in ("both", "auditor alone", "label alone", "neither")] == [1, 1, 1, 1]
    assert (table["agreement"], table["kappa"]) == (0.5, 0)


@in_a_browser
def test_another_sample_has_labels_of_its_own(page, tmp_path):
    (tmp_path / "other.html").write_text(label_page({"0/p0/1/2": view()}), encoding="utf-8")
    page.open(tmp_path / "other.html")
    assert page.run(TOLD) == "0 of 1 labelled"


@in_a_browser
def test_a_browser_that_keeps_nothing_is_told_of(page, sample):
    stop = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=stop)["identifier"]
    page.open(sample / TO_LABEL / "page.html")
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    page.run(radio("p0", CLEAN) + ".click()")
    assert page.run(TOLD) == "1 of 5 labelled; this browser keeps no labels, so download them before you leave"


@in_a_browser
def test_every_button_has_a_name_and_a_meaning_and_no_text_became_a_script(page):
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    radios = [node for node in tree if node.get("role", {}).get("value") == "radio"]
    assert len(radios) == len(VERDICTS) * (1 + len(LABELS))
    meanings = {node["name"]["value"].strip(): node.get("description", {}).get("value") for node in radios}
    assert meanings == {"not labelled": None} | {label: f"{meaning}." for label, meaning in LABELS.items()}
    assert page.run("document.title") == "Repairs to label"
    assert page.errors == []


def test_only_the_script_of_the_page_may_run_and_nothing_is_loaded():
    found = label_page({"<script>": view(question="<script>alert(1)</script>")})
    (script,) = re.findall(r"<script>(.*?)</script>", found, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in found
    assert re.findall(r"(?:src|href)=", found) == []


def test_pictures_are_as_large_as_they_are_shown():
    found = label_page({"0/p/0/0": view(images=[Image.new("RGB", (2000, 300))], frames=[Image.new("RGB", (640, 480))])})
    sources = re.findall(r"src='data:image/png;base64,([^']*)'", found)
    assert [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources] == [(960, 144), (640, 480)]
