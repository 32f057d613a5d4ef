"""Column layouts of published datasets, as data: which column is the question, the images, the answer, the choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AnswerForm = Literal["letter", "index", "text", "either"]
"""How an answer names one of the choices: its letter, its number from 0, its text, or letter or text."""


@dataclass(frozen=True)
class Layout:
    """Where a problem's parts stand in a row; a dotted name looks into a struct, as in `metadata.task`.

    `a|b` is the first of these columns that has a value, `a?` one that may be missing. Of a column of messages the
    question is what the user says, the answer what the assistant says in the end.
    """

    question: str = "question"
    images: tuple[str, ...] = ("images|image",)
    """One column of one image or a list; or several columns of one image each, the last ones null where unused."""
    answer: str = "answer"
    choices: tuple[str, ...] = ()
    """One column that holds a list, or a list written out as text; or several columns of one choice each."""
    kind: str | None = None
    id: str | None = None
    """None: ids are made from row numbers."""
    answer_form: AnswerForm = "either"
    answer_in_response: bool = False
    """The answer is a response, which states it in the end: in `<answer>` tags, in a box or after a cue."""
    choices_in_question: bool = False
    """The question lists its choices already, and a single letter as answer is one of them."""
    no_answer: tuple[str, ...] = ()
    """What stands for an answer that is withheld, beside null and the empty text."""
    notes: tuple[tuple[str, str], ...] = ()
    """(column, text): lines added to the question where the column has a value, which stands for `{}`."""
    empty_question: str | None = None
    """What to ask where the question stands in the picture only."""


PRESETS = {
    # hiyouga/geometry3k: https://huggingface.co/datasets/hiyouga/geometry3k (features in the card). The answer is the
    # right choice's text; the later columns id, choices and ground_truth are not needed, and older copies lack them.
    "geometry3k": Layout(question="problem"),
    # OpenGVLab/MMPR-Tiny, mmpr_tiny.parquet: verl's layout, as https://github.com/NVIDIA-NeMo/RL reads it. The images
    # are paths (MMPR-Tiny/images/…) from the file's folder, to be unpacked there from images.zip. The card lists other
    # columns (image, question, chosen, rejected).
    "mmpr-tiny": Layout(question="extra_info.question", answer="reward_model.ground_truth"),
    # AI4Math/MathVista: https://huggingface.co/datasets/AI4Math/MathVista (features in the card). `image` is a file
    # name. Answers of the split `test` are withheld. A unit and a number of decimals are part of what is asked.
    "mathvista": Layout(
        images=("decoded_image",),
        choices=("choices",),
        answer_form="text",
        kind="metadata.task",
        id="pid",
        notes=(("unit", "Unit: {}."), ("precision", "Decimal places: {}.")),
    ),
    # Lin-Chen/MMStar: https://huggingface.co/datasets/Lin-Chen/MMStar (features in the card). The question ends in
    # "Options: A: …, B: …".
    "mmstar": Layout(images=("image",), choices_in_question=True, kind="category", id="index"),
    # MMMU/MMMU: https://huggingface.co/datasets/MMMU/MMMU (features in the card; one config a subject). `options` is
    # a Python list written out as text. Answers of the split `test` are withheld.
    "mmmu": Layout(
        images=tuple(f"image_{number}" for number in range(1, 8)),
        choices=("options",),
        answer_form="letter",
        kind="subfield",
        id="id",
        no_answer=("?",),
    ),
    # AI4Math/MathVerse: https://huggingface.co/datasets/AI4Math/MathVerse (features in the card). The question ends in
    # "Choices: A:… B:…"; in the version Vision Only it is empty.
    "mathverse": Layout(
        images=("image",),
        choices_in_question=True,
        kind="problem_version",
        id="sample_index",
        empty_question="Answer the question in the image.",
    ),
    # MathLLMs/MathVision: https://huggingface.co/datasets/MathLLMs/MathVision (columns in the viewer and eval.yaml).
    # `image` is a file name; options may be mere letters, where the picture holds the choices.
    "mathvision": Layout(
        images=("decoded_image",), choices=("options",), answer_form="letter", kind="subject", id="id"
    ),
    # lmms-lab/ai2d: https://huggingface.co/datasets/lmms-lab/ai2d (features in the card). The answer is the choice's
    # number from 0, as text.
    "ai2d": Layout(images=("image",), choices=("options",), answer_form="index"),
    # ms-swift's own format: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html. Its GRPO rewards
    # compare with `solution`; without it the assistant's message is the reference.
    "ms-swift": Layout(
        question="messages|query",
        images=("images|image?",),
        answer="solution|messages|response",
        answer_in_response=True,
    ),
    # verl: https://verl.readthedocs.io/en/latest/preparation/prepare_data.html, as its examples write Parquet.
    "verl": Layout(question="prompt", images=("images?",), answer="reward_model.ground_truth", kind="data_source?"),
    # EasyR1: the keys of its config (prompt_key, answer_key, image_key) in https://github.com/hiyouga/EasyR1.
    "easyr1": Layout(question="problem|prompt", images=("images?",)),
    # LLaVA: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md. Ids may stand twice there.
    "llava": Layout(question="conversations", images=("image?",), answer="conversations", answer_in_response=True),
}
