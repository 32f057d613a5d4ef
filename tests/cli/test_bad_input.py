"""Bad input is told before any compute: one message with value, place and remedy, exit code 1, and nothing written."""

import io
import json
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from workspace import GROUP, OPTIONS, PAIR, PROBLEM, ROLLOUT, listing

from stages.artifacts.columns import GROUPS, PREFERENCES, PROBLEMS, REPAIR_SET, ROLLOUTS
from stages.artifacts.problems import encode_image
from stages.model.loading import load_codec
from stages.model.prompts import DRAFT_MARK

LONG = "7 " * 600  # more than the digits policy's 1,024 tokens
PREFERENCE = {name: PROBLEM[name] for name in ("problem_id", "question", "images", "answer", "kind")}
PREFERENCE |= {"chosen": "The answer is 7.", "rejected": "The answer is 6."}
INPUTS = {
    "problems": ("problems.parquet", PROBLEMS, PROBLEM),
    "repair_set": ("repair_set.parquet", REPAIR_SET, PAIR),
    "preferences": ("preferences.parquet", PREFERENCES, PREFERENCE),
    "rollouts": ("rollouts/rollouts-00000.parquet", ROLLOUTS, ROLLOUT),
    "groups": ("groups/groups-00000.parquet", GROUPS, GROUP),
}
LINES = OPTIONS | {
    "preferences": "--preferences preferences.parquet --repair-model model --policy model --recipe digits",
    "siblings": "--rollouts rollouts --problems problems.parquet --policy model --recipe digits "
    "--set masks.repairer=sibling",
}
COMMANDS = {"preferences": "build-masks", "siblings": "build-masks"}


@dataclass(frozen=True)
class Case:
    """A bad input of one command, and what is told."""

    command: str
    artifact: str
    rows: list
    told: list[str]
    """Value, place and remedy."""
    reason: str | None = None
    """What the bad row is counted as where it is dropped; None where nothing can be dropped."""
    settings: str = ""


def write(folder, artifact, rows, schema=None):
    """Rows as they are: the writer of the artifacts would refuse most of them."""
    name, spec, _ = INPUTS[artifact]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema or spec.schema()), folder / name)


def line(command, settings=""):
    return f"{COMMANDS.get(command, command)} {LINES[command]} --out out {settings}"


def refused(df, folder, told, *command):
    """The command's exit code is 1, stderr tells all of this in one line, and no file is there that was not before."""
    before = listing(folder)
    code, out, err = df(*command)
    assert (code, out) == (1, ""), err
    (message,) = err.splitlines()
    assert message.startswith("error: ")
    for words in told:
        assert words in message
    assert listing(folder) == before


