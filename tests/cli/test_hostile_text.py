"""Texts of datasets, models, files and servers, through the commands: nothing for a terminal to obey, no markup."""

import csv
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from workspace import PAIR, PROBLEM

import forked
from hostile_text import CONTROLS, HOSTILE, MARKUP, SHOWN, assert_plain
from scripted_server import completion, refusal, serving
from stages.artifacts.columns import EPISODES, PREFERENCES, PROBLEMS
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import write_rows

DIGITS = ("--recipe", "digits")
KEY = "sk-never-to-be-seen-0123456789"


def usage(text):
    """What a panel says, its frame taken away."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["rollout", "--problems", f"{CONTROLS}.parquet", "--policy", "model", "--out", "out", *DIGITS],
        ["rollout", "--problems", "problems.parquet", "--policy", f"{CONTROLS}/model", "--out", "out", *DIGITS],
        ["rollout", "--problems", "problems.parquet", "--policy", "model", "--out", "out", "--recipe", CONTROLS],
        [
            "rollout",
            "--problems",
            "problems.parquet",
            "--policy",
            "model",
            "--out",
            "out",
            *DIGITS,
            "--set",
            f"a.{CONTROLS}=1",
        ],
        ["import-problems", f"./{CONTROLS}.csv", "--out", "out"],
        ["summarize", f"/{CONTROLS}", "--rounds", "1"],
        ["audit-agreement", "--episodes", f"{CONTROLS}", "--labels", f"{CONTROLS}.csv", "--out", "out"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.usefixtures("workspace")
def test_names_in_errors(arguments, df):
    code, out, err = df("", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert SHOWN in err
    assert_plain(err)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("arguments", [["rollout", "--engine", CONTROLS], ["recipe", "list", CONTROLS], [CONTROLS]])
def test_arguments_in_usage_errors(arguments, df):
    code, out, err = df("", *arguments)
    assert (code, out) == (2, "")
    assert "\\x1b]0;owned\\x07" in usage(err)
    assert_plain(err)


def test_ids_columns_and_configurations_in_errors(workspace, df):
    line = "rollout --problems problems.parquet --policy model --recipe digits --out out"
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM | {"problem_id": HOSTILE}] * 2)
    told = [df(line)]
    table = pq.read_table(workspace / "problems.parquet")
    pq.write_table(table.rename_columns([HOSTILE, *table.column_names[1:]]), workspace / "problems.parquet")
    told.append(df(line))
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM])
    config = workspace / "model" / "config.json"
    content = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps(content | {"auto_map": {"AutoModel": HOSTILE}}))
    told.append(df(line))
    (workspace / "rows.csv").write_text(f'"{HOSTILE.replace(chr(34), chr(34) * 2)}",b\n1,2\n', encoding="utf-8")
    told.append(df("import-problems rows.csv --out out --question missing"))

    for code, out, err in told:
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert "x1b]0;owned" in err
        assert "[red]x[/red]" in err
        assert_plain(err)


def test_a_line_of_a_dataset_cannot_pass_for_one_of_ours(workspace, df):
    forged = {"problem_id": "p\nerror: forged"}
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM | forged] * 2)
    _, _, err = df("rollout --problems problems.parquet --policy model --recipe digits --out out")
    assert "forged" in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[0]]


def test_an_error_of_a_reward_function_is_told_with_its_traceback(workspace, df, monkeypatch):
    (workspace / "loud_reward.py").write_text(
        f"def score(response, problem):\n    secret = 'local variable'\n    raise ValueError({HOSTILE!r})\n"
    )
    monkeypatch.syspath_prepend(workspace)
    settings = ["--set", "reward.name=loud_reward:score", "--set", "rollout.samples_per_problem=1"]
    code, _, err = df("rollout --problems problems.parquet --policy model --recipe digits --out out", *settings)
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert "ValueError: [red]x[/red] [/bold]" in err
    assert SHOWN in err
    assert_plain(err)


def test_kinds_in_tables(workspace, df):
    """Markup of rich is text, not style and not an error."""
    kind = "[red]x[/red][/b]<b>\x1b[2J\r"
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM | {"kind": kind, "question": HOSTILE}])
    line = "evaluate --problems problems.parquet --model model --recipe digits --out out --set evaluate.draws=1"
    code, out, err = df(line)
    assert (code, err.count("error")) == (0, 0)
    assert r" sampled accuracy, [red]x[/red][/b]<b>\x1b[2J\r " in out
    assert_plain(out, err)


@pytest.mark.usefixtures("workspace")
def test_folders_in_tables_and_plans(df):
    command = ["evaluate", "--problems", "problems.parquet", "--model", "model", *DIGITS, "--set", "evaluate.draws=1"]
    instruction = "prompt.instruction=" + json.dumps("{question}" + HOSTILE)
    _, plan, _ = df("", *command, "--dry-run", "--out", "out", "--set", instruction)
    assert HOSTILE in json.loads(plan)["recipe"]["prompt"]["instruction"]
    assert plan.isascii()
    assert_plain(plan)
    name = "[red]\x1b[2J\r[/red]"
    done, again = (df("", *command, "--out", name)[1] for _ in range(2))
    assert r" [red]\x1b[2J\r[/red] " in done
    assert again.startswith(r"[red]\x1b[2J\r[/red]: complete and up to date")
    assert_plain(done, again)


def test_rows_in_a_sample(workspace, df):
    Image.new("RGB", (4, 4)).save(workspace / "i.png")
    row = {"id": HOSTILE, "q": HOSTILE, "a": HOSTILE, "k": HOSTILE, "i": "i.png"}
    (workspace / "rows.jsonl").write_text("\n".join(map(json.dumps, [row, row | {"id": HOSTILE + "2", "i": ""}])))
    code, out, err = df("import-problems rows.jsonl --sample 2 --id id --question q --answer a --kind k --images i")
    assert (code, err) == (0, "")
    assert "4 x 4" in out
    assert "image_missing" in out
    assert "[red]x[/red]" in out
    assert_plain(out)


class Page(HTMLParser):
    """Every element with its attributes, and all text; names of form fields, and what else is of the data, apart."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.elements, self.names, self.text = [], [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        of_data = {"src", "name", "data-sheet"} - ({"name"} if tag == "meta" else set())
        self.elements.append((tag, [(name, "" if name in of_data else value) for name, value in attributes]))
        self.names += [value for name, value in attributes if name == "name" and tag in ("fieldset", "input")]

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", []))

    def handle_comment(self, data):
        self.elements.append(("!", [data]))

    def handle_data(self, data):
        self.text += data


