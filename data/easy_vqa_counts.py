"""What easy-VQA's questions tell of its pictures: the counts of "Why easy-VQA is not an example" in README.md.

python3 -m venv easy-vqa && easy-vqa/bin/pip install easy-vqa==1.0 && easy-vqa/bin/python data/easy_vqa_counts.py
"""

from __future__ import annotations

import re
from collections import defaultdict

from easy_vqa import get_test_image_paths, get_test_questions, get_train_image_paths, get_train_questions

SHAPES = {"circle", "rectangle", "triangle"}
COLOURS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}


def told(question: str, answer: str) -> set[str]:
    """The shape and colour that a question gives away with its answer."""
    words = set(re.findall(r"\w+", question))
    named = words & (SHAPES | COLOURS)
    if answer not in ("yes", "no"):
        return named | {answer}
    return named if (answer == "yes") != bool(words & {"not", "no"}) else set()


def main() -> None:
    """Print the counts."""
    train, test = get_train_questions(), get_test_questions()
    answers = train[1] + test[1]
    print("pictures", len(get_train_image_paths()) + len(get_test_image_paths()))
    print("questions", len(answers))
    print("answers", sorted(set(answers)))
    print(f"yes or no {sum(answer in ('yes', 'no') for answer in answers) / len(answers):.1%}")

    known = defaultdict(set, {image: set() for image in get_train_image_paths()})
    for question, answer, image in zip(*train, strict=True):
        known[image] |= told(question, answer)
    parts = [bool(found & SHAPES) + bool(found & COLOURS) for found in known.values()]
    for count, name in ((2, "shape and colour"), (1, "one of the two"), (0, "neither")):
        share = parts.count(count) / len(parts)
        print(f"training pictures whose questions tell {name}: {parts.count(count)} ({share:.1%})")


if __name__ == "__main__":
    main()
