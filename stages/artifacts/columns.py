"""Every artifact's columns, declared once: validation, the reference's tables and the tests come from here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from stages.artifacts.rows import (
    AgreementRow,
    AnyRow,
    AuditSampleRow,
    DraftRow,
    DroppedRow,
    EpisodeRow,
    GroupRow,
    MetricRow,
    OldLogprobsRow,
    RepairRow,
    RolloutRow,
    SampleRow,
    ScoreRow,
    ValuesRow,
)
from stages.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Hugging Face's `Image` feature: `datasets` shows it as a picture."""
IDS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())
MASK = pa.list_(pa.bool_())
Row = TypeVar("Row")
_MISSPELT = 0.66
"""How alike (1: the same) a name is in which a letter of three is another."""


@dataclass(frozen=True)
class Column:
    """One column; `null` says what a null means, and without it a null is refused.

    A file may lack an `optional` column, which is then null everywhere.
    """

    name: str
    type: pa.DataType
    meaning: str
    null: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class TableSpec(Generic[Row]):
    """One artifact, whose rows have the type `Row`."""

    name: str
    producer: str
    consumers: str
    columns: tuple[Column, ...]

    def without(self, names: Collection[str]) -> TableSpec[Row]:
        """The artifact as a file has it that lacks these columns."""
        return replace(self, columns=tuple(column for column in self.columns if column.name not in names))

    def schema(self) -> pa.Schema:
        """Arrow schema, with the `datasets` features of image columns in its metadata."""
        fields = [pa.field(column.name, column.type, nullable=True) for column in self.columns]
        schema = pa.schema(fields)
        if any(column.type == pa.list_(IMAGE) for column in self.columns):
            features = {column.name: _feature(column.type) for column in self.columns}
            schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        return schema

    def check_schema(self, schema: pa.Schema, place: str) -> None:
        """Refuse a file whose columns are not these, each once; further columns are left alone.

        Raises:
            DataError: names the column, what it is and what it should be.
        """
        for column in self.columns:
            if schema.names.count(column.name) > 1:
                raise DataError(
                    f"{place}: column {column.name} stands {schema.names.count(column.name)} times; keep one of them"
                )
            index = schema.get_field_index(column.name)
            if index < 0 and column.optional:
                self._refuse_misspelt(column.name, schema, place)
                continue
            if index < 0:
                near = difflib.get_close_matches(column.name, schema.names, n=1)
                raise DataError(
                    f"{place}: no column {column.name} ({column.meaning}); it has {', '.join(schema.names)}"
                    f"{', of which the nearest is ' if near else ''}{''.join(near)}. "
                    f"{self.name} is written by {self.producer}"
                )
            if not _same_type(schema.field(index).type, column.type):
                raise DataError(
                    f"{place}: column {column.name} is {schema.field(index).type}, not {column.type}; "
                    f"cast it or write it again with {self.producer}"
                )

    def _refuse_misspelt(self, name: str, schema: pa.Schema, place: str) -> None:
        """A column of nearly that name is not left alone: it is misspelt, or a bit of the file was turned over."""
        strangers = set(schema.names) - {column.name for column in self.columns}
        if near := difflib.get_close_matches(name, strangers, n=1, cutoff=_MISSPELT):
            raise DataError(
                f"{place}: no column {name}, but {near[0]}; rename that, or drop it if it is something else"
            )

    def with_optional(self, table: pa.Table) -> pa.Table:
        """The table with a column of nulls for each optional one that its file does not have."""
        for column in self.columns:
            if column.optional and column.name not in table.column_names:
                table = table.append_column(column.name, pa.nulls(len(table), column.type))
        return table

    def check_nulls(self, table: pa.Table, place: str, first_row: int = 0) -> None:
        """Refuse a null where it has no meaning; `first_row` is where the table starts in its file.

        Raises:
            DataError: names the column and its first null row, counted from 0.
        """
        nulls = self.nulls(table)
        if nulls:
            row = min(nulls)
            raise DataError(null_message(f"{place} row {first_row + row}", nulls[row]))

    def nulls(self, table: pa.Table) -> dict[int, str]:
        """Rows with a null where it has no meaning, and the first such column of each."""
        found: dict[int, str] = {}
        for column in self.columns:
            if column.null is None and column.name in table.column_names:
                for row in _null_rows(table[column.name]):
                    found.setdefault(row, column.name)
        return found


