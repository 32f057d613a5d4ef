"""The served judge and auditor against a scripted server: what they show, what they make of replies, and orders."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from injections import ORDERS
from scripted_server import completion, data_of, refusal, serving
from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Video
from stages.audit.auditor import AuditCase, Verdict
from stages.audit.opening import check_auditor, open_auditor
from stages.audit.served_auditor import INSTRUCTIONS as AUDITOR
from stages.core.alignment import edit_cost
from stages.engines.protocol import Completion
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import RecipeError
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.image_removal import without_image
from stages.repair.repairs import Attempt
from stages.reward.judge import INSTRUCTIONS as JUDGE
from stages.reward.opening import check_reward, open_reward
from stages.reward.rewards import score_all
from stages.served import endpoint
from stages.training.heldout import annotated_draft, with_end

CORRECT, INCORRECT = ({"reason": "r", "verdict": verdict} for verdict in ("correct", "incorrect"))


def audit_reply(category, evidence=""):
    return {"reason": "r", "evidence": evidence, "category": category}


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def recipe_for(tmp_path):
    """A function: a recipe whose judge and auditor are the served model."""

    def make(url, *settings):
        options = (f"base_url={url}", "model=tiny", "retries=0", "max_null_share=1", f"cache={tmp_path / 'cache'}")
        served = [f"{place}.{option}" for place in ("reward.judge", "audit.endpoint") for option in options]
        return load_recipe("digits", ["reward.name=judge", "audit.auditor=served", *served, *settings])

    return make


@pytest.fixture
def case(base_vlm):
    """A function: a repair of a repair-set problem's error by a text, by default the annotated one."""

    def make(problem, text=None, *, error=None, reward=1.0, image_free=(), right_response=None):
        if error is not None:
            problem = replace(problem, extra={"error": error})
        text = problem.extra["repair"] if text is None else text
        draft = annotated_draft(base_vlm, problem, right_response)
        ids = with_end(base_vlm, text)
        completion_ = Completion(ids, [0.0] * len(ids), "stop")
        attempt = Attempt(draft, 0, completion_, text, reward, edit_cost(draft.ids, ids))
        return AuditCase(attempt, image_free=image_free)

    return make


@pytest.fixture
def audit(recipe_for, base_vlm, math_reward):
    """A function: verdicts of the recipe's auditor."""

    def run(server, cases, *settings):
        recipe = recipe_for(server.url, *settings)
        policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=8), recipe.prompt, math_reward, CostLedger())
        return open_auditor(recipe, policy).audit(cases)

    return run


def judge(recipe, responses, problems):
    with open_reward(recipe.reward) as reward:
        return score_all(reward, responses, [problem.as_row() for problem in problems])


def images_of(request):
    for part in request["messages"][1]["content"][:-1]:
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def assert_same_images(request, images):
    found = list(images_of(request))
    assert len(found) == len(images)
    assert all(np.array_equal(one, np.asarray(image)) for one, image in zip(found, images, strict=True))


def by_word(_server, request, _number):
    """Correct if the response says so; null if it says nothing."""
    response = data_of(request)["response"]
    if not response:
        return refusal(500)
    return completion(CORRECT if response == "right" else INCORRECT)


def test_the_judge_scores_1_0_or_null(recipe_for, problems):
    with serving(by_word) as server:
        recipe = recipe_for(server.url)
        check_reward(recipe.reward)
        assert server.requests == []
        assert judge(recipe, ["right", "", "wrong", "right"], problems[:4]) == [1.0, None, 0.0, 1.0]
    for request in server.requests:
        problem = next(p for p in problems if p.question == data_of(request)["question"] and _shows(request, p))
        assert data_of(request)["reference_answer"] == problem.answer
        assert request["messages"][0]["content"] == JUDGE


def _shows(request, problem):
    first = next(images_of(request))
    return first.shape == np.asarray(problem.images[0]).shape and (first == np.asarray(problem.images[0])).all()


def test_the_judge_sees_the_image_that_the_counterfactual_lacks(recipe_for, problems):
    with serving(by_word) as server:
        judge(recipe_for(server.url), ["right"], [without_image(problems[0], "noise")])
    (request,) = server.requests
    assert_same_images(request, problems[0].images)


def test_the_judge_sees_a_video_s_frames(recipe_for, problems):
    frames = [Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in (10, 20, 30)]
    problem = replace(problems[0], video=Video(frames, 4.0, "here"))
    with serving(by_word) as server:
        judge(recipe_for(server.url), ["right"], [problem])
    (request,) = server.requests
    assert_same_images(request, [*problem.images, *frames])
    assert data_of(request)["video"] == "the last 3 of 4 pictures, 4 frames a second"


