"""The page of pairs: marked tokens and only those stand out, and nothing from outside becomes markup."""

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from stages.artifacts.overlay import MarkedToken, PairView, Sample, overlay_page

SCRIPT = "<script>alert('x')</script>&"


class Page(HTMLParser):
    """Tags in order, text by the class of its paragraph, and what is inside marks."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.marked, self.side = [], {}, {}, ""
        self.in_mark = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("p", "h1", "h2"):
            self.side = dict(attributes).get("class", "question" if tag == "p" else tag)
        self.in_mark = tag == "mark"

    def handle_endtag(self, tag):
        if tag == "mark":
            self.in_mark = False

    def handle_data(self, data):
        self.text[self.side] = self.text.get(self.side, "") + data
        if self.in_mark:
            self.marked.setdefault(self.side, []).append(data)


def tokens(*texts, marked=()):
    return [MarkedToken(text, index in marked) for index, text in enumerate(texts)]


FACTS = {"kind": "sum", "edit cost": "0.125", "reward of the error": "0", "reward of the repair": "1"}


def page(title="p3, sample 2", facts=FACTS, **changes):
    values = {
        "question": "How many?",
        "answer": "7",
        "images": [Image.new("RGB", (3, 2))],
        "frames": [],
        "error": tokens("The", " sum", " is", " 8", marked=(1, 3)),
        "repair": tokens("The", " sum", " is", " 7", marked=(3,)),
    }
    return overlay_page([Sample(title, PairView(**values | changes), facts)])


def test_marked_tokens_and_only_those_are_marked():
    found = Page(page().partition("<article>")[2])
    assert found.marked == {"error": [" sum", " 8"], "repair": [" 7"]}
    assert found.text["error"].removeprefix("error") == "The sum is 8"
    assert found.text["repair"].split("\n")[0].removeprefix("repair") == "The sum is 7"


def test_a_pair_has_its_id_its_facts_and_the_page_a_legend():
    found = Page(page())
    assert found.text["h2"] == "p3, sample 2"
    assert found.text["facts"].strip() == "kind sum; edit cost 0.125; reward of the error 0; reward of the repair 1"
    assert "Red: what the mask marks in the error. Green: what it marks in the repair." in found.text["question"]


def test_nothing_from_outside_becomes_markup():
    plain = Page(page()).tags
    hostile = page(
        title=SCRIPT,
        facts={"kind": SCRIPT},
        question=SCRIPT,
        answer=SCRIPT,
        error=tokens(SCRIPT, "</mark>", "<b>", "8", marked=(1, 3)),
        repair=tokens("The", "<img onerror=x>", "is", "7", marked=(1,)),
    )
    assert "<script" not in hostile
    found = Page(hostile)
    assert found.tags == plain
    found = Page(hostile.partition("<article>")[2])
    assert found.marked == {"error": ["</mark>", "8"], "repair": ["<img onerror=x>"]}
    assert found.text["question"].startswith(f"{SCRIPT} ({SCRIPT})")


def test_frames_are_behind_the_images_and_no_larger_than_needed():
    frames = [Image.new("RGB", (640, 480), (index, 0, 0)) for index in range(3)]
    sources = re.findall(r"src='data:image/png;base64,([^']*)'", page(frames=[*frames, Image.new("RGB", (8, 6))]))
    shown = [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]
    assert [image.size for image in shown] == [(3, 2), (149, 112), (149, 112), (149, 112), (8, 6)]
    assert [image.getpixel((0, 0))[0] for image in shown[1:4]] == [0, 1, 2]
    assert frames[0].size == (640, 480)


def test_images_are_in_the_page_itself():
    sources = re.findall(r"(?:src|href)='([^']*)'", page(images=[Image.new("RGB", (3, 2))] * 2))
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