def null_message(place: str, column: str) -> str:
    return f"{place}: {column} is null; give it a value or drop the row"


def _null_rows(values: pa.ChunkedArray) -> list[int]:
    """Rows that are null or a list with a null in it."""
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    items = pc.list_flatten(values) if is_list else values
    if values.null_count == items.null_count == 0:
        return []
    rows: list[int] = pc.indices_nonzero(pc.is_null(values)).to_pylist()
    if is_list:
        rows += pc.filter(pc.list_parent_indices(values), pc.is_null(items)).to_pylist()
    return rows


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list and _same_type(found.value_type, wanted.value_type))
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_binary(wanted):
        return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))
    if pa.types.is_struct(wanted):
        types = {field.name: field.type for field in found} if pa.types.is_struct(found) else {}
        return all(field.name in types and _same_type(types[field.name], field.type) for field in wanted)
    return bool(found == wanted)


def _feature(arrow_type: pa.DataType) -> dict[str, object]:
    if arrow_type == pa.list_(IMAGE):
        return {"feature": {"_type": "Image"}, "_type": "List"}
    if pa.types.is_list(arrow_type):
        return {"feature": _feature(arrow_type.value_type), "_type": "List"}
    return {"dtype": str(arrow_type), "_type": "Value"}


_PROBLEM_ID = Column("problem_id", pa.string(), "joins the artifacts; unique in `problems`")
_SAMPLE = Column("sample", pa.int32(), "which of the problem's rollouts, from 0")
_GROUP_SAMPLE = Column("sample", pa.int32(), "the rollout, or the rollout that was repaired")
_TEXT = Column("text", pa.string(), "the response, decoded, for reading only")
_REWARD = Column("reward", pa.float32(), "task reward R", null="could not be scored")
_COST = Column("cost", pa.float32(), "edit cost C (eq. 2)")
_FLAGGED = Column(
    "flagged",
    pa.bool_(),
    "the auditor's verdict; false where none was asked for",
    null="could not be had, or it abstained",
)
_CATEGORY = Column("category", pa.string(), "what it was flagged for", null="not flagged")
_EVIDENCE = Column(
    "evidence",
    pa.string(),
    "what a served auditor quotes",
    null="not flagged, or by rules; a file may lack the column",
    optional=True,
)
_FINISH = Column("finish_reason", pa.string(), "`stop` or `length`")

_PREFERRED = Column(
    "preferred",
    pa.string(),
    "a right response in full, which repair prompts may show in place of the answer",
    null="none is known; a file may lack the column",
    optional=True,
)

PROBLEMS: TableSpec[AnyRow] = TableSpec(
    "problems",
    "df import-problems, you, or data/digits/build.py",
    "every command",
    (
        _PROBLEM_ID,
        Column("question", pa.string(), "the instruction, without image placeholders"),
        Column("images", pa.list_(IMAGE), "encoded images in order (Hugging Face `Image`); may be empty"),
        Column("answer", pa.string(), "the reference answer y*, bare: `18`, not `The answer is 18.`"),
        Column("kind", pa.string(), "for reports by kind", null="no kind; a file may lack the column", optional=True),
        Column("video", pa.list_(IMAGE), "encoded frames of one video in order", null="no video", optional=True),
        Column("fps", pa.float64(), "the frames' rate, per second", null="2, if there is a video", optional=True),
        Column(
            "choices",
            pa.list_(pa.string()),
            "the texts of the choices A, B, …, of which the answer is one, by letter or text",
            null="the question has none; a file may lack the column",
            optional=True,
        ),
        _PREFERRED,
    ),
)

ERRORS: TableSpec[AnyRow] = TableSpec(
    "errors",
    "df repair-set sheet",
    "df repair-set read",
    (
        Column("error_id", pa.string(), "unique: the `problem_id`, with `#2` for the problem's second error"),
        *PROBLEMS.columns,
        Column("error", pa.string(), "y: a wrong response of the policy"),
    ),
)

REPAIR_SET: TableSpec[AnyRow] = TableSpec(
    "repair_set",
    "df repair-set read, you, or data/digits/build.py",
    "df sft-repair, df rl-repair",
    (
        *PROBLEMS.columns,
        Column("error", pa.string(), "y: a wrong response of the policy"),
        Column("repair", pa.string(), "ŷ: the same response, minimally repaired"),
    ),
)