def label_page(folder, df, hostile):
    """`df audit-sample` of two repairs, whose texts are hostile or not."""
    folder.mkdir()
    text = hostile.replace(" ", "")  # one word, as the plain one is
    step = Step.open(folder / "rl", Plan("rl-repair", {"reward": {"threshold": 1.0}}, 0, {}))
    episode = {
        "iteration": 0, "problem_id": f"p{hostile}", "attempt": 0, "error": f"a {text} c", "text": f"a {text}2 c",
        "reward": 1.0, "cost": 0.1, "gate_c1": True, "gate_audit": True, "category": None, "repair_reward": 1.0,
    }  # fmt: skip
    step.write_table(EPISODES, [episode | {"sample": sample} for sample in range(2)])
    step.finish()
    problem = PROBLEM | {"problem_id": f"p{hostile}", "question": hostile, "answer": hostile, "kind": hostile}
    write_rows(
        folder / "problems.parquet", PROBLEMS, [dict.fromkeys(["video", "fps", "choices", "preferred"]) | problem]
    )
    arguments = ["--episodes", folder / "rl", "--problems", folder / "problems.parquet", "--out", folder / "out"]
    code, out, err = df("audit-sample", *map(str, arguments))
    assert (code, err) == (0, "")
    assert_plain(out)
    return folder / "out" / "to_label"


def test_a_page_to_label_has_no_element_of_the_data(df, tmp_path):
    plain, hostile = (Page(label_page(tmp_path / name, df, text) / "page.html") for name, text in
                      (("plain", "word"), ("hostile", HOSTILE)))  # fmt: skip
    assert hostile.elements == plain.elements
    assert hostile.text.count(MARKUP) >= 4
    assert SHOWN in hostile.text
    assert_plain(hostile.text, *hostile.names)
    ids = {f"0/p{HOSTILE}/{sample}/0" for sample in range(2)}
    assert {json.loads(name) for name in hostile.names} == ids


