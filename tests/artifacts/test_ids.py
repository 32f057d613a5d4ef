import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts.id_index import IdIndex

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=1, unique=True)


def index_of(*chunks):
    return IdIndex(pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks]))


@settings(deadline=None)
@given(TEXTS)
def test_every_id_is_found_where_it_stands_and_no_other_is(texts):
    index = index_of(texts[:-1], texts[-1:])

    assert [index.find(text) for text in texts] == list(range(len(texts)))
    assert index.find("longer than any") is None
    assert list(index.ids) == texts
    assert len(index.repeats_N) == 0


def test_ids_that_stand_again_are_told():
    assert index_of(["b", "c", "a"], ["d", "a", "b", "b"]).repeats_N.tolist() == [4, 5, 6]


def test_ids_are_cut_and_chosen_in_order():
    ids = index_of(["a", "b"], ["c", "d"]).ids

    assert ids[1:3] == ["b", "c"]
    assert ids[-1] == "d"
    assert list(ids.at(np.array([3, 0]))) == ["d", "a"]
    with pytest.raises(IndexError):
        ids[4]


def test_an_id_takes_few_bytes_beside_its_text():
    texts = pa.chunked_array([pa.array([f"id-{number:07d}" for number in range(10_000)])])
    in_arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    index = IdIndex(texts)
    in_python, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    in_arrow = pa.total_allocated_bytes() - in_arrow

    assert index.find("id-0000007") == 7
    assert in_arrow + in_python < 10_000 * (10 + 20)