PREFERENCES: TableSpec[AnyRow] = TableSpec(
    "preferences",
    "you",
    "df build-masks",
    (
        *(column for column in PROBLEMS.columns if column != _PREFERRED),
        Column("chosen", pa.string(), "the preferred response, which is right"),
        Column("rejected", pa.string(), "y: the rejected response, which is wrong"),
    ),
)

ROLLOUTS: TableSpec[RolloutRow] = TableSpec(
    "rollouts",
    "df rollout",
    "df build-masks",
    (
        _PROBLEM_ID,
        _SAMPLE,
        Column("ids", IDS, "response token ids, end token included"),
        Column("sampler_logprobs", FLOATS, "log-prob of each token under the sampled distribution"),
        _FINISH,
        _REWARD,
        _TEXT,
    ),
)

REPAIRS: TableSpec[RepairRow] = TableSpec(
    "repairs",
    "df build-masks",
    "you",
    (
        _PROBLEM_ID,
        Column("sample", pa.int32(), "the rollout that was repaired"),
        Column("candidate", pa.int32(), "k, from 0; the rollout's `sample` where rollouts of the group repair"),
        Column("ids", IDS, "token ids of the candidate"),
        _TEXT,
        _REWARD,
        _COST,
        _FLAGGED,
        _CATEGORY,
        _EVIDENCE,
        Column(
            "selection",
            pa.string(),
            "`chosen`, or why not: `unscored`, `wrong`, `cut` at the length limit, `flagged`, `unaudited`, `costlier`",
        ),
    ),
)


def _scores_column(name: str, meaning: str, asked_by: str) -> Column:
    null = f"a repair; a file has the column only where the recipe asks for `{asked_by}`"
    return Column(name, FLOATS, meaning, null, optional=True)


GROUPS: TableSpec[GroupRow] = TableSpec(
    "groups",
    "df build-masks",
    "df train-policy",
    (
        _PROBLEM_ID,
        _GROUP_SAMPLE,
        Column("role", pa.string(), "`correct`, `error` or `repair`"),
        Column("in_pair", pa.bool_(), "takes part in the difference-feedback group of pairs (eq. 16)"),
        Column("ids", IDS, "response token ids"),
        Column("reward", pa.float32(), "task reward R"),
        Column("mask", MASK, "hard difference mask (eq. 8, 19); all true on an ungated row in the group of pairs"),
        Column("old_logprobs", FLOATS, "the policy's own log-prob of each token, teacher-forced"),
        _FINISH,
        Column(
            "sampler_logprobs",
            FLOATS,
            "those of `rollouts`",
            null="the policy did not sample it: another model's repair, or preference data; a file may lack the column",
            optional=True,
        ),
        _scores_column("entropies", "entropy in nats of the policy's distribution at each token", "entropy"),
        _scores_column(
            "image_kls",
            "KL in nats of the policy's distribution at each token, with the image, to the one without",
            "perception",
        ),
        _scores_column(
            "answer_gaps",
            "log-prob of each token where the policy is shown the answer, less `old_logprobs`, in nats",
            "answer_gap",
        ),
    ),
)

DRAFTS: TableSpec[DraftRow] = TableSpec(
    "drafts",
    "df rl-repair, df repair-set sheet",
    "you, the same command when it goes on",
    (
        _PROBLEM_ID,
        _GROUP_SAMPLE,
        Column("ids", pa.list_(pa.int32()), "the error's token ids, end token included"),
        Column("text", pa.string(), "the error"),
        Column(
            "right_response",
            pa.string(),
            "the reference that its repairs are shown",
            null="the annotated answer is shown, or people repair the error",
        ),
        Column(
            "right_texts",
            pa.list_(pa.string()),
            "right responses to the problem, from which the auditor sees whether the policy finishes reasoning at all",
            null="none is known; a file may lack the column",
            optional=True,
        ),
    ),
)