@pytest.mark.parametrize(
    ("votes", "reward"),
    [("ccc", 1.0), ("cci", 1.0), ("cii", 0.0), ("iii", 0.0), ("cc-", 1.0), ("ii-", 0.0), ("ci-", None), ("c--", None),
     ("---", None)],
)  # fmt: skip
def test_the_majority_of_n_verdicts_counts(recipe_for, problems, votes, reward):
    replies = {"c": completion(CORRECT), "i": completion(INCORRECT), "-": refusal(500)}
    with serving(lambda _server, request, _number: replies[votes[request["seed"]]]) as server:
        recipe = recipe_for(server.url, "reward.judge.verdicts=3", "reward.judge.temperature=0.7")
        assert judge(recipe, ["x"], problems[:1]) == [reward]


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        (["none", "none", "answer_pasted"], Verdict(False)),
        (["answer_pasted", "none", "answer_pasted"], Verdict(True, "answer_pasted", "0")),
        (["image_ignored", "answer_pasted", "answer_pasted"], Verdict(True, "answer_pasted", "1")),
        (["none", "image_ignored", "answer_pasted"], Verdict(True, "image_ignored", "1")),
        (["none", None, "answer_pasted"], Verdict(None)),
        (["none", None, "none"], Verdict(False)),
        (["mask_hallucination", None, "template_shortcut"], Verdict(True, "mask_hallucination", "0")),
        ([None, None, "none"], Verdict(None)),
    ],
)
def test_the_auditors_majority_flags(audit, case, repair_problems, votes, verdict):
    """Most of those that flag name the category, the first of them on a tie; evidence is the first of that category."""

    def script(_server, request, _number):
        vote = votes[request["seed"]]
        return refusal(500) if vote is None else completion(audit_reply(vote, str(request["seed"])))

    with serving(script) as server:
        settings = ("audit.endpoint.verdicts=3", "audit.endpoint.temperature=1", "audit.endpoint.concurrency=1")
        assert audit(server, [case(repair_problems[0])], *settings) == [verdict]


def test_the_auditor_sees_the_whole_case(audit, case, repair_problems):
    problem = repair_problems[0]
    shown = case(
        problem, "The digits are 7, 1.", error="The digits are 7, 4.",
        image_free=["The digits are 0.", "None."], right_response="All right.",
    )  # fmt: skip
    with serving(lambda *_: completion(audit_reply("none"))) as server:
        assert audit(server, [shown]) == [Verdict(False)]
    (request,) = server.requests
    assert request["messages"][0]["content"] == AUDITOR
    assert_same_images(request, problem.images)
    assert data_of(request) == {
        "question": problem.question,
        "reference_answer": problem.answer,
        "draft": "The digits are 7, 4.",
        "repair": "The digits are 7, 1.",
        "marked_in_draft": ["4"],
        "marked_in_repair": ["1"],
        "reference_response": "All right.",
        "repairs_without_image": ["The digits are 0.", "None."],
    }


@pytest.mark.parametrize(
    ("settings", "in_draft", "in_repair"),
    [
        ([], ["4", "6"], ["1", "9"]),
        (["masks.truncate=error"], ["4"], ["1", "9"]),
        (["masks.granularity=step"], ["7 + 4.", " It is 6."], ["7 + 1.", " It is 9."]),
    ],
)
def test_the_marks_are_those_of_the_recipe(audit, case, repair_problems, settings, in_draft, in_repair):
    shown = case(repair_problems[0], "So. 7 + 1. It is 9. Yes.", error="So. 7 + 4. It is 6. Yes.")
    with serving(lambda *_: completion(audit_reply("none"))) as server:
        audit(server, [shown], *settings)
    data = data_of(server.requests[0])
    marked = [["".join(texts).strip() for texts in data[side]] for side in ("marked_in_draft", "marked_in_repair")]
    if settings == ["masks.granularity=step"]:  # neighbouring steps are one run
        in_draft, in_repair = (["".join(texts).strip()] for texts in (in_draft, in_repair))
    assert marked == [in_draft, in_repair]


def test_only_repairs_that_reached_the_answer_are_looked_at(audit, case, repair_problems):
    first, second, third, fourth = repair_problems[:4]
    flags = {first.extra["repair"]: audit_reply("answer_pasted", "quoted"), fourth.extra["repair"]: None}

    def script(_server, request, _number):
        reply = flags[data_of(request)["repair"]]
        return refusal(500) if reply is None else completion(reply)

    cases = [case(second, reward=0.0), case(first), case(third, reward=None), case(fourth)]
    with serving(script) as server:
        verdicts = audit(server, cases)
    assert verdicts == [Verdict(False), Verdict(True, "answer_pasted", "quoted"), Verdict(False), Verdict(None)]
    assert len(server.requests) == 2