def picture(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return {"bytes": b"\x89PNG\r\n\x1a\n" + body, "path": None}


def noise(width=40, height=40):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


TRUNCATED = {"bytes": picture(noise())["bytes"][:600], "path": None}
FRAMES = [encode_image(Image.new("RGB", (28, 28)))] * 2


def problem(problem_id="p1", **changes):
    return PROBLEM | {"problem_id": problem_id} | changes


def with_image(*images):
    return [PROBLEM, problem(images=list(images))]


def bad_problem(told, reason, command="rollout", **changes):
    """The second of two problems is bad."""
    return Case(command, "problems", [PROBLEM, problem(**changes)], told, reason)


NULL = "null; give it a value or drop the row"
UNDECODABLE = ["problem p1 image 0: cannot be decoded (", "; replace it or drop the row; --on-bad-row drop leaves bad"]
PROBLEM_CASES = {
    "no rows": Case("rollout", "problems", [], ["problems.parquet: no rows in it; problems is written by df import"]),
    "null id": bad_problem(["problems.parquet row 1: problem_id is ", NULL], "null_problem_id", problem_id=None),
    "null question": bad_problem(["parquet row 1: question is ", NULL], "null_question", question=None),
    "null answer": bad_problem(["parquet row 1: answer is ", NULL], "null_answer", "evaluate", answer=None),
    "null images": bad_problem(["parquet row 1: images is ", NULL], "null_images", images=None),
    "null image": bad_problem(["parquet row 1: images is ", NULL], "null_images", "repair-set sheet", images=[None]),
    "two of one id": bad_problem(["problem_id p0 stands twice; ", "make them unique"], "duplicate_id", problem_id="p0"),
    "empty answer": bad_problem(
        ["p1: the rules read no answer in ''", "state it bare"], "answer_unreadable", answer=""
    ),
    "answer of spaces": bad_problem(["p1: the rules read no answer in ' '"], "answer_unreadable", answer=" "),
    "empty box": bad_problem(
        ["p1: the rules read no answer in '\\\\boxed{}'", "state it bare"], "answer_unreadable", answer=r"\boxed{}"
    ),
    "open box": bad_problem(
        ["p1: the rules read no answer in '\\\\boxed{7'"], "answer_unreadable", "rl-repair", answer=r"\boxed{7"
    ),
    "an essay for an answer": bad_problem(
        ["read no answer in '7777", "(1001 characters, at most 1000)"],
        "answer_unreadable",
        "evaluate",
        answer="7" * 1001,
    ),
    "an answer of braces that do not close": bad_problem(
        ["p1: the rules read no answer in '\\\\sqrt{2'"], "answer_unreadable", answer=r"\sqrt{2"
    ),
    "a choice without text": bad_problem(
        ["p1: choices are ['17', None]; give each a text"], "choices_unreadable", answer="A", choices=["17", None]
    ),
    "an answer that is no choice": bad_problem(
        ["p1: answer 'C' is neither the letter nor the text of one of its 2 choices; state its letter"],
        "answer_not_a_choice",
        answer="C",
        choices=["17", "18"],
    ),
    "image of no bytes": bad_problem(
        ["problem p1 image 0: no bytes; embed the image"], "image_missing", images=[{"bytes": b"", "path": None}]
    ),
    "image of a path alone": bad_problem(
        ["problem p1 image 0: no bytes; embed the image in the file"],
        "image_missing",
        "rl-repair",
        images=[{"bytes": None, "path": "/etc/hostname"}],
    ),
    "truncated image": bad_problem(UNDECODABLE, "image_undecodable", images=[TRUNCATED]),
    "no image at all": bad_problem(UNDECODABLE, "image_undecodable", images=[{"bytes": b"GET / HTTP", "path": None}]),
    "HTML for an image": bad_problem(
        UNDECODABLE, "image_undecodable", "evaluate", images=[{"bytes": b"<html>404</html>", "path": None}]
    ),
    "PNG without pixels": bad_problem(UNDECODABLE, "image_undecodable", images=[png_header(4, 4)]),
    "zero-sized image": bad_problem(UNDECODABLE, "image_undecodable", images=[png_header(0, 4)]),
    "decompression bomb": bad_problem(
        ["problem p1 image 0: more than 50,000,000 pixels; shrink it or drop the row"],
        "image_over_limit",
        images=[png_header(20_000, 20_000)],
    ),
    "the second image is bad": bad_problem(
        ["problem p1 image 1: cannot be decoded"], "image_undecodable", images=[encode_image(noise()), TRUNCATED]
    ),
    "image like a ribbon": bad_problem(
        ["problem p1 image 0: Qwen2VLImageProcessor takes no image of 1x900 pixels (", "crop it or drop the row"],
        "image_size_refused",
        images=[encode_image(Image.new("RGB", (1, 900)))],
    ),
    "frames of two sizes": bad_problem(
        ["problem p1 frame 1: 40x40 pixels, frame 0 has 28x28; give them one size"],
        "frames_differ",
        video=[FRAMES[0], encode_image(noise())],
    ),
    "broken frame": bad_problem(
        ["problem p1 frame 1: cannot be decoded"], "image_undecodable", video=[FRAMES[0], TRUNCATED]
    ),
    "frame rate of nothing": bad_problem(
        ["problem p1: fps is nan; give the frames' rate"], "no_frame_rate", video=FRAMES, fps=float("nan")
    ),
    "question longer than the model": bad_problem(
        ["problem p1: its question has 12", " tokens, and the model takes 1024 in all; shorten it"],
        "question_too_long",
        question=LONG,
    ),
    "question with the draft's mark": bad_problem(
        ["problem p1: its text holds the private-use character U+E000; take it out"],
        "private_use_character",
        "rl-repair",
        question=f"Sum{DRAFT_MARK}?",
    ),
    "question with the image's token": bad_problem(
        ["problem p1: its question holds <|image_pad|>, which stands for pixels; take it out"],
        "vision_token",
        question="Sum <|image_pad|>?",
    ),
    "question with the video's token": bad_problem(
        ["problem p1: its question holds <|video_pad|>"], "vision_token", "evaluate", question="<|video_pad|>"
    ),
    "answer with the image's token": bad_problem(
        [r"problem p1: its answer holds <|image_pad|>"], "vision_token", "rl-repair", answer=r"\text{<|image_pad|>}"
    ),
    "answer with the draft's mark": bad_problem(
        ["problem p1: its text holds the private-use character U+E000; take it out"],
        "private_use_character",
        "rl-repair",
        answer=f"7{DRAFT_MARK}",
    ),
    "several bad rows": Case(
        "rollout",
        "problems",
        [PROBLEM, problem(images=[TRUNCATED]), problem("p2", answer=""), problem("p3", answer="")],
        ["problem p1 image 0: cannot be decoded", "(3 bad rows: answer_unreadable 2, image_undecodable 1)"],
    ),
    "only bad rows, dropped": Case(
        "rollout",
        "problems",
        [problem(images=[TRUNCATED]), problem("p2", answer="")],
        [
            "problems.parquet: no rows left (answer_unreadable 1, image_undecodable 1), the first: ",
            "problem p1 image 0",
        ],
        settings="--on-bad-row drop",
    ),
    "only bad rows before any image, dropped": Case(
        "evaluate",
        "problems",
        [problem(answer=None)],
        ["problems.parquet: no rows left (null_answer 1), the first: ", "row 0: answer is null"],
        settings="--on-bad-row drop",
    ),
}


def bad_pair(told, reason, artifact="repair_set", command="sft-repair", **changes):
    """The third of three annotated errors, or the second of two preferences, is bad."""
    good = [INPUTS[artifact][2], INPUTS[artifact][2] | {"problem_id": "p1"}]
    return Case(command, artifact, [*good, good[0] | {"problem_id": "p2"} | changes], told, reason)


PAIR_CASES = {
    "no repair set": Case("sft-repair", "repair_set", [], ["repair_set.parquet: no rows in it", "df repair-set read"]),
    "every pair held out": Case(
        "sft-repair",
        "repair_set",
        [PAIR],
        [
            "repair_set.parquet: nothing to train on, all 1 of its pairs are held out with sft.heldout_share 0.9, or "
            "show what these show; lower"
        ],
        settings="--set sft.heldout_share=0.9",
    ),
    "null repair": bad_pair(["repair_set.parquet row 2: repair is ", NULL], "null_repair", repair=None),
    "null error": bad_pair(["row 2: error is ", NULL], "null_error", command="rl-repair", error=None),
    "repair set of two equal ids": bad_pair(["problem_id p0 stands twice"], "duplicate_id", problem_id="p0"),
    "broken image of the repair set": bad_pair(
        ["problem p2 image 0: cannot be decoded"], "image_undecodable", images=[TRUNCATED]
    ),
    "error longer than the model": bad_pair(["problem p2: its error has 12"], "error_too_long", error=LONG),
    "repair longer than the model": bad_pair(
        ["problem p2: its repair has 12", "shorten it or drop the row"], "repair_too_long", "repair_set", repair=LONG
    ),
    "reference with the draft's mark": bad_pair(
        ["problem p2: its text holds the private-use character U+E000"], "private_use_character", preferred=DRAFT_MARK
    ),
    "error with the image's token": bad_pair(
        ["problem p2: its error holds <|image_pad|>, which stands for pixels; take it out"],
        "vision_token",
        error="6 <|image_pad|>",
    ),
    "repair with a token that is never sampled": bad_pair(
        ["problem p2: its repair holds <|vision_end|>"], "vision_token", repair="7 <|vision_end|>"
    ),
    "rejected with the video's token": bad_pair(
        ["problem p2: its rejected holds <|video_pad|>"],
        "vision_token",
        "preferences",
        "preferences",
        rejected="6 <|video_pad|>",
    ),
    "no preferences": Case("preferences", "preferences", [], ["preferences.parquet: no rows in it", "written by you"]),
    "null chosen": bad_pair(["row 2: chosen is ", NULL], "null_chosen", "preferences", "preferences", chosen=None),
    "rejected longer than the model": bad_pair(
        ["problem p2: its rejected has 12"], "rejected_too_long", "preferences", "preferences", rejected=LONG
    ),
    "preference of an unreadable answer": bad_pair(
        ["p2: the rules read no answer in '#### '"], "answer_unreadable", "preferences", "preferences", answer="#### "
    ),
}


def bad_rollout(told, reason, **changes):
    """The second of two problems has a bad rollout between two good ones."""
    bad = [ROLLOUT | {"problem_id": "p1", "sample": sample} for sample in range(3)]
    bad[1] |= changes
    place = ["rollouts-00000.parquet row 2 (p1, sample "] if reason != "null" else []
    return Case("build-masks", "rollouts", [ROLLOUT, *bad], [*place, *told], reason)


INF, NAN = float("inf"), float("nan")
ROLLOUT_CASES = {
    "no rollouts": Case("build-masks", "rollouts", [], ["rollouts: no rows in it; rollouts is written by df rollout"]),
    "fewer log-probs than ids": bad_rollout(
        ["1): 2 token ids, 1 sampler_logprobs; write it again"], "lengths_disagree", ids=[20, 21]
    ),
    "more log-probs than ids": bad_rollout(
        ["1): 1 token ids, 2 sampler_logprobs"], "lengths_disagree", sampler_logprobs=[-1.0, -1.0]
    ),
    "NaN log-prob": bad_rollout(["1): sampler_logprobs holds nan"], "not_finite", sampler_logprobs=[NAN]),
    "infinite log-prob": bad_rollout(["1): sampler_logprobs holds -inf"], "not_finite", sampler_logprobs=[-INF]),
    "NaN reward": bad_rollout(["1): reward is nan; score it again, or make it null"], "not_finite", reward=NAN),
    "infinite reward": bad_rollout(["1): reward is inf; score it again"], "not_finite", reward=INF),
    "token outside the vocabulary": bad_rollout(
        ["1): token id 355 is outside the vocabulary of 355; give the model"], "unknown_token", ids=[355]
    ),
    "negative token": bad_rollout(["1): token id -1 is outside the vocabulary"], "unknown_token", ids=[-1]),
    "token that stands for pixels": bad_rollout(
        ["1): token id 5 stands for pixels, which no response holds; drop the row"], "vision_token", ids=[5]
    ),
    "log-prob above zero": bad_rollout(
        ["1): sampler_logprobs holds 0.25, a probability above 1; write it again"],
        "logprob_above_zero",
        sampler_logprobs=[0.25],
    ),
    "sample below zero": bad_rollout(
        ["-5): sample is -5; count a problem's rollouts from 0"], "negative_sample", sample=-5
    ),
    "no tokens": bad_rollout(["1): it has no token ids; drop"], "no_tokens", ids=[], sampler_logprobs=[]),
    "response longer than the model": bad_rollout(
        ["1): 1024 token ids, and the model takes 1024 with the prompt; drop the row"],
        "response_too_long",
        ids=[20] * 1024,
        sampler_logprobs=[-1.0] * 1024,
    ),
    "sample that stands twice": bad_rollout(["0): it stands twice; keep one of them"], "duplicate_sample", sample=0),
    "rollout of a problem that is not there": Case(
        "build-masks",
        "rollouts",
        [ROLLOUT, ROLLOUT | {"problem_id": "gone"}],
        ["rollouts-00000.parquet row 1 (gone, sample 0): no problem gone; give the problems that the other inputs"],
        "unknown_problem",
    ),
    "group in two places": Case(
        "siblings",
        "rollouts",
        [ROLLOUT | {"problem_id": name, "sample": sample} for sample, name in enumerate(("p0", "p1", "p0", "p2"))],
        ["rollouts-00000.parquet row 2 (p0, sample 2): rows of this problem stand further up too; sort the rows"],
        "split_group",
    ),
    "null ids": Case(
        "build-masks", "rollouts", [ROLLOUT, ROLLOUT | {"sample": 1, "ids": None}], ["row 1: ids is ", NULL]
    ),
    "only bad rollouts, dropped": Case(
        "build-masks",
        "rollouts",
        [ROLLOUT | {"ids": [999]}],
        ["rollouts: no rows left (unknown_token 1), the first: ", "token id 999 is outside"],
        settings="--on-bad-row drop",
    ),
}


def bad_group(told, reason, row=3, **changes):
    """Two problems with a pair each; of the second one's the repair is bad."""
    rows = [GROUP | {"problem_id": name, "role": role} for name in ("p0", "p1") for role in ("error", "repair")]
    rows[row] |= changes
    return Case("train-policy", "groups", rows, [f"groups-00000.parquet row {row} (p1, sample ", *told], reason)


RIGHT = GROUP | {"role": "correct", "in_pair": False, "reward": 1.0, "mask": [False]}
WRONG = GROUP | {"in_pair": False, "mask": [False]}
NOTHING = "groups: no group has anything to train on ("
LOOK = "); raise rollout.samples_per_problem or look at the repairs"
GROUP_CASES = {
    "no groups": Case("train-policy", "groups", [], ["groups: no rows in it; groups is written by df build-masks"]),
    "mask shorter than the ids": bad_group(["0): 1 token ids, 0 mask; write it again"], "lengths_disagree", mask=[]),
    "too many old log-probs": bad_group(["1 token ids, 2 old_logprobs"], "lengths_disagree", old_logprobs=[-1.0] * 2),
    "too few sampler's log-probs": bad_group(["1 token ids, 0 sampler_"], "lengths_disagree", sampler_logprobs=[]),
    "infinite old log-prob": bad_group(["0): old_logprobs holds inf"], "not_finite", old_logprobs=[INF]),
    "NaN sampler's log-prob": bad_group(["0): sampler_logprobs holds nan"], "not_finite", sampler_logprobs=[NAN]),
    "too many entropies": bad_group(["1 token ids, 2 entropies"], "lengths_disagree", entropies=[5.0, 5.0]),
    "NaN image KL": bad_group(["0): image_kls holds nan"], "not_finite", image_kls=[NAN]),
    "old log-prob above zero": bad_group(["0): old_logprobs holds 5.0"], "logprob_above_zero", old_logprobs=[5.0]),
    "group's token that stands for pixels": bad_group(["token id 6 stands for pixels"], "vision_token", ids=[6]),
    "NaN reward of a group": bad_group(["0): reward is nan"], "not_finite", reward=NAN),
    "group's token outside the vocabulary": bad_group(["token id 100000 is outside"], "unknown_token", ids=[100_000]),
    "role of nobody": bad_group(["role is 'judge', not one of correct, error"], "unknown_role", role="judge"),
    "repair of another error": bad_group(["1): a repair that does not follow its error"], "stray_repair", sample=1),
    "group of a problem that is not there": Case(
        "train-policy",
        "groups",
        [GROUP, GROUP | {"problem_id": "gone"}],
        ["row 1 (gone, sample 0): no problem gone; give the problems"],
        "unknown_problem",
    ),
    "every rollout right": Case(
        "train-policy", "groups", [RIGHT, RIGHT | {"sample": 1}], [NOTHING, "all_correct 1", LOOK]
    ),
    "every rollout wrong": Case(
        "train-policy", "groups", [WRONG, WRONG | {"sample": 1}], [NOTHING, "no_repaired_error 1", LOOK]
    ),
    "no repair feasible": Case(
        "train-policy", "groups", [RIGHT, WRONG | {"sample": 1}], [NOTHING, "no_repaired_error 1", LOOK]
    ),
    "no pair for dpo": Case(
        "train-policy",
        "groups",
        [RIGHT, GROUP | {"sample": 1}],
        [NOTHING, "no_repaired_error 1", LOOK],
        settings="--set train.objective.algorithm=dpo",
    ),
    "group of one for dapo": Case(
        "train-policy",
        "groups",
        [WRONG],
        [NOTHING, "dynamic_sampling 1", LOOK],
        settings="--set train.objective.algorithm=dapo --set train.gate=none",
    ),
}
CASES = PROBLEM_CASES | PAIR_CASES | ROLLOUT_CASES | GROUP_CASES


@pytest.fixture
def folder(workspace):
    """The workspace with three problems and preferences."""
    write(workspace, "problems", [PROBLEM, problem(), problem("p2")])
    write(workspace, "preferences", [PREFERENCE])
    return workspace


@pytest.fixture(scope="module")
def codec(base_dir):
    return load_codec(base_dir)


@pytest.fixture
def opened(monkeypatch, codec):
    """The policy's processor, opened once for all tests that leave it as it is: to open it takes half a command."""
    monkeypatch.setattr("stages.engines.loading.load_codec", lambda *_given, **_settings: codec)


def test_texts_and_log_probs_at_the_bounds_are_no_fault(folder, df):
    """Other special tokens break nothing in a question; log-softmax rounds to a little above 0."""
    write(folder, "problems", [PROBLEM | {"question": "What is <|im_start|> or <|vision_start|>?"}])
    assert df(line("rollout", "--dry-run"))[0] == 0
    write(folder, "rollouts", [ROLLOUT | {"sampler_logprobs": [5e-4]}])
    assert df(line("build-masks", "--dry-run"))[0] == 0


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("name", CASES)
def test_a_bad_row_is_refused_or_dropped_and_counted(name, folder, df):
    case = CASES[name]
    write(folder, case.artifact, case.rows)
    refused(df, folder, case.told, line(case.command, case.settings))
    if case.reason is not None:
        code, out, err = df(line(case.command, f"{case.settings} --on-bad-row drop --dry-run"))
        assert (code, err) == (0, "")
        assert json.loads(out)["dropped"] == {case.reason: 1}


def renamed(spec, old, new):
    return lambda table: table.rename_columns([new if name == old else name for name in spec.schema().names])


def cast(name, kind):
    def change(table):
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pa.nulls(len(table), kind))

    return change