EPISODES: TableSpec[EpisodeRow] = TableSpec(
    "episodes",
    "df rl-repair",
    "you, df audit-sample, df audit-agreement",
    (
        Column("iteration", pa.int32(), "from 0"),
        _PROBLEM_ID,
        _GROUP_SAMPLE,
        Column("attempt", pa.int32(), "which repair of this error, from 0"),
        Column("error", pa.string(), "the draft y"),
        _TEXT,
        _REWARD,
        _COST,
        Column(
            "gate_c1",
            pa.bool_(),
            "g_C1 (eq. 3): the error cannot be repaired without the image",
            null="too many counterfactuals could not be scored",
        ),
        Column("gate_audit", pa.bool_(), "g_audit: not flagged", null="no verdict"),
        _CATEGORY,
        _EVIDENCE,
        Column(
            "repair_reward", pa.float32(), "R_rep (eq. 4)", null="some part of it is null, or the audit filtered it out"
        ),
    ),
)

DROPPED: TableSpec[DroppedRow] = TableSpec(
    "dropped",
    "df import-problems, and every command that leaves a problem out",
    "you",
    (
        _PROBLEM_ID,
        Column("reason", pa.string(), "`text_only_solvable`, or why a row could not be imported or used"),
        Column(
            "detail",
            pa.string(),
            "value, place and remedy",
            null="the reason says it all; a file may lack the column",
            optional=True,
        ),
    ),
)

VALUES: TableSpec[ValuesRow] = TableSpec(
    "values",
    "df train-policy",
    "you, df train-policy",
    (
        _PROBLEM_ID,
        _SAMPLE,
        Column("values", FLOATS, "of PPO's critic before each token, as the round starts"),
    ),
)

OLD_LOGPROBS: TableSpec[OldLogprobsRow] = TableSpec(
    "old_logprobs",
    "df train-policy",
    "you, df train-policy",
    (
        _PROBLEM_ID,
        _SAMPLE,
        Column("role", pa.string(), "as in `groups`"),
        Column(
            "old_logprobs",
            FLOATS,
            "of each token under the policy as the round starts: read in its own step's passes if that reads it, else "
            "as in `groups`",
        ),
    ),
)

METRICS: TableSpec[MetricRow] = TableSpec(
    "metrics",
    "df sft-repair, df rl-repair, df train-policy",
    "you, df summarize",
    (
        Column("step", pa.int32(), "optimizer step, from 1"),
        Column("metric", pa.string(), "its name, as in `loss` or `ratio_mean/error`"),
        Column("value", pa.float64(), "its value"),
    ),
)

SAMPLES: TableSpec[SampleRow] = TableSpec(
    "samples",
    "df sft-repair, df rl-repair",
    "you, df summarize",
    (
        _PROBLEM_ID,
        Column("attempt", pa.int32(), "k, from 0; Acc@k counts errors with a correct repair among k"),
        Column("answer", pa.string(), "the reference answer"),
        Column("error", pa.string(), "the held-out draft y"),
        _TEXT,
        _REWARD,
        _COST,
        replace(_FLAGGED, optional=True),
        replace(_CATEGORY, optional=True),
    ),
)

SCORES: TableSpec[ScoreRow] = TableSpec(
    "scores",
    "df evaluate",
    "you, df summarize",
    (
        _PROBLEM_ID,
        Column("kind", pa.string(), "the problem's kind", null="no kind"),
        Column("mode", pa.string(), "`greedy`, `sampled` or `image_removed`"),
        Column("draw", pa.int32(), "which of the sampled answers, from 0"),
        _TEXT,
        _REWARD,
    ),
)

SUMMARY: TableSpec[AnyRow] = TableSpec(
    "summary",
    "df summarize",
    "you",
    (
        Column("section", pa.string(), "what it is about"),
        Column("measure", pa.string(), "what was measured"),
        Column("value", pa.float64(), "the number"),
        Column("low", pa.float64(), "lower end of the 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of the 95% interval", null="no interval"),
        Column("n", pa.int64(), "how many it was measured on", null="not a share or a mean"),
    ),
)

