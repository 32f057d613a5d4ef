"""Scripts, distances and masks against plain dynamic programs and pairs worked by hand."""

import random
from collections.abc import Sequence

import edlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from stages.core.alignment import difference_masks, edit_cost, edit_script, mark_differences, symbols

LARGEST_ID = 2**31
ALIGNMENTS = ("levenshtein", "lcs")

unhurried = settings(deadline=None)
few_symbols = st.lists(st.integers(0, 3), max_size=12)
token_ids = st.lists(st.integers(0, 3) | st.integers(LARGEST_ID - 3, LARGEST_ID), max_size=12)


def distance_by_dynamic_program(a: Sequence[int], b: Sequence[int], substitution: int) -> int:
    """Wagner-Fischer; a substitution of cost 2 makes it the indel distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            matched = previous[j - 1] + (0 if x == y else substitution)
            row.append(min(matched, previous[j] + 1, row[j - 1] + 1))
    return row[-1]


def optimal_distance(error: Sequence[int], repair: Sequence[int], align: str) -> int:
    return distance_by_dynamic_program(error, repair, substitution=1 if align == "levenshtein" else 2)


def apply_letters(letters: str, error: Sequence[int], repair: Sequence[int]) -> tuple[list[int], int]:
    """Replay a path of one letter per step; `=` reads the error, so a wrong match shows in the result."""
    result, edits, i, j = [], 0, 0, 0
    for letter in letters:
        if letter == "=":
            result.append(error[i])
        elif letter in "ri":
            result.append(repair[j])
        edits += letter != "="
        i += letter in "=rd"
        j += letter in "=ri"
    assert (i, j) == (len(error), len(repair))
    return result, edits


def path_letters(error: Sequence[int], repair: Sequence[int], align: str) -> str:
    letter = {"equal": "=", "replace": "r", "delete": "d", "insert": "i"}
    script = edit_script(error, repair, align=align)
    return "".join(letter[e.tag] * max(e.i2 - e.i1, e.j2 - e.j1) for e in script)


def marked(mask: np.ndarray) -> list[int]:
    assert mask.dtype == np.bool_
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("align", ALIGNMENTS)
@unhurried
@given(error=token_ids, repair=token_ids)
def test_script_applied_to_the_error_gives_the_repair_in_the_fewest_edits(align, error, repair):
    letters = path_letters(error, repair, align)
    result, edits = apply_letters(letters, error, repair)

    assert result == repair
    assert edits == optimal_distance(error, repair, align)
    assert align == "levenshtein" or "r" not in letters


@pytest.mark.parametrize("align", ALIGNMENTS)
@unhurried
@given(error=token_ids, repair=token_ids)
def test_distance_is_of_the_path_and_cost_is_always_levenshtein(align, error, repair):
    masks = difference_masks(error, repair, align=align)
    levenshtein = distance_by_dynamic_program(error, repair, substitution=1)

    assert masks.distance == optimal_distance(error, repair, align)
    assert masks.cost == edit_cost(error, repair) == levenshtein / max(len(error), len(repair), 1)


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("truncate", ["none", "error", "both"])
@unhurried
@given(error=few_symbols, repair=few_symbols)
def test_first_difference_is_marked_on_each_side_that_has_it_and_nothing_before(align, truncate, error, repair):
    masks = difference_masks(error, repair, align=align, truncate=truncate)
    if error == repair:
        assert not masks.error_T.any()
        assert not masks.repair_T.any()
        assert (masks.distance, masks.cost) == (0, 0.0)
        return

    pairs = zip(error, repair, strict=False)
    first = next((k for k, (x, y) in enumerate(pairs) if x != y), min(len(error), len(repair)))
    for ids, mask in ((error, masks.error_T), (repair, masks.repair_T)):
        assert len(mask) == len(ids)
        assert not mask[:first].any()
        if first < len(ids):
            assert mask[first]


@pytest.mark.parametrize("align", ALIGNMENTS)
@unhurried
@given(error=few_symbols, repair=few_symbols)
def test_without_anchors_exactly_the_edited_tokens_are_marked(align, error, repair):
    masks = difference_masks(error, repair, align=align, anchor_gaps=False)
    letters = path_letters(error, repair, align)

    assert masks.error_T.tolist() == [letter in "rd" for letter in letters if letter in "=rd"]
    assert masks.repair_T.tolist() == [letter in "ri" for letter in letters if letter in "=ri"]


@pytest.mark.parametrize(
    ("error", "repair", "align", "on_error", "on_repair", "distance", "cost"),
    [
        ([1, 2, 3], [1, 9, 3], "levenshtein", [1], [1], 1, 1 / 3),
        ([1, 2, 3], [1, 9, 3], "lcs", [1], [1], 2, 1 / 3),
        ([1, 3], [1, 9, 3], "levenshtein", [1], [1], 1, 1 / 3),
        ([1, 9, 3], [1, 3], "levenshtein", [1], [1], 1, 1 / 3),
        ([7, 7, 7], [7, 7], "levenshtein", [2], [], 1, 1 / 3),
        ([1, 2], [1, 2, 0], "levenshtein", [], [2], 1, 1 / 3),
        ([1, 2, 2, 3], [1, 9, 3], "levenshtein", [1, 2], [1], 2, 1 / 2),
        ([], [5, 6], "levenshtein", [], [0, 1], 2, 1.0),
        ([], [], "lcs", [], [], 0, 0.0),
    ],
)
def test_masks_worked_by_hand(error, repair, align, on_error, on_repair, distance, cost):
    masks = difference_masks(error, repair, align=align)

    assert (marked(masks.error_T), marked(masks.repair_T)) == (on_error, on_repair)
    assert (masks.distance, masks.cost) == (distance, pytest.approx(cost))


@pytest.mark.parametrize("align", ALIGNMENTS)
@unhurried
@given(few_symbols, few_symbols, st.booleans(), st.sampled_from(["none", "error", "both"]))
def test_marks_in_slices_of_one_array_are_the_masks_and_stay_inside(align, error, repair, anchor_gaps, truncate):
    options = {"align": align, "anchor_gaps": anchor_gaps, "truncate": truncate}
    flat, middle, end = np.zeros(len(error) + len(repair) + 3, np.bool_), len(error) + 1, len(error) + len(repair) + 1
    tokens = symbols(np.array(error + repair, np.int32))
    edits = mark_differences(tokens[: len(error)], tokens[len(error) :], flat[1:middle], flat[middle:end], **options)
    masks = difference_masks(error, repair, **options)

    assert edits == masks.distance
    assert flat.tolist() == [False, *masks.error_T, *masks.repair_T, False, False]


def test_anchor_marks_the_token_after_a_gap_only_where_asked():
    inserted, deleted = ([1, 3], [1, 9, 3]), ([1, 9, 3], [1, 3])

    assert marked(difference_masks(*inserted, anchor_gaps=False).error_T) == []
    assert marked(difference_masks(*inserted).error_T) == [1]
    assert marked(difference_masks(*deleted, anchor_gaps=False).repair_T) == []
    assert marked(difference_masks(*deleted).repair_T) == [1]


def test_lcs_replacement_is_one_block_and_gets_no_anchor():
    masks = difference_masks([1, 2, 3, 4], [1, 8, 9, 4], align="lcs")

    assert (marked(masks.error_T), marked(masks.repair_T)) == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("truncate", "on_error", "on_repair"),
    [
        ("none", [1, 2, 4, 6], [1, 2, 4, 6]),
        ("error", [1, 2], [1, 2, 4, 6]),
        ("both", [1, 2], [1, 2]),
    ],
)
def test_truncation_keeps_the_first_marked_span(truncate, on_error, on_repair):
    # 2 2 become 8 8, 4 becomes 9, and 6 is deleted: its anchor in the repair is the 7.
    masks = difference_masks([1, 2, 2, 3, 4, 5, 6, 7], [1, 8, 8, 3, 9, 5, 7], truncate=truncate)

    assert (marked(masks.error_T), marked(masks.repair_T)) == (on_error, on_repair)


# The path that the pinned rapidfuzz takes where several are optimal (= keep, r replace, d delete, i insert).
# Copied from the library on purpose: a version that breaks ties otherwise changes masks, and must fail here.
PINNED_PATHS = [
    ("AABB", "ABAB", "=i=d=", "=i=d="),
    ("ABC", "CAB", "i==d", "i==d"),
    ("AAB", "ABA", "=i=d", "=i=d"),
    ("ABAB", "BABA", "i===d", "i===d"),
    ("AB", "BA", "i=d", "i=d"),
    ("AAAA", "AA", "==dd", "==dd"),
    ("ABCA", "ACBA", "=i=d=", "=i=d="),
    ("ABBA", "BAAB", "i=r=d", "i=i=dd"),
    ("ABAC", "CABA", "i===d", "i===d"),
    ("AABAA", "ABBA", "=r=d=", "=d=id="),
    ("ABCB", "BACB", "i=d==", "i=d=="),
    ("ABCABC", "CBACBA", "r=i=d=r", "ii=i=d=dd"),
]


@pytest.mark.parametrize(("error", "repair", "levenshtein", "lcs"), PINNED_PATHS)
def test_pinned_paths_are_optimal_and_still_the_ones_taken(error, repair, levenshtein, lcs):
    error_ids, repair_ids = [ord(c) for c in error], [ord(c) for c in repair]
    for align, letters in (("levenshtein", levenshtein), ("lcs", lcs)):
        result, edits = apply_letters(letters, error_ids, repair_ids)
        assert (result, edits) == (repair_ids, optimal_distance(error_ids, repair_ids, align))
        assert path_letters(error_ids, repair_ids, align) == letters


def random_edits(rng: random.Random, ids: list[int], symbols: range, edits: int) -> list[int]:
    ids = list(ids)
    for _ in range(edits):
        k = rng.randrange(len(ids))
        ids[k : k + rng.randrange(2)] = rng.choices(symbols, k=rng.randrange(3))
    return ids


@pytest.mark.parametrize("symbols", [range(LARGEST_ID - 5, LARGEST_ID), range(LARGEST_ID - 150_000, LARGEST_ID)])
@pytest.mark.parametrize("align", ALIGNMENTS)
def test_four_thousand_tokens_of_few_and_of_many_symbols(symbols, align):
    rng = random.Random(0)
    error = rng.choices(symbols, k=4000)
    repair = random_edits(rng, error, symbols, edits=300)
    masks = difference_masks(error, repair, align=align)
    result, edits = apply_letters(path_letters(error, repair, align), error, repair)

    assert (result, edits) == (repair, masks.distance)
    assert edit_cost(error, repair) * max(len(error), len(repair)) == pytest.approx(Levenshtein.distance(error, repair))


@pytest.mark.parametrize("shared", [1, 253, 254, 255, 600])
def test_edlib_and_rapidfuzz_agree_on_both_sides_of_the_symbol_limit(shared, monkeypatch):
    """Tokens on both sides keep a symbol each and the rest of a side shares one: edlib takes 254 shared."""
    calls, align = [], edlib.align
    monkeypatch.setattr(edlib, "align", lambda *ids, **options: calls.append(ids) or align(*ids, **options))
    rng = random.Random(shared)
    common = rng.sample(range(LARGEST_ID), k=shared)
    own = rng.sample(range(LARGEST_ID, 2 * LARGEST_ID), k=600)
    # Own tokens at both ends, so that trimming leaves every shared one in place.
    error = own[:1] + rng.sample(common + own[1:299], k=shared + 298) + own[299:300]
    repair = own[300:301] + rng.sample(common + own[301:599], k=shared + 298) + own[599:]

    assert edit_cost(error, repair) == Levenshtein.distance(error, repair) / len(error)
    assert len(calls) == (shared <= 254)


@unhurried
@given(error=token_ids, repair=token_ids)
def test_arrays_and_lists_are_the_same_ids(error, repair):
    from_lists = difference_masks(error, repair)
    from_arrays = difference_masks(np.array(error, np.uint32), np.array(repair, np.int64))

    assert from_arrays.error_T.tolist() == from_lists.error_T.tolist()
    assert from_arrays.repair_T.tolist() == from_lists.repair_T.tolist()


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], [1.0, 2.0], ["1", "2"]])
def test_ids_that_are_not_flat_integers_are_refused(ids):
    with pytest.raises(ValueError, match="flat sequence of integers"):
        edit_cost(ids, [1])


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="align is 'hamming'"):
        difference_masks([1], [2], align="hamming")
    with pytest.raises(ValueError, match="truncate is 'repair'"):
        difference_masks([1], [2], truncate="repair")