COLUMN_CASES = {
    ("rollout", "problems", "answer gone"): (
        lambda table: table.drop_columns(["answer"]),
        ["problems.parquet: no column answer (the reference answer", "it has problem_id, question, images, kind"],
    ),
    ("evaluate", "problems", "misnamed"): (
        renamed(PROBLEMS, "question", "Qestion"),
        ["no column question (", "of which the nearest is Qestion. problems is written by df import-problems"],
    ),
    ("sft-repair", "repair_set", "misnamed"): (
        renamed(REPAIR_SET, "repair", "repaired"),
        ["repair_set.parquet: no column repair (", "of which the nearest is repaired. repair_set is written by"],
    ),
    ("build-masks", "rollouts", "misnamed"): (
        renamed(ROLLOUTS, "sampler_logprobs", "logprobs"),
        ["no column sampler_logprobs (", "of which the nearest is logprobs. rollouts is written by df rollout"],
    ),
    ("train-policy", "groups", "misnamed"): (
        renamed(GROUPS, "in_pair", "inpair"),
        ["no column in_pair (", "of which the nearest is inpair. groups is written by df build-masks"],
    ),
    ("rollout", "problems", "number for an answer"): (
        cast("answer", pa.int64()),
        ["problems.parquet: column answer is int64, not string; cast it or write it again"],
    ),
    ("rollout", "problems", "paths for images"): (
        cast("images", pa.list_(pa.string())),
        ["problems.parquet: column images is list<element: string>, not list<"],
    ),
    ("build-masks", "rollouts", "64-bit ids"): (
        cast("ids", pa.list_(pa.int64())),
        ["column ids is list<element: int64>, not list<item: int32>; cast it or write it again with df rollout"],
    ),
    ("train-policy", "groups", "mask of numbers"): (
        cast("mask", pa.list_(pa.float32())),
        ["column mask is list<element: float>, not list<item: bool>; cast it or write it again with df build-masks"],
    ),
    ("rollout", "problems", "column twice"): (
        lambda table: table.append_column("problem_id", table["problem_id"]),
        ["problems.parquet: column problem_id stands 2 times; keep one of them"],
    ),
    ("evaluate", "problems", "optional column twice"): (
        lambda table: table.append_column("preferred", table["preferred"]),
        ["problems.parquet: column preferred stands 2 times; keep one of them"],
    ),
    ("preferences", "preferences", "misnamed"): (
        renamed(PREFERENCES, "rejected", "reject"),
        ["no column rejected (", "of which the nearest is reject. preferences is written by you"],
    ),
}


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("case", COLUMN_CASES, ids=" ".join)
def test_a_missing_misnamed_or_mistyped_column_is_named(case, folder, df):
    command, artifact, _ = case
    change, told = COLUMN_CASES[case]
    path = folder / INPUTS[artifact][0]
    pq.write_table(change(pq.read_table(path)), path)
    refused(df, folder, told, line(command))


