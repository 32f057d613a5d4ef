"""Masks made again from the pairs of an earlier `df build-masks`, without a model."""

import json
import random
import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts.columns import GROUPS
from stages.artifacts.stage import execute
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import ROWS_PER_GROUP, iterate_rows
from stages.core.alignment import difference_masks
from stages.errors import DataError, RecipeError
from stages.recipe import load_recipe
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s4_realign_pairs import RealignPairs
from stages.sections import SCORE_COLUMNS

OPTIONS = [
    {"align": "lcs"},
    {"anchor_gaps": False},
    {"truncate": "error"},
    {"truncate": "both", "anchor_gaps": False},
    {"align": "lcs", "truncate": "both"},
]


def recipe_with(**masks):
    return load_recipe("digits", [f"masks.{name}={value}" for name, value in masks.items()])


def shards(folder):
    return sorted(folder.glob("groups-*.parquet"))


def pairs_of(rows):
    return [(error, repair) for error, repair in pairwise(rows) if repair["role"] == "repair"]


def rows_outside_pairs(rows):
    return [row for row, following in pairwise([*rows, None]) if not in_a_pair(row, following)]


def in_a_pair(row, following):
    return row["role"] == "repair" or (following is not None and following["role"] == "repair")


@pytest.fixture(scope="module")
def built(tmp_path_factory, digits, base_dir):
    """A finished `df build-masks` whose repair model is the base; an error without a repair stays, ungated."""
    out = tmp_path_factory.mktemp("built")
    settings = ["rollout.problems=24", "rollout.rows_per_shard=80", "audit.auditor=none", "masks.no_feasible=ungated"]
    recipe = load_recipe("digits", settings)
    problems = digits / "problems_train.parquet"
    execute(Rollout(recipe, problems, base_dir), out / "rollout")
    execute(BuildMasks(recipe, out / "rollout", problems, base_dir, base_dir), out / "build-masks")
    return out / "build-masks"


def group_row(number, role, ids, mask, **changes):
    row = {
        "problem_id": f"p{number}",
        "sample": number % 3,
        "role": role,
        "in_pair": role != "correct",
        "ids": ids,
        "reward": float(role != "error"),
        "mask": mask,
        "old_logprobs": [-float(k) for k in range(len(ids))],
        "finish_reason": "stop",
        "sampler_logprobs": [-0.25 - k for k in range(len(ids))],
    }
    return row | dict.fromkeys(SCORE_COLUMNS.values()) | changes


