"""Errors and their repairs, as a page shows them: which of them, their marks, their problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stages.artifacts.columns import GROUPS, PREFERENCES, PROBLEMS, REPAIRS, ROLLOUTS, TableSpec
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.overlay import MarkedToken
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.store import ROWS_PER_GROUP, parquet_files, read_tables
from stages.artifacts.word_difference import marked_words
from stages.chain import MASKS, RL, ROLLOUT, SFT, TRAIN, round_folder
from stages.declared import table_input
from stages.engines.loading import open_codec
from stages.errors import ArtifactError, DataError, ModelError
from stages.model.codec import Codec
from stages.pages.state import Manifest, RunState, Source
from stages.recipe import Recipe
from stages.repair.hard_masks import hard_masks
from stages.repair.marked_pairs import marked_runs
from stages.sections import MasksSection

MOST = 1000
"""Pairs that are read and shown (our choice): a browser lays more of them out slowly."""
WORST_FIRST = ("flagged", "wrong", "cut", "unscored", "unaudited", "costlier", "chosen")
"""Of a candidate's `selection`."""
Key = tuple[str, int]
"""A response, an error most often: problem and sample."""


class Candidate(NamedTuple):
    """A row of `repairs` without its texts."""

    run: int
    round: int
    problem_id: str
    sample: int
    candidate: int
    reward: float | None
    cost: float
    flagged: bool | None
    category: str | None
    selection: str

    @property
    def error(self) -> Key:
        return self.problem_id, self.sample


class Pair(NamedTuple):
    """An error and one repair of it."""

    of: Candidate
    error: Sequence[MarkedToken]
    repair: Sequence[MarkedToken]
    evidence: str | None
    problem: Problem | None
    """None where its file is gone, or another one than the masks were built from."""


def candidates(sources: Sequence[Source]) -> list[Candidate]:
    """Every repair of every complete round, the worst and the most edited first."""
    names = Candidate._fields[2:]
    found = [
        Candidate(run, number, *(row[name] for name in names))
        for run, source in enumerate(sources)
        for number in range(1, source.state.rounds + 1)
        for folder in [source.state.with_rows(number, MASKS, REPAIRS)]
        if folder is not None
        for row in read_rows(folder, REPAIRS, names)
    ]
    return sorted(found, key=_badness)


