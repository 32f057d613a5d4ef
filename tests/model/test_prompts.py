"""What the models are asked, down to the ids."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from stages.artifacts.problems import Problem
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import DataError
from stages.model.batches import encode_prompt
from stages.model.prompts import continuation_prompt, policy_prompt, repair_prompt
from stages.repair.repairs import Draft, Repairer
from stages.sections import PromptSection

STYLE = PromptSection(
    instruction="Think.", repair_instruction="Repair this draft:", reference_instruction="Right is {reference}."
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture
def spelled_out(tiny_vlm):
    """Ids of `digits`, one a letter, which the tokenizer itself would never give."""
    ids = tiny_vlm.tokenizer.convert_tokens_to_ids(list("digits"))
    assert tiny_vlm.decode(ids) == "digits"
    assert tiny_vlm.tokenizer("digits")["input_ids"] != ids
    return ids


def test_policy_prompt_is_the_chat_template_s(tiny_vlm, problems):
    images = problems[0].images + problems[1].images
    prompt = policy_prompt(tiny_vlm.processor, STYLE, Problem.asking("How many?", images))
    assert prompt.text == f"<|im_start|>user\n{IMAGE}{IMAGE}How many?\nThink.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.images == images
    bare = policy_prompt(tiny_vlm.processor, STYLE.model_copy(update={"instruction": ""}), Problem.asking("How many?"))
    assert bare.text == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"


class Decoded(Sequence):
    """An image that tells how often it is looked at."""

    def __init__(self, image):
        self.image = image
        self.times = 0

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if index:
            raise IndexError
        self.times += 1
        return self.image


def test_a_prompt_decodes_an_image_once(tiny_vlm, problems):
    images = Decoded(problems[0].images[0])
    problem = Problem.asking("How many?", images)
    policy_prompt(tiny_vlm.processor, STYLE, problem)
    assert images.times == 1
    repair_prompt(tiny_vlm.processor, STYLE, problem, [], "71")
    assert images.times == 2


def test_repair_prompt_holds_the_draft_s_very_ids(tiny_vlm, problems, spelled_out):
    draft = [tiny_vlm.tokenizer.eos_token_id, *spelled_out, 100]
    prompt = repair_prompt(tiny_vlm.processor, STYLE, Problem.asking("How many?", problems[0].images), draft, "71")
    ids = encode_prompt(tiny_vlm, prompt).ids
    tail = tiny_vlm.tokenizer("\nRight is 71.<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    head = encode_prompt(tiny_vlm, replace(prompt, spliced_ids=(), tail="")).ids
    assert ids == head + draft + tail
    assert tiny_vlm.tokenizer.decode(head).endswith("<|vision_end|>How many?\nRepair this draft:\n")


def test_withheld_reference_leaves_no_trace(tiny_vlm, problems, spelled_out):
    engine = TransformersEngine(tiny_vlm, rows_per_batch=1)
    repairer = Repairer(engine, STYLE, reward=None, ledger=None)

    def prompt(answer, *, with_reference):
        draft = Draft(replace(problems[0], answer=answer), 0, [*spelled_out, tiny_vlm.end_ids[0]], "digits")
        return repairer.prompt(draft, with_reference=with_reference)

    assert prompt("71", with_reference=False) == prompt("82", with_reference=False)
    assert prompt("71", with_reference=True).tail.startswith("\nRight is 71.<|im_end|>")
    assert prompt("71", with_reference=False).tail == "<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("71", with_reference=True).spliced_ids == tuple(spelled_out)


def test_continuation_goes_on_where_the_response_was_cut(tiny_vlm, problems, spelled_out):
    prompt = policy_prompt(tiny_vlm.processor, STYLE, problems[0])
    encoded = encode_prompt(tiny_vlm, continuation_prompt(prompt, spelled_out))
    assert encoded.ids == encode_prompt(tiny_vlm, prompt).ids + spelled_out
    assert len(encoded.token_types) == len(encoded.ids)
    assert not any(encoded.token_types[-len(spelled_out) :])


@pytest.mark.parametrize(("question", "reference"), [("How \ue000 many?", "71"), ("How many?", "7\ue0001")])
def test_the_character_that_stands_for_the_draft_is_refused(tiny_vlm, question, reference):
    with pytest.raises(DataError, match=r"holds the private-use character U\+E000; take it out"):
        repair_prompt(tiny_vlm.processor, STYLE, Problem.asking(question), [5], reference)
