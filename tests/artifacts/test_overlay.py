"""The page of pairs: marked tokens and only those stand out, and nothing from outside becomes markup."""

import re
from html.parser import HTMLParser

from PIL import Image

from stages.artifacts.overlay import MarkedToken, PairView, overlay_page

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
        if tag == "p":
            self.side = dict(attributes).get("class", "question")
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


def page(**changes):
    values = {
        "question": "How many?",
        "answer": "7",
        "images": [Image.new("RGB", (3, 2))],
        "error": tokens("The", " sum", " is", " 8", marked=(1, 3)),
        "repair": tokens("The", " sum", " is", " 7", marked=(3,)),
    }
    return overlay_page([PairView(**values | changes)])


def test_marked_tokens_and_only_those_are_marked():
    found = Page(page())
    assert found.marked == {"error": [" sum", " 8"], "repair": [" 7"]}
    assert found.text["error"].removeprefix("error") == "The sum is 8"
    assert found.text["repair"].split("\n")[0].removeprefix("repair") == "The sum is 7"


def test_nothing_from_outside_becomes_markup():
    plain = Page(page()).tags
    hostile = page(
        question=SCRIPT,
        answer=SCRIPT,
        error=tokens(SCRIPT, "</mark>", "<b>", "8", marked=(1, 3)),
        repair=tokens("The", "<img onerror=x>", "is", "7", marked=(1,)),
    )
    assert "<script" not in hostile
    found = Page(hostile)
    assert found.tags == plain
    assert found.marked == {"error": ["</mark>", "8"], "repair": ["<img onerror=x>"]}
    assert found.text["question"].startswith(f"{SCRIPT} ({SCRIPT})")


def test_images_are_in_the_page_itself():
    sources = re.findall(r"(?:src|href)='([^']*)'", page(images=[Image.new("RGB", (3, 2))] * 2))
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