CURVES: TableSpec[AnyRow] = TableSpec(
    "curves",
    "df ablate, df merge-studies",
    "df ablate, df merge-studies, you",
    (
        Column("key", pa.string(), "digest of all that the run depends on: one that is here is not run again"),
        Column(
            "study",
            pa.string(),
            "name that its study has among several (`df merge-studies`)",
            null="it was given none",
            optional=True,
        ),
        Column("variant", pa.string(), "its name in the recipe, or `base`: the base policy"),
        Column("seed", pa.int32(), "of the run"),
        Column("problems", pa.string(), "`test`, or `validation`: what the learning rate is tuned on"),
        Column("learning_rate", pa.float64(), "of the policy", null="no training, or not recorded"),
        Column("budget", pa.float64(), "device-seconds at which the run is read", null="at its end"),
        Column("round", pa.float64(), "rounds done by then"),
        Column("device_seconds", pa.float64(), "spent by then, evaluations left out (eq. 29)"),
        Column("rollouts", pa.float64(), "responses sampled from the policy by then, to train it"),
        Column(
            "measure",
            pa.string(),
            "`sampled` or `greedy` accuracy; that word before something else that was counted in the same answers; "
            "`repair` before a measure of the repair model",
        ),
        Column(
            "values",
            pa.list_(pa.float32()),
            "of each problem or held-out error, in the order of ids; NaN: not scored",
        ),
    ),
)
ABLATION: TableSpec[AnyRow] = TableSpec(
    "ablation",
    "df ablate, df merge-studies",
    "you",
    (
        Column("variant", pa.string(), "its name in the recipe, or `base`: the base policy"),
        Column("seed", pa.int32(), "of one run", null="over all seeds"),
        Column("measure", pa.string(), "what was measured"),
        Column("value", pa.float64(), "the number"),
        Column("low", pa.float64(), "lower end of the 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of the 95% interval", null="no interval"),
        Column("n", pa.int64(), "problems or errors that it was measured on", null="not a mean over them"),
        Column("note", pa.string(), "why the run failed", null="it did not"),
    ),
)

_EPISODE_ID = Column("episode_id", pa.string(), "`iteration/problem_id/sample/attempt` of `episodes`")

AUDIT_SAMPLE: TableSpec[AuditSampleRow] = TableSpec(
    "audit_sample",
    "df audit-sample",
    "df audit-agreement",
    (
        _EPISODE_ID,
        Column("stratum", pa.string(), "the auditor's verdict: `clean`, or the category that it flagged"),
        Column("population", pa.int64(), "repairs in the stratum"),
        Column("drawn", pa.int64(), "of them in the sample; `population / drawn` is the weight of each"),
    ),
)


def _shown(name: str, meaning: str) -> Column:
    return Column(name, pa.string(), meaning, null="not shown", optional=True)


AUDIT_LABELS: TableSpec[AnyRow] = TableSpec(
    "audit_labels",
    "df audit-sample, you",
    "df audit-agreement",
    (
        _EPISODE_ID,
        Column("label", pa.string(), "`clean`, or the category that a person flags it for", null="not labelled"),
        _shown("question", "the problem's question"),
        _shown("answer", "the reference answer y*"),
        _shown("error", "the draft y"),
        _shown("repair", "the repair ŷ"),
        _shown("difference", "both in one text: `[-removed-]`, `{+added+}`"),
    ),
)

AUDIT_AGREEMENT: TableSpec[AgreementRow] = TableSpec(
    "audit_agreement",
    "df audit-agreement",
    "you",
    (
        Column("section", pa.string(), "`overall`: flagged or not; a category: flagged for it or not; or a stratum"),
        Column(
            "estimate",
            pa.string(),
            "`labels`: of the labelled repairs; `population`: of all audited ones, from a stratified sample",
        ),
        Column("measure", pa.string(), "what was measured"),
        Column("value", pa.float64(), "the number", null="not defined; `note` says why"),
        Column("low", pa.float64(), "lower end of the 95% interval", null="no interval"),
        Column("high", pa.float64(), "upper end of the 95% interval", null="no interval"),
        Column("n", pa.int64(), "labels in the denominator; of a population estimate all that it rests on"),
        Column("note", pa.string(), "why there is no value", null="there is one"),
    ),
)

TABLES: tuple[TableSpec[Any], ...] = (
    PROBLEMS, ERRORS, REPAIR_SET, PREFERENCES, ROLLOUTS, REPAIRS, GROUPS, DRAFTS, EPISODES, DROPPED, VALUES,
    OLD_LOGPROBS, METRICS, SAMPLES, SCORES, SUMMARY, CURVES, ABLATION, AUDIT_SAMPLE, AUDIT_LABELS, AUDIT_AGREEMENT,
)  # fmt: skip
