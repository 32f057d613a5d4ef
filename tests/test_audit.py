"""The audit beside a person: a sample to label that does not tell the verdicts, and what comes of the labels."""

import csv
import io
import json
import re
from base64 import b64decode
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audited import IGNORED, PASTED, SCRIPT, episode, rl_repair, write_problems
from stages.artifacts.audit_labels import write_labels
from stages.artifacts.columns import AUDIT_AGREEMENT, AUDIT_LABELS, AUDIT_SAMPLE
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.audit.episodes import CLEAN, LABELS, read_audit
from stages.audit_agreement import AuditAgreement
from stages.audit_sample import TO_LABEL, AuditSample, spread_evenly
from stages.errors import ArtifactError, DataError

VERDICTS = [CLEAN] * 30 + [PASTED] * 8 + [IGNORED] * 2
"""Of the problems p00, p01, …, one right repair each."""


@pytest.fixture
def episodes(tmp_path):
    """Those of `VERDICTS`; a wrong repair, one that could not be scored, and one without a verdict."""
    rows = [episode(f"p{number:02d}", verdict) for number, verdict in enumerate(VERDICTS)]
    rows += [episode("p40", reward=0.5), episode("p41", reward=None), episode("p42", None)]
    return rl_repair(tmp_path / "rl", rows)


@pytest.fixture
def problems(tmp_path):
    return write_problems(tmp_path / "problems.parquet", [f"p{number:02d}" for number in range(43)])


def rows_of(folder, spec):
    return list(iterate_rows(folder / f"{spec.name}.parquet", spec))


def sheet_of(folder):
    with (folder / TO_LABEL / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def filled_in(path, rows):
    """A sheet as a spreadsheet writes it back: without a byte order mark, lines ending as on Windows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def labels_file(path, labels):
    """Labels by episode id, as CSV or Parquet, whichever the path ends with."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"episode_id": list(labels), "label": list(labels.values())}), path)
        return path
    return filled_in(path, [{"episode_id": name, "label": label or ""} for name, label in labels.items()])


def number(row):
    return int(row["episode_id"].split("/")[1].removeprefix("p"))


def measures(folder, section="overall", estimate="labels"):
    rows = rows_of(folder, AUDIT_AGREEMENT)
    return {row["measure"]: row["value"] for row in rows if (row["section"], row["estimate"]) == (section, estimate)}


@pytest.mark.parametrize(
    ("count", "per_stratum", "sizes"),
    [
        (12, False, {CLEAN: 5, PASTED: 5, IGNORED: 2}),
        (3, False, {CLEAN: 1, PASTED: 1, IGNORED: 1}),
        (999, False, {CLEAN: 30, PASTED: 8, IGNORED: 2}),
        (5, True, {CLEAN: 5, PASTED: 5, IGNORED: 2}),
    ],
)
def test_strata_are_drawn_as_evenly_as_they_allow(count, per_stratum, sizes, episodes, problems, tmp_path):
    manifest = execute(AuditSample(episodes, problems, count, per_stratum, seed=0), tmp_path / "out").manifest
    rows = rows_of(tmp_path / "out", AUDIT_SAMPLE)
    assert Counter(row["stratum"] for row in rows) == sizes
    assert all(row["stratum"] == VERDICTS[number(row)] for row in rows)
    assert {(row["stratum"], row["population"], row["drawn"]) for row in rows} == {
        (name, VERDICTS.count(name), size) for name, size in sizes.items()
    }
    assert len({row["episode_id"] for row in rows}) == len(rows) == manifest["rows_out"]
    left_out = {"wrong": 1, "unscored": 1, "no_verdict": 1, "not_drawn": 40 - len(rows)}
    assert (manifest["rows_in"], manifest["dropped"]) == (43, left_out)


@pytest.mark.parametrize("sizes", [(3, 50, 9), (7,), (5, 5, 5)])
def test_a_sample_is_spread_without_loss(sizes):
    populations = {str(place): size for place, size in enumerate(sizes)}
    for count in range(len(sizes), 70):
        spread = spread_evenly(populations, count)
        assert sum(spread.values()) == min(count, sum(sizes))
        full = [name for name in spread if spread[name] == populations[name]]
        others = [spread[name] for name in spread if name not in full]
        assert not others or max(others) - min(others) <= 1
        assert (
            all(populations[name] <= min(others) for name in full if others) or max(spread.values()) <= min(others) + 1
        )


def test_the_seed_makes_the_sample(episodes, problems, tmp_path):
    drawn = []
    for place, seed in enumerate((0, 0, 1)):
        execute(AuditSample(episodes, problems, 20, False, seed), tmp_path / str(place))
        drawn.append([row["episode_id"] for row in sheet_of(tmp_path / str(place))])
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) != set(drawn[2])