@pytest.mark.parametrize("letters", [300, 5000])
@pytest.mark.parametrize("option", ["problems", "policy", "out", "recipe"])
def test_a_name_that_no_file_can_have_is_told(option, letters, folder, df):
    arguments = {"problems": "problems.parquet", "policy": "model", "out": "out", "recipe": "digits"}
    options = " ".join(f"--{name} {value}" for name, value in (arguments | {option: "x" * letters}).items())
    refused(df, folder, [f"error: {'x' * 60}…: ", "characters are too long for a file name"], f"rollout {options}")


def test_a_data_set_of_a_name_that_no_file_can_have_is_told(folder, df):
    refused(df, folder, [f"error: {'x' * 60}…: 300 characters are"], f"import-problems {'x' * 300} --out out")


UNREADABLE = {
    "text": (lambda path: path.write_text("problem_id,question\n"), "not a readable Parquet file ("),
    "empty": (lambda path: path.write_bytes(b""), "not a readable Parquet file ("),
    "half": (lambda path: path.write_bytes(b"PAR1" + bytes(99)), "not a readable Parquet file ("),
    "folder": (lambda path: path.mkdir(), "in this folder; problems is written by df import-problems"),
    "broken link": (lambda path: path.symlink_to("gone"), "no such file or folder; problems is written by"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named(name, folder, df):
    change, told = UNREADABLE[name]
    (folder / "problems.parquet").unlink()
    change(folder / "problems.parquet")
    refused(df, folder, ["problems.parquet: ", told], line("rollout"))


RECIPES = {
    "typo": (
        "rollout",
        "rollout.sample_per_problem=4",
        "no field rollout.sample_per_problem; the nearest is rollout.sa",
    ),
    "K=0": ("build-masks", "masks.candidates=0", "masks.candidates is 0: Input should be greater than or equal to 1"),
    "no rollouts wanted": (
        "rollout",
        "rollout.samples_per_problem=0",
        "rollout.samples_per_problem is 0: Input should",
    ),
    "no repairs wanted": (
        "rl-repair",
        "repair_rl.repairs_per_error=0",
        "repair_rl.repairs_per_error is 0: Input should",
    ),
    "unknown algorithm": ("train-policy", "train.objective.algorithm=gpo", "train.objective.algorithm is 'gpo': Input"),
    "unknown gate": ("train-policy", "train.gate=maybe", "train.gate is 'maybe': Input should be 'difference', 'soft'"),
    "NaN": ("rollout", "rollout.temperature=.nan", "rollout.temperature is nan: "),
    "word for a number": ("sft-repair", "sft.epochs=many", "sft.epochs is 'many': Input should be a valid integer"),
    "unknown section": ("evaluate", "evaluation.draws=1", "no field evaluation; the nearest is evaluate"),
    "dpo for repairs": ("rl-repair", "repair_rl.objective.algorithm=dpo", "repairs come in no pairs; take grpo"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_told_with_what_to_write(name, folder, df):
    command, setting, told = RECIPES[name]
    refused(df, folder, [told], line(command, f"--set {setting}"))


def own_copy(folder, name):
    """A file of the model that can be changed: the workspace's are links."""
    file = folder / "model" / name
    source = file.resolve()
    file.unlink()
    return Path(shutil.copy(source, file))


def change_json(folder, name, **changes):
    file = own_copy(folder, name)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def text_model(folder):
    """A language model's configuration, as in a folder of another checkpoint."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    own_copy(folder, "config.json").write_text(json.dumps(config))


def no_processor(folder):
    (folder / "model" / "processor_config.json").unlink()


def change_weights(folder, change):
    """`change` takes a tensor's name and value, and gives another value or None."""
    file = own_copy(folder, "model.safetensors")
    changed = {name: change(name, value) for name, value in load_file(file).items()}
    save_file({name: value for name, value in changed.items() if value is not None}, file, {"format": "pt"})


def change_text_model(folder, **changes):
    config = json.loads((folder / "model" / "config.json").read_text())
    change_json(folder, "config.json", text_config=config["text_config"] | changes)


CONFIG_OF_WEIGHTS = "; give the config.json that these weights were saved with, or copy the whole checkpoint again"
MODELS = {
    "no processor": (no_processor, ["model: no preprocessor_config.json or processor_config.json; save the processor"]),
    "language model": (text_model, ["model: llama is not an image-text-to-text model", "take a vision-language"]),
    "no known model": (
        lambda folder: change_json(folder, "config.json", model_type="clairvoyant"),
        ["model: its config.json cannot be read (", "clairvoyant", "; save the checkpoint again"],
    ),
    "broken configuration": (
        lambda folder: own_copy(folder, "config.json").write_text('{"model_type": '),
        ["model/config.json: not JSON (Expecting value: line 1 column 16 (char 15)); fetch or copy the model folder"],
    ),
    "another model's processor": (
        lambda folder: change_json(folder, "config.json", image_token_id=6),
        ["its Qwen2_5_VLProcessor writes token 5 for an image, the qwen2_5_vl model reads token 6; save the model's"],
    ),
    "another family's processor": (
        lambda folder: change_json(folder, "processor_config.json", processor_class="InternVLProcessor"),
        ["model: its processor cannot be loaded (", "save the model's own beside the weights"],
    ),
    "broken tokenizer": (
        lambda folder: own_copy(folder, "tokenizer.json").write_text("{}"),
        ["model: its processor cannot be loaded (", "save the model's own beside the weights"],
    ),
    "a layer without weights": (
        lambda folder: change_weights(folder, lambda name, value: None if ".layers.1." in name else value),
        ["model: its weights have no tensor ", "layers.1.input_layernorm.weight and 11 others", CONFIG_OF_WEIGHTS],
    ),
    "a tensor of another shape": (
        lambda folder: change_weights(
            folder, lambda name, value: value[:-1].clone() if "layers.0.mlp.up_proj" in name else value
        ),
        ["layers.0.mlp.up_proj.weight is [319, 128], its config.json wants [320, 128]", CONFIG_OF_WEIGHTS],
    ),
    "another text model": (
        lambda folder: change_text_model(folder, num_attention_heads=3),
        ["model: its config.json makes no model of its weights (", CONFIG_OF_WEIGHTS],
    ),
    "a list of generation settings": (
        lambda folder: own_copy(folder, "generation_config.json").write_text("[1]"),
        ["model: its generation_config.json cannot be read (", "; save it again, or delete it"],
    ),
    "a word for the end token": (
        lambda folder: change_json(folder, "generation_config.json", eos_token_id="x"),
        ["model: its end token 'x' is no id below the vocabulary of 355; set eos_token_id in generation_config.json"],
    ),
    "an end token that it does not have": (
        lambda folder: change_json(folder, "generation_config.json", eos_token_id=[2, 355]),
        ["model: its end token 355 is no id below the vocabulary of 355; set eos_token_id in generation_config.json"],
    ),
    "a template that divides by zero": (
        lambda folder: own_copy(folder, "chat_template.jinja").write_text("{{ 1/0 }}"),
        ["model: its chat template cannot be rendered (division by zero); save the model's own chat_template.jinja"],
    ),
    "quantized": (
        lambda folder: change_json(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        ["model: its config.json has a quantization_config; give the model before it was quantized"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_refused_before_it_is_loaded(name, folder, df):
    change, told = MODELS[name]
    change(folder)
    for dry_run in ("", "--dry-run"):
        refused(df, folder, told, line("rollout", dry_run))


TRAINED = {"sft-repair": "--set sft.epochs=1", "train-policy": ""}
PAIR_OF_GROUP = [GROUP, GROUP | {"role": "repair", "reward": 1.0}]


def told_after_loading(df, command, told):
    """The command ends in one message, without an output that reads as complete."""
    code, out, err = df(command)
    assert (code, out) == (1, "")
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]]
    assert "Traceback" not in err
    assert told in err
    assert not Path("out/manifest.json").exists()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("command", [*TRAINED, "rollout", "siblings", "evaluate"])
def test_weights_that_are_no_numbers_are_told(command, value, folder, df):
    write(folder, "groups", PAIR_OF_GROUP)

    def spoil(name, tensor):
        if "embed_tokens" in name:
            tensor[300, 0] = value
        return tensor

    change_weights(folder, spoil)
    told = "embed_tokens.weight holds NaN or infinity; give a checkpoint from before it diverged"
    told_after_loading(df, line(command, TRAINED.get(command, "")), told)


def overflowing(folder):
    """Finite weights that the model's own sums take to infinity."""
    change_weights(folder, lambda name, tensor: tensor.fill_(1e38) if name.endswith("model.norm.weight") else tensor)


@pytest.mark.parametrize("command", TRAINED)
def test_training_without_one_finite_step_is_an_error(command, folder, df):
    overflowing(folder)
    write(folder, "groups", PAIR_OF_GROUP)
    told = "out/model: all 1 optimizer steps were skipped, none had a finite loss and gradient; set model.dtype=float32"
    told_after_loading(df, line(command, TRAINED[command]), told)


@pytest.mark.parametrize("command", ["rollout", "rl-repair", "evaluate"])
def test_nothing_is_sampled_from_logits_that_are_no_numbers(command, folder, df):
    overflowing(folder)
    told = "model: its logits hold NaN or infinity; set model.dtype=float32, or take a checkpoint from before it"
    told_after_loading(df, line(command), told)


def test_log_probs_that_are_no_numbers_are_not_written(folder, df):
    overflowing(folder)
    write(folder, "rollouts", [ROLLOUT, ROLLOUT | {"sample": 1, "reward": 1.0, "text": "7"}])
    told = "p0, sample 0: the policy's log-prob of token 1 is nan; set model.dtype=float32, or take a checkpoint from"
    told_after_loading(df, line("siblings"), told)
    assert not list(folder.glob("out/groups*"))


@pytest.mark.parametrize("command", ["sft-repair", "rl-repair", "build-masks", "train-policy", "evaluate"])
def test_every_command_refuses_a_language_model(command, folder, df):
    text_model(folder)
    refused(df, folder, ["model: llama is not an image-text-to-text model"], line(command))


@pytest.mark.parametrize(("reward", "counted"), [(1.0, "problems all correct"), (0.0, "problems none correct")])
def test_groups_without_a_contrast_are_made_counted_and_not_trained_on(reward, counted, folder, df):
    """A group of one, right or wrong, is no error of df build-masks; nothing can be learned from it."""
    write(folder, "rollouts", [ROLLOUT | {"reward": reward}])
    code, out, _ = df(line("siblings"))
    assert code == 0
    assert f"{counted} " in " ".join(out.split())
    told = [
        "out: no group has anything to train on (all_correct 1); raise rollout.samples_per_problem"
        if reward
        else "out: no group has anything to train on (no_repaired_error 1); no response is right: of 1, 0 were cut"
    ]
    refused(
        df,
        folder,
        told,
        "train-policy --groups out --problems problems.parquet --policy model --recipe digits --out next",
    )


LEAVING = {"up": "../outside.png", "absolute": None, "link": "link.png", "linked folder": "up/outside.png"}


@pytest.mark.parametrize("name", LEAVING)
def test_an_image_outside_the_data_sets_folder_is_not_read(name, tmp_path, df, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside.png"
    outside.write_bytes(PROBLEM["images"][0]["bytes"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(outside)
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    row = {"question": "Sum?", "images": [LEAVING[name] or str(outside)], "answer": "7"}
    (tmp_path / "set" / "data.jsonl").write_text(json.dumps(row) + "\n")
    told = ["set/data.jsonl: no row of 1 fits: image_outside_folder 1"]
    refused(df, tmp_path, told, "import-problems set/data.jsonl --out out")


@pytest.mark.parametrize(
    ("command", "artifact"),
    [("rollout", "problems"), ("sft-repair", "repair_set"), ("preferences", "preferences"), ("evaluate", "problems")],
)
def test_a_column_that_people_may_leave_empty_may_be_missing(command, artifact, folder, df):
    name, spec, _ = INPUTS[artifact]
    table = pq.read_table(folder / name)
    nullable = [column.name for column in spec.columns if column.null is not None]
    assert "kind" in nullable
    pq.write_table(table.drop_columns([column for column in nullable if column in table.column_names]), folder / name)

    code, _, err = df(line(command, "--dry-run"))
    assert (code, err) == (0, "")