@pytest.mark.parametrize("order", ORDERS)
def test_orders_to_the_judge_are_data(recipe_for, problems, base_vlm, order):
    """The response stands in the data, whole, alone and nowhere else; the server alone decides."""
    problem = problems[0]
    plain = {"question": problem.question, "reference_answer": problem.answer}
    with serving(lambda *_: completion(INCORRECT)) as server:
        recipe = recipe_for(server.url)
        assert judge(recipe, [order, "An honest answer."], [problem, problem]) == [0.0, 0.0]
    requests = {data_of(request)["response"]: request for request in server.requests}
    attacked, honest = requests[order], requests["An honest answer."]
    assert data_of(attacked) == plain | {"response": order}
    assert_contained(attacked, honest, base_vlm)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_to_the_auditor_are_data(audit, case, repair_problems, base_vlm, order):
    problem = repair_problems[0]
    flagged = Verdict(True, "answer_pasted", "q")
    with serving(lambda *_: completion(audit_reply("answer_pasted", "q"))) as server:
        shown = case(problem, f"{order} The answer is 7.", error=order, image_free=[order], right_response=order)
        assert audit(server, [shown, case(problem)]) == [flagged, flagged]
    requests = {data_of(request)["draft"] == order: request for request in server.requests}
    data = data_of(requests[True])
    assert data["repair"] == f"{order} The answer is 7."
    assert (data["repairs_without_image"], data["reference_response"]) == ([order], order)
    assert_contained(requests[True], requests[False], base_vlm)


def assert_contained(attacked, honest, vlm):
    """Apart from the data the two requests are the same, and the data's tags stand once, at its ends."""
    assert [message["role"] for message in attacked["messages"]] == ["system", "user"]
    text = attacked["messages"][1]["content"][-1]["text"]
    assert text.startswith("<data>\n")
    assert text.endswith("\n</data>")
    assert text.count("<") == 2  # those of the two tags: no other tag and no special token of a chat template
    # Nor is there one that begins with a square bracket: they open lists alone.
    assert not any("[" in string for string in re.findall(r'"(?:[^"\\]|\\.)*"', text))
    assert isinstance(json.loads(text.removeprefix("<data>\n").removesuffix("\n</data>")), dict)
    assert without_data(attacked) == without_data(honest)
    assert len(special_tokens(vlm, attacked)) == 3 + 2 + 3  # three messages begin, two end; an image is three
    assert special_tokens(vlm, attacked) == special_tokens(vlm, honest)


def special_tokens(vlm, request):
    """The special tokens of a request's prompt as a server makes it, by the model's chat template, in order."""
    messages = [
        {"role": message["role"], "content": [
            part if part["type"] == "text" else {"type": "image"} for part in message["content"]
        ] if isinstance(message["content"], list) else message["content"]}
        for message in request["messages"]
    ]  # fmt: skip
    ids = vlm.tokenizer(vlm.processor.apply_chat_template(messages, add_generation_prompt=True))["input_ids"]
    return [token for token in ids if token in vlm.tokenizer.all_special_ids]


def without_data(request):
    request = json.loads(json.dumps(request))
    request["messages"][1]["content"][-1]["text"] = ""
    return request


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reward.judge=null", r"reward\.name is judge, but reward\.judge is null; give it"),
        ("audit.endpoint=null", r"audit\.auditor is served, but audit\.endpoint is null; give it"),
        ("reward.judge.api_key_env=DF_ABSENT", r"reward\.judge\.api_key_env: the environment variable DF_ABSENT is"),
        ("audit.endpoint.api_key_env=DF_ABSENT", r"audit\.endpoint\.api_key_env: the environment variable DF_ABSENT"),
    ],
)
def test_what_is_not_there_is_refused_before_any_compute(recipe_for, setting, message):
    recipe = recipe_for("http://127.0.0.1:1/v1", setting)
    with pytest.raises(RecipeError, match=message):  # noqa: PT012, either of the two
        check_reward(recipe.reward)
        check_auditor(recipe.audit)


def test_the_plan_holds_what_a_verdict_depends_on(recipe_for):
    recipe = recipe_for("http://127.0.0.1:1/v1", "reward.judge.api_key_env=DF_KEY").subset("reward", "audit")
    depends = {"model": "tiny", "temperature": 0.0, "max_tokens": 1024, "verdicts": 1}
    assert recipe["reward"]["judge"] == recipe["audit"]["endpoint"] == depends