def drawn(found: Iterable[Candidate]) -> list[Candidate]:
    """At most `MOST`: in turn the worst of each run, outcome and category, and of these in turn the worst of each
    round, so that each has some; in the order in which room is to be given to them."""
    strata: dict[tuple[Any, ...], dict[int, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        strata[one.run, one.selection, one.category][one.round].append(one)
    return _in_turn([_in_turn(rounds.values()) for rounds in strata.values()])[:MOST]


def _in_turn(lists: Iterable[Sequence[Candidate]]) -> list[Candidate]:
    return [one for turn in zip_longest(*lists) for one in turn if one is not None]


def in_page_order(pairs: Iterable[Pair]) -> list[Pair]:
    """The worst and the most edited first."""
    return sorted(pairs, key=lambda pair: _badness(pair.of))


def _badness(one: Candidate) -> tuple[Any, ...]:
    place = WORST_FIRST.index(one.selection) if one.selection in WORST_FIRST else 0
    return place, one.reward or 0.0, -one.cost, *one[:5]


def read_pairs(sources: Sequence[Source], chosen: Sequence[Candidate]) -> tuple[list[Pair], list[str]]:
    """These candidates with their texts and problems, in their order; and what could not be shown, in words."""
    pairs: dict[Candidate, Pair] = {}
    notes: list[str] = []
    codecs: dict[str, Codec | None] = {}
    for (run, number), group in groupby(sorted(chosen), key=lambda one: (one.run, one.round)):
        state, wanted = sources[run].state, list(group)
        folder = round_folder(state.folder, number) / MASKS
        manifest = state.steps[f"round-{number}/{MASKS}"]
        problems = read_problems(manifest, {one.problem_id for one in wanted})
        if problems is None:
            notes.append(f"{folder}: without questions and pictures, since its problems are not where they were")
        vocabulary = manifest["recipe"]["vocabulary"]
        codec = codecs.get(vocabulary) or _codec(state, vocabulary)
        codecs[vocabulary] = codec
        if codec is None:
            notes.append(
                f"{folder}: differences by word, since no tokenizer of the run is left to read the masks' tokens"
            )
            read = _by_word(round_folder(state.folder, number), wanted)
        else:
            read = _by_token(folder, wanted, codec, MasksSection(**manifest["recipe"]["masks"]))
        pairs |= {one: Pair(one, *texts, (problems or {}).get(one.problem_id)) for one, texts in read}
    return [pairs[one] for one in chosen], notes


Texts = tuple[Sequence[MarkedToken], Sequence[MarkedToken], str | None]


def _by_token(
    folder: Path, wanted: Sequence[Candidate], codec: Codec, section: MasksSection
) -> Iterator[tuple[Candidate, Texts]]:
    """A selected repair with the masks of `groups`, another with those that it would have had."""
    errors = {one.error for one in wanted}
    members: dict[tuple[str, int, str], tuple[Any, Any]] = {}
    for row in read_rows(folder, GROUPS, ("problem_id", "sample", "role", "ids", "mask"), errors):
        members[row["problem_id"], row["sample"], row["role"]] = row["ids"], row["mask"]
    repairs = _repairs(folder, wanted, "ids", "evidence")
    for one in wanted:
        row = repairs[one]
        error_ids, error_mask = members[*one.error, "error"]
        if one.selection == "chosen":
            repair_mask = members[*one.error, "repair"][1]
        else:
            error_mask, repair_mask = hard_masks(section, codec, error_ids, row["ids"])
        error, repair = marked_runs(codec, error_ids, error_mask), marked_runs(codec, row["ids"], repair_mask)
        yield one, (error, repair, row["evidence"])


def _by_word(folder: Path, wanted: Sequence[Candidate]) -> Iterator[tuple[Candidate, Texts]]:
    errors = {one.error for one in wanted}
    rollouts = folder / ROLLOUT
    rows = read_rows(rollouts, ROLLOUTS, ("problem_id", "sample", "text"), errors) if rollouts.is_dir() else ()
    texts = {(row["problem_id"], row["sample"]): row["text"] for row in rows}
    repairs = _repairs(folder / MASKS, wanted, "text", "evidence")
    for one in wanted:
        error, repair = marked_words(texts.get(one.error, ""), repairs[one]["text"])
        yield one, (error, repair, repairs[one]["evidence"])


def _repairs(folder: Path, wanted: Sequence[Candidate], *columns: str) -> dict[Candidate, dict[str, Any]]:
    by_place = {one[2:5]: one for one in wanted}
    names = ("problem_id", "sample", "candidate", *columns)
    places = {
        (row["problem_id"], row["sample"], row["candidate"]): row
        for row in read_rows(folder, REPAIRS, names, {one.error for one in wanted})
    }
    return {one: places[place] for place, one in by_place.items()}


def read_rows(
    folder: Path, spec: TableSpec[Any], columns: Sequence[str], keys: set[Key] | None = None
) -> Iterator[dict[str, Any]]:
    """These columns of every row, or of the rows of these responses; null where an optional one is not there."""
    for file in parquet_files(folder, spec):
        for part in read_tables(file, ROWS_PER_GROUP, columns):
            table = spec.with_optional(part).select(columns)
            yield from (table if keys is None else _of(table, keys)).to_pylist()


def _of(table: pa.Table, wanted: set[Key]) -> pa.Table:
    keys = zip(table["problem_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
    return table.filter(pa.array([key in wanted for key in keys], pa.bool_()))


def read_problems(manifest: Manifest, ids: set[str]) -> Mapping[str, Problem] | None:
    """Those of a step's problems; None where their file is gone, or another one than the step was made from."""
    spec = PREFERENCES if PREFERENCES.name in manifest["inputs"] else PROBLEMS
    source = manifest["inputs"][spec.name]
    path = Path(source["path"])
    try:
        if not path.exists() or fingerprint(path, table_input(path, spec).reads) != source["sha256"]:
            return None
        known = ProblemSet(path, spec, on_bad_row="drop")
    except (ArtifactError, DataError):
        return None
    wanted = known.in_file_order(ids)
    return dict(zip(wanted, known.many(wanted), strict=True))


def _codec(state: RunState, vocabulary: str) -> Codec | None:
    """Of any model that the run made or read and that gives token ids the same meaning; never from the network, and
    without a model's own code."""
    policies = (f"round-{number}/{TRAIN}" for number in range(1, state.rounds + 1))
    made = [state.folder / step for step in (SFT, RL, *policies) if step in state.steps]
    read = [inputs["policy"]["path"] for step in state.steps.values() if "policy" in (inputs := step["inputs"])]
    for folder in [*made, *map(Path, dict.fromkeys(read))]:
        if folder.is_dir():
            try:
                codec = open_codec(folder, Recipe())
            except (ArtifactError, ModelError):
                continue
            if codec.vocabulary_sha256 == vocabulary:
                return codec
    return None