def made_rows(count, seed=0):
    """Pairs, correct rows and ungated errors in random order; an error is the last row of the first row group."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < count:
        ids, repaired = ([rng.randrange(4) for _ in range(rng.randrange(9))] for _ in range(2))
        kind = "pair" if len(rows) == ROWS_PER_GROUP - 1 else rng.choice(["pair", "pair", "correct", "ungated"])
        if kind == "pair" and len(rows) != ROWS_PER_GROUP - 2:
            unlike = [[rng.random() < 0.5 for _ in side] for side in (ids, repaired)]
            rows.append(group_row(len(rows), "error", ids, unlike[0]))
            rows.append(rows[-1] | {"role": "repair", "ids": repaired, "mask": unlike[1], "reward": 1.0})
            rows[-1] |= {"old_logprobs": [-0.5] * len(repaired), "sampler_logprobs": None}
        else:
            role = "correct" if kind == "correct" else "error"
            rows.append(group_row(len(rows), role, ids, [role == "error"] * len(ids)))
    return rows


def write_groups(folder, *shards):
    step = Step.open(folder, Plan("build-masks", {}, 0, {}))
    for index, rows in enumerate(shards):
        step.write_shards(index, {GROUPS: rows})
    step.finish()
    return folder


def assert_masks_are_those_of_the_pairs(out, rows, **options):
    """Returns how many masks are others than before."""
    new = list(iterate_rows(out, GROUPS))
    assert [row | {"mask": None} for row in new] == [row | {"mask": None} for row in rows]
    assert rows_outside_pairs(new) == rows_outside_pairs(rows)
    for error, repair in pairs_of(new):
        masks = difference_masks(error["ids"], repair["ids"], **options)
        assert (error["mask"], repair["mask"]) == (masks.error_T.tolist(), masks.repair_T.tolist())
    return sum(row["mask"] != before["mask"] for row, before in zip(new, rows, strict=True))


def test_the_same_options_write_the_same_files(built, tmp_path):
    out = tmp_path / "out"
    manifest = execute(RealignPairs(recipe_with(), built), out).manifest
    earlier = json.loads((built / "manifest.json").read_text())

    assert len(shards(built)) == 3
    assert [file.name for file in shards(out)] == [file.name for file in shards(built)]
    for new, old in zip(shards(out), shards(built), strict=True):
        assert pq.read_table(new).equals(pq.read_table(old))
        assert new.read_bytes() == old.read_bytes()
    assert manifest["counts"] == {
        "pairs": earlier["counts"]["errors_repaired"],
        "tokens_in_pairs": earlier["counts"]["tokens_in_pairs"],
        "tokens_marked": earlier["counts"]["tokens_marked"],
    }
    assert manifest["rows_in"] == manifest["rows_out"] == earlier["rows_out"]
    assert manifest["step"] == "build-masks"
    assert manifest["inputs"].keys() == {"pairs"}


@pytest.mark.parametrize("options", OPTIONS)
def test_other_options_mark_what_difference_masks_marks_and_change_nothing_else(options, built, tmp_path):
    rows = list(iterate_rows(built, GROUPS))
    ungated = [row for row in rows_outside_pairs(rows) if row["in_pair"]]
    assert ungated
    assert all(all(row["mask"]) for row in ungated)

    counts = execute(RealignPairs(recipe_with(**options), built), tmp_path / "out").manifest["counts"]

    changed = assert_masks_are_those_of_the_pairs(tmp_path / "out", rows, **options)
    assert changed > 0 or "truncate" not in options, "digits are mostly replaced, one for one"
    new = [row for pair in pairs_of(list(iterate_rows(tmp_path / "out", GROUPS))) for row in pair]
    assert counts["tokens_in_pairs"] == sum(len(row["ids"]) for row in new)
    assert counts["tokens_marked"] == sum(sum(row["mask"]) for row in new)


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_a_pair_on_both_sides_of_a_row_groups_end_is_one_pair(options, tmp_path):
    rows = made_rows(3 * ROWS_PER_GROUP)
    assert [row["role"] for row in rows[ROWS_PER_GROUP - 1 : ROWS_PER_GROUP + 1]] == ["error", "repair"]
    pairs = write_groups(tmp_path / "pairs", rows, [], made_rows(5, seed=1))
    execute(RealignPairs(recipe_with(**options), pairs), tmp_path / "out")

    assert assert_masks_are_those_of_the_pairs(tmp_path / "out", [*rows, *made_rows(5, seed=1)], **options) > 0
    old, new = (pq.ParquetFile(shards(folder)[0]).metadata for folder in (pairs, tmp_path / "out"))
    assert [new.row_group(k).num_rows for k in range(new.num_row_groups)] == [
        old.row_group(k).num_rows for k in range(old.num_row_groups)
    ]
    assert len(shards(tmp_path / "out")) == 3


def test_wide_lists_and_strings_and_columns_of_ones_own_are_read(tmp_path):
    rows = made_rows(40)
    wide = {pa.list_(t): pa.large_list(t) for t in (pa.int32(), pa.float32(), pa.bool_())} | {
        pa.string(): pa.large_string()
    }
    schema = pa.schema([(field.name, wide.get(field.type, field.type)) for field in GROUPS.schema()])
    table = pa.Table.from_pylist(rows, schema=schema).append_column("note", pa.array(["mine"] * len(rows)))
    pq.write_table(table, tmp_path / "groups.parquet")
    execute(RealignPairs(recipe_with(), tmp_path / "groups.parquet"), tmp_path / "out")

    assert_masks_are_those_of_the_pairs(tmp_path / "out", rows)
    assert pq.read_schema(shards(tmp_path / "out")[0]).equals(GROUPS.schema())


def test_groups_of_an_older_release_lack_the_sampler_s_log_probs(tmp_path):
    rows = made_rows(40)
    table = pa.Table.from_pylist(rows, schema=GROUPS.schema()).drop_columns("sampler_logprobs")
    pq.write_table(table, tmp_path / "groups.parquet")
    execute(RealignPairs(recipe_with(), tmp_path / "groups.parquet"), tmp_path / "out")

    assert_masks_are_those_of_the_pairs(tmp_path / "out", [row | {"sampler_logprobs": None} for row in rows])


def test_scores_of_the_rollouts_are_kept_and_no_others_added(tmp_path):
    rows = [row | {"entropies": None if row["role"] == "repair" else [0.5] * len(row["ids"])} for row in made_rows(40)]
    spec = GROUPS.without(["image_kls", "answer_gaps"])
    pq.write_table(pa.Table.from_pylist(rows, schema=spec.schema()), tmp_path / "groups.parquet")
    execute(RealignPairs(recipe_with(), tmp_path / "groups.parquet"), tmp_path / "out")

    (shard,) = shards(tmp_path / "out")
    assert pq.read_schema(shard).equals(spec.schema())
    assert pq.read_table(shard)["entropies"].to_pylist() == [row["entropies"] for row in rows]


def spoil(rows, case):
    """Break what holds for the last pair; gives the row that is told of."""
    repair = max(k for k, row in enumerate(rows) if row["role"] == "repair")
    error = repair - 1
    if case == "no error":
        del rows[error]
        rows.insert(error, group_row(error, "correct", [1], [False]))
    elif case == "another problem":
        rows[error] = rows[error] | {"problem_id": "another"}
    elif case == "another sample":
        rows[error] = rows[error] | {"sample": 99}
    elif case == "two repairs":
        rows.insert(repair + 1, rows[repair])
        return repair + 1
    elif case == "first row":
        del rows[:repair]
        return 0
    return repair


@pytest.mark.parametrize("case", ["no error", "another problem", "another sample", "two repairs", "first row"])
def test_a_repair_without_its_error_is_told_by_its_row(case, tmp_path):
    rows = made_rows(2 * ROWS_PER_GROUP)
    row = spoil(rows, case)
    pairs = write_groups(tmp_path / "pairs", made_rows(5), rows)
    name, sample = rows[row]["problem_id"], rows[row]["sample"]
    told = (
        rf"groups-00001\.parquet row {row}: a repair of {name}, sample {sample}, does not follow its error; "
        "write it again with df build-masks"
    )
    with pytest.raises(DataError, match=told):
        execute(RealignPairs(recipe_with(), pairs), tmp_path / "out")

    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"plan.json", "progress.json", "groups-00000.parquet"}


def test_a_mask_of_another_length_than_the_ids_is_told_by_its_row(tmp_path):
    rows = made_rows(2 * ROWS_PER_GROUP)
    row = 2 * ROWS_PER_GROUP - 3
    rows[row] = rows[row] | {"ids": [1, 2], "mask": [True, False, True]}
    pairs = write_groups(tmp_path / "pairs", rows)
    with pytest.raises(DataError, match=rf"parquet row {row}: mask has 3 values for 2 ids; write it again"):
        execute(RealignPairs(recipe_with(), pairs), tmp_path / "out")


def test_a_stopped_run_goes_on_at_the_first_missing_shard(tmp_path, monkeypatch):
    parts = [made_rows(30, seed=k) for k in range(3)]
    pairs = write_groups(tmp_path / "pairs", *parts)
    stage, out = RealignPairs(recipe_with(align="lcs"), pairs), tmp_path / "out"
    stream = Step.stream_shard

    def stop_at_the_second(self, index, spec, tables):
        if index == 1:
            raise KeyboardInterrupt
        stream(self, index, spec, tables)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "stream_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            execute(stage, out)
    written = shards(out)[0].stat().st_mtime_ns
    manifest = execute(stage, out).manifest

    assert shards(out)[0].stat().st_mtime_ns == written
    rows = [row for part in parts for row in part]
    assert_masks_are_those_of_the_pairs(out, rows, align="lcs")
    assert manifest["counts"]["pairs"] == len(pairs_of(rows))
    assert manifest["rows_out"] == len(rows)


def test_the_plan_depends_on_the_mask_options_alone(tmp_path):
    pairs = write_groups(tmp_path / "pairs", made_rows(9))
    out = tmp_path / "out"
    assert execute(RealignPairs(recipe_with(), pairs), out).ran
    assert not execute(RealignPairs(recipe_with(candidates=7, no_feasible="ungated"), pairs), out).ran
    assert execute(RealignPairs(recipe_with(truncate="both"), pairs), out, overwrite=True).ran


def test_steps_are_refused_with_the_remedy(tmp_path):
    pairs = write_groups(tmp_path / "pairs", made_rows(9))
    with pytest.raises(RecipeError, match=r"granularity is step: .* run df build-masks on the rollouts"):
        execute(RealignPairs(recipe_with(granularity="step"), pairs), tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_no_model_library_is_imported(tmp_path):
    pairs = write_groups(tmp_path / "pairs", made_rows(9))
    code = (
        "import sys; from df_cli.main import app; app(standalone_mode=False); print({'transformers'} & {*sys.modules})"
    )
    arguments = [
        "build-masks",
        "--recipe",
        "digits",
        "--pairs",
        str(pairs),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "masks.align=lcs",
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "set()"
    assert_masks_are_those_of_the_pairs(tmp_path / "out", made_rows(9), align="lcs")