@pytest.mark.parametrize(
    "start", ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(1)", "\t=1", "\n=1", "\r=1", "＝1", "\x1b=1"]
)
def test_a_sheet_to_label_holds_no_formula_and_comes_back(start, df, tmp_path):
    folder = label_page(tmp_path / "a", df, start)
    content = (folder / "labels.csv").read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(content.splitlines(keepends=True)))
    assert len(rows) == 2
    for row in rows:
        assert row["question"].lstrip("'").replace(r"\r", "\r").replace(r"\x1b", "\x1b") == start
        assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝")) for value in row.values())
        assert_plain(row["question"].replace("\t", ""), row["error"].replace("\t", ""))
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": "clean"} for row in rows)
    inputs = ["--episodes", str(tmp_path / "a" / "rl"), "--labels", str(tmp_path / "labels.csv")]
    code, out, err = df("audit-agreement", *inputs, "--out", str(tmp_path / "agreement"))
    assert (code, err) == (0, "")
    assert_plain(out)


def test_a_page_of_pairs_has_no_element_of_the_data(workspace, df):
    """Of the texts; the marks between them depend on the words."""
    right, wrong = "1 + 2 = 3. The answer is 3.", "1 + 2 = 4. The answer is 4."
    pages = []
    for name, text in (("plain", ""), ("hostile", HOSTILE)):
        row = PAIR | {
            "question": text,
            "answer": "3",
            "kind": text,
            "chosen": f"{text} {right}",
            "rejected": f"{text} {wrong}",
        }
        write_rows(workspace / f"{name}.parquet", PREFERENCES, [dict.fromkeys(["video", "fps", "choices"]) | row])
        options = ["--preferences", f"{name}.parquet", "--policy", "model", *DIGITS, "--set", "masks.repairer=sibling"]
        code, out, err = df("build-masks", *options, "--out", f"{name}-out")
        assert (code, err.count("error:")) == (0, 0)
        assert_plain(out, err)
        pages.append(Page(workspace / f"{name}-out" / "samples.html"))
    plain, hostile = pages
    assert [element for element in hostile.elements if element[0] not in ("mark", "/mark")] == [
        element for element in plain.elements if element[0] not in ("mark", "/mark")
    ]
    assert all(attributes == [] for tag, attributes in hostile.elements if tag == "mark")
    assert hostile.text.count(MARKUP) >= 3
    assert SHOWN in hostile.text


def df_that_logs_everything(*arguments):
    logging.basicConfig(level=0)
    forked.df_here(*arguments)


def test_a_server_that_repeats_the_key_and_sends_control_sequences(workspace):
    """Everything logged, as somebody does who looks for a fault; nothing of it is in any output or file."""
    reply = completion({"reason": f"{CONTROLS} {KEY} \\u0073k", "verdict": "incorrect"})
    header = {"X_Echo": f"Bearer {KEY}"}
    script = [refusal(500, f"{HOSTILE} Authorization: Bearer {KEY}", **header), reply]

    def answer(_server, _request, number):
        return script[number] if number < 2 else refusal(401, f"{HOSTILE} Incorrect API key: {KEY}", **header)

    with serving(answer) as server:
        options = {"base_url": server.url, "model": "tiny", "api_key_env": "DF_KEY", "cache": "cache", "concurrency": 1}
        settings = ["reward.name=judge", "rollout.samples_per_problem=4", "engine.rows_per_batch=4",
                    *(f"reward.judge.{name}={value}" for name, value in options.items())]  # fmt: skip
        arguments = ["rollout", "--problems", "problems.parquet", "--policy", "model", "--out", "out", *DIGITS]
        words = [*arguments, *(word for setting in settings for word in ("--set", setting))]
        done = forked.run(
            df_that_logs_everything, *words, cwd=workspace, environments=[{"DF_KEY": KEY, "OPENAI_LOG": "debug"}]
        )
    assert done.returncode == 1
    assert re.search(r"error: reward\.judge: http\S+ refuses \(HTTP 401: .*\*\*\*", done.stderr)
    assert "x1b]0;owned" in done.stderr
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert "httpcore" in done.stderr
    assert_plain(done.stdout.replace("\t", ""), done.stderr.replace("\t", ""))
    assert "0123456789" not in done.stdout + done.stderr
    files = [file for file in workspace.rglob("*") if file.is_file() and not file.is_symlink()]
    assert [file for file in files if file.parent.name == "cache"]
    for file in files:
        assert KEY.encode() not in file.read_bytes()
    (verdicts,) = Path(workspace / "cache").glob("*.parquet")
    assert "***" in pq.read_table(verdicts)["reply"][0].as_py()