def test_every_repair_of_a_stratum_is_as_likely_and_stands_anywhere(episodes, problems):
    draws = [[*AuditSample(episodes, problems, 12, False, seed).draw()] for seed in range(300)]
    times = Counter(name for draw in draws for name in draw)
    clean, pasted, ignored = ([times[f"0/p{i:02d}/1/2"] for i in r] for r in (range(30), range(30, 38), range(38, 40)))
    assert set(ignored) == {300}
    assert all(20 <= count <= 80 for count in clean)  # 300 · 5/30 = 50, deviation 6.5
    assert all(144 <= count <= 231 for count in pasted)  # 300 · 5/8 = 187.5, deviation 8.4
    first = Counter(VERDICTS[number({"episode_id": draw[0]})] for draw in draws)
    assert all(90 <= first[name] <= 160 for name in (CLEAN, PASTED))  # 300 · 5/12 = 125, deviation 8.5


def test_a_labeller_does_not_learn_the_verdict(episodes, problems, tmp_path):
    """Had the auditor said the contrary, every row and article would be the same; their order is random."""
    contrary = [PASTED if verdict == CLEAN else CLEAN for verdict in VERDICTS]
    other = rl_repair(tmp_path / "other", [episode(f"p{place:02d}", verdict) for place, verdict in enumerate(contrary)])
    shown = []
    for folder in (episodes, other):
        out = tmp_path / f"sample of {folder.name}"
        execute(AuditSample(folder, problems, 40, False, seed=0), out)
        assert sorted(file.name for file in (out / TO_LABEL).iterdir()) == ["labels.csv", "page.html"]
        head, *articles = (out / TO_LABEL / "page.html").read_text(encoding="utf-8").split("<article>")
        articles[-1] = articles[-1].partition("<script>")[0]
        shown.append((sorted(map(str, sheet_of(out))), head, sorted(article.strip() for article in articles)))
    assert shown[0] == shown[1]
    assert len(shown[0][0]) == len(shown[0][2]) == 40
    assert all(
        f"<dt>{label}</dt>" in shown[0][1] and f">{meaning}.</dd>" in shown[0][1] for label, meaning in LABELS.items()
    )


def test_the_sheet_shows_what_a_labeller_must_see(episodes, problems, tmp_path):
    execute(AuditSample(episodes, problems, 10, False, seed=0), tmp_path / "out")
    sheet = sheet_of(tmp_path / "out")
    for row in sheet:
        assert row["question"] == (SCRIPT if number(row) % 2 else "'= What is the sum?")  # no formula
        assert (row["answer"], row["error"], row["repair"]) == (
            "3",
            "1 + 2 = 4. The answer is 4.",
            "1 + 2 = 3. The answer is 3.",
        )
        assert row["difference"] == "1 + 2 = [-4-]{+3+}. The answer is [-4-]{+3+}."
    page = (tmp_path / "out" / TO_LABEL / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # the page's own
    articles = page.split("<article>")[1:]
    for row, article in zip(sheet, articles, strict=True):
        assert f"<h2>{row['episode_id']}</h2>" in article
        assert re.findall(r"<mark>(.*?)</mark>", article) == ["4", "4", "3", "3"]
        (source,) = re.findall(r"src='data:image/png;base64,([^']*)'", article)
        image = Image.open(io.BytesIO(b64decode(source)))
        assert (image.width, image.getpixel((0, 0))[0]) == (number(row) + 1, number(row))


def test_a_sheet_may_be_parquet(episodes, problems, tmp_path):
    execute(AuditSample(episodes, problems, 10, False, 0), tmp_path / "csv")
    execute(AuditSample(episodes, problems, 10, False, 0, "parquet"), tmp_path / "parquet")
    rows = list(iterate_rows(tmp_path / "parquet" / TO_LABEL / "labels.parquet", AUDIT_LABELS))
    assert [row["episode_id"] for row in rows] == [row["episode_id"] for row in sheet_of(tmp_path / "csv")]
    assert all(row["label"] is None for row in rows)
    assert rows[0]["question"] in (SCRIPT, "= What is the sum?")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_from_sample_to_agreement(suffix, episodes, problems, tmp_path):
    """Six clean and six pasted repairs are drawn and both that ignore the image. A person agrees but for three."""
    execute(AuditSample(episodes, problems, 14, False, 0, suffix[1:]), tmp_path / "sample")
    strata = {row["episode_id"]: row["stratum"] for row in rows_of(tmp_path / "sample", AUDIT_SAMPLE)}
    by_stratum = {stratum: [name for name in strata if strata[name] == stratum] for stratum in (CLEAN, PASTED, IGNORED)}
    changed = {by_stratum[CLEAN][0]: PASTED, by_stratum[PASTED][0]: CLEAN, by_stratum[PASTED][1]: IGNORED}
    empty = by_stratum[PASTED][2]
    if suffix == ".csv":
        sheet = sheet_of(tmp_path / "sample")
    else:
        sheet = list(iterate_rows(tmp_path / "sample" / TO_LABEL / "labels.parquet", AUDIT_LABELS))
    for row in sheet:
        row["label"] = "" if row["episode_id"] == empty else changed.get(row["episode_id"], strata[row["episode_id"]])
    labels = tmp_path / f"filled{suffix}"
    if suffix == ".csv":
        filled_in(labels, sheet)
    else:
        write_labels(labels, sheet)
    outcome = execute(AuditAgreement(episodes, labels, tmp_path / "sample"), tmp_path / "out")

    found = measures(tmp_path / "out")
    assert [found[name] for name in ("both", "auditor alone", "label alone", "neither")] == [6, 1, 1, 5]
    assert found["kappa"] == pytest.approx((11 / 13 - 85 / 169) / (1 - 85 / 169))  # margins 7 and 6, twice
    pasted = measures(tmp_path / "out", PASTED)
    assert [pasted[name] for name in ("both", "auditor alone", "label alone", "neither")] == [3, 2, 1, 7]
    population = measures(tmp_path / "out", "overall", "population")
    false, missed = 8 / 5, 30 / 6
    assert population["agreement"] == pytest.approx(1 - (false + missed) / 40)
    assert population["miss rate"] == pytest.approx(missed / (missed + 10 - false))
    assert population["false flag rate"] == pytest.approx(false / (false + 30 - missed))
    assert measures(tmp_path / "out", f"stratum {PASTED}") == {"labelled flagged": 0.8}
    manifest = outcome.manifest
    assert (manifest["rows_in"], manifest["rows_out"], manifest["dropped"]) == (14, 13, {"not_filled_in": 1})
    assert manifest["counts"] == {"audited_repairs": 40, "audited_repairs_without_label": 27}
    assert manifest["inputs"].keys() == {"episodes", "labels", "sample"}


def test_labels_of_repairs_without_a_verdict_are_counted_and_left_out(episodes, tmp_path):
    names = {"p00": CLEAN, "p40": PASTED, "p41": PASTED, "p42": PASTED, "p30": PASTED, "p01": None, "p02": " "}
    labels = labels_file(tmp_path / "labels.parquet", {f"0/{name}/1/2": label for name, label in names.items()})
    manifest = execute(AuditAgreement(episodes, labels), tmp_path / "out").manifest
    assert manifest["dropped"] == {"wrong": 1, "unscored": 1, "no_verdict": 1, "not_filled_in": 2}
    assert (manifest["rows_in"], manifest["rows_out"]) == (7, 2)
    assert manifest["counts"]["audited_repairs_without_label"] == 38
    assert measures(tmp_path / "out")["kappa"] == 1
    assert {row["estimate"] for row in rows_of(tmp_path / "out", AUDIT_AGREEMENT)} == {"labels"}


def test_an_error_that_an_iteration_repaired_twice_has_two_ids(tmp_path):
    folder = rl_repair(tmp_path / "rl", [episode("a/b"), episode("a/b", PASTED), episode("a/b", attempt=3)])
    audit = read_audit(folder)
    assert {name: repair.verdict for name, repair in audit.repairs.items()} == {
        "0/a/b/1/2": CLEAN,
        "0/a/b/1/2#2": PASTED,
        "0/a/b/1/3": CLEAN,
    }


BAD_LABELS = {
    "unknown": ("labels.csv", "episode_id,label\n0/p00/1/2,clean\n0/p99/1/2,clean\n",
        r"labels\.csv: 1 rows are refused\n  1 unknown_episode: no episode .*--episodes: row 1 \(0/p99/1/2\)$"),
    "twice": ("labels.csv", "episode_id,label\n0/p00/1/2,clean\n0/p00/1/2,\n",
        r"1 labelled_twice: .*keep one of them: row 1 \(0/p00/1/2\)$"),
    "category": ("labels.csv", "episode_id,label\n0/p00/1/2,Clean\n0/p01/1/2,clean\n0/p02/1/2,invented\n",
        r"2 unknown_label: not one of clean, image_ignored, .*: row 0 \(0/p00/1/2\): 'Clean'; row 2 .*: 'invented'$"),
    "column": ("labels.csv", "episode_id,verdict\n0/p00/1/2,clean\n",
        r"labels\.csv: no column label \(.*it has episode_id, verdict\. audit_labels is written by df"),
    "semicolons": ("labels.csv", "episode_id;label\n0/p00/1/2;clean\n",
        r"no column episode_id .*it has episode_id;label, of which the nearest is episode_id;label\."),
    "ragged": ("labels.csv", "episode_id,label\n0/p00/1/2,clean,extra\n",
        r"labels\.csv: not a readable CSV file \(.*Expected 2 columns, got 3.*save it as CSV with commas"),
    "encoding": ("labels.csv", "episode_id,label\n0/p00/1/2,caf\xe9\n".encode("latin-1"),
        r"labels\.csv: not a readable CSV file \(.*invalid UTF8.*in UTF-8"),
    "nothing": ("labels.csv", "", r"labels\.csv: not a readable CSV file \(.*Empty CSV file"),
    "not filled in": ("labels.csv", "episode_id,label\n0/p00/1/2,\n0/p42/1/2,clean\n",
        r"no label to compare \(1 rows not filled in, no_verdict 1\); write clean, image_ignored, "),
    "format": ("labels.xlsx", "PK", r"labels\.xlsx: ends in \.xlsx; give labels as \.csv or \.parquet"),
    "no Parquet": ("labels.parquet", "PAR1", r"labels\.parquet: not a readable Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_refused_with_value_place_and_remedy(case, episodes, tmp_path):
    name, content, message = BAD_LABELS[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        execute(AuditAgreement(episodes, tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_and_null_ids_are_named(episodes, tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: not a readable CSV file .*No such file"):
        AuditAgreement(episodes, tmp_path / "gone.csv").plan()
    with pytest.raises(DataError, match=r"gone\.parquet: no such file or folder; audit_labels is written by df audit"):
        AuditAgreement(episodes, tmp_path / "gone.parquet").plan()
    labels = labels_file(tmp_path / "labels.parquet", {"0/p00/1/2": CLEAN, None: CLEAN})
    with pytest.raises(DataError, match=r"labels\.parquet row 1: episode_id is null; give it a value or drop the row"):
        AuditAgreement(episodes, labels).plan()


def test_other_problems_under_the_same_ids_are_told(problems, tmp_path, caplog):
    """A person would label repairs beside pictures that they are not of."""
    made = rl_repair(tmp_path / "rl", [episode("p00"), episode("p01")], problems=problems)
    AuditSample(made, problems, 1, False, 0).plan()
    assert not caplog.records
    others = write_problems(tmp_path / "others.parquet", [f"p{number:02d}" for number in reversed(range(43))])
    AuditSample(made, others, 1, False, 0).plan()
    assert f"made from {problems} as it was then, which is not {others}: " in caplog.text
    assert "run df rl-repair again" in caplog.text


def test_many_bad_rows_are_counted_and_the_first_named(episodes, tmp_path):
    labels = labels_file(tmp_path / "labels.csv", {f"0/q{place}/1/2": CLEAN for place in range(25)})
    with pytest.raises(DataError, match=r"25 unknown_episode: .*row 9 \(0/q9/1/2\); and 15 more$"):
        AuditAgreement(episodes, labels).plan()


def test_labels_and_sample_must_belong_together(episodes, problems, tmp_path):
    execute(AuditSample(episodes, problems, 3, False, 0), tmp_path / "sample")
    drawn = {row["stratum"]: row["episode_id"] for row in rows_of(tmp_path / "sample", AUDIT_SAMPLE)}
    other = next(f"0/p{place:02d}/1/2" for place in range(30) if f"0/p{place:02d}/1/2" != drawn[CLEAN])
    labels = labels_file(tmp_path / "other.csv", {other: CLEAN})
    with pytest.raises(DataError, match=rf"1 not_in_sample: not drawn by --sample; .*row 0 \({other}\)$"):
        AuditAgreement(episodes, labels, tmp_path / "sample").plan()

    labels = labels_file(tmp_path / "some.csv", {drawn[CLEAN]: CLEAN, drawn[PASTED]: CLEAN, drawn[IGNORED]: ""})
    with pytest.raises(DataError, match=rf"no label in {IGNORED}, of which .*sample has some: .*or leave out --sample"):
        AuditAgreement(episodes, labels, tmp_path / "sample").plan()

    another = rl_repair(tmp_path / "another", [episode("p00"), episode("p30", PASTED)])
    with pytest.raises(
        DataError, match=r"sample: drawn from other episodes than .*another; give those with --episodes"
    ):
        AuditAgreement(another, labels, tmp_path / "sample").plan()


def test_what_cannot_be_sampled_is_refused(episodes, problems, tmp_path):
    with pytest.raises(DataError, match=r"--count 2: fewer than the 3 strata \(answer_pasted, clean, image_ignored\)"):
        AuditSample(episodes, problems, 2, False, 0).plan()
    wrong = rl_repair(tmp_path / "wrong", [episode("p00", reward=0.0), episode("p01", None)])
    with pytest.raises(DataError, match=r"no audited repair to draw \(no_verdict 1, wrong 1\); train"):
        AuditSample(wrong, problems, 2, False, 0).plan()
    unknown = rl_repair(tmp_path / "unknown", [episode("q")])
    with pytest.raises(DataError, match="no problem q; give the problems that the other inputs were made from"):
        AuditSample(unknown, problems, 2, False, 0).plan()
    nameless = rl_repair(tmp_path / "nameless", [episode("p00", gate_audit=False)])
    with pytest.raises(DataError, match="row 0: flagged, but for no category; run df rl-repair again"):
        AuditSample(nameless, problems, 2, False, 0).plan()
    (episodes / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="not complete; run its command again"):
        AuditSample(episodes, problems, 12, False, 0).plan()


@pytest.fixture
def df(typed, monkeypatch):
    """`typed`, on a terminal of 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")
    return typed


def test_both_commands(df, episodes, problems, tmp_path):
    sample, out = tmp_path / "sample", tmp_path / "out"
    draw = ["audit-sample", "--episodes", episodes, "--problems", problems, "--out", sample, "--count", 3, "--seed", 7]
    code, plan, _ = df(*draw, "--per-stratum", "--dry-run")
    assert (code, sample.exists()) == (0, False)
    plan = json.loads(plan)
    assert (plan["seed"], plan["recipe"]) == (7, {"count": 3, "per_stratum": True, "format": "csv"})
    code, told, _ = df(*draw, "--per-stratum")
    assert code == 0
    assert re.search(r"population clean *│ 30 ", told)
    strata = {row["episode_id"]: row["stratum"] for row in rows_of(sample, AUDIT_SAMPLE)}
    assert len(strata) == 8
    labels = labels_file(tmp_path / "labels.csv", strata)
    compare = ["audit-agreement", "--episodes", episodes, "--labels", labels, "--sample", sample, "--out", out]
    code, told, _ = df(*compare)
    assert code == 0
    assert re.search(r"overall *│ labels *│ both *│ 5 *│ *│ 8 ", told)
    assert re.search(r"stratum clean *│ labels *│ labelled flagged *│ 0 *│ 0\.000 to 0\.561 │ 3 ", told)
    code, again, _ = df(*compare)
    assert "nothing to do" in again
    assert again.split("\n", 1)[1] in told
    labels_file(tmp_path / "labels.csv", dict.fromkeys(strata, CLEAN))
    code, _, complaint = df(*compare)
    assert (code, complaint.startswith(f"error: {out}: made with other inputs.labels")) == (1, True)
    code, told, _ = df(*compare, "--overwrite")
    assert "the labels flag no repair" in told
    assert read_manifest(out)["step"] == "audit-agreement"
