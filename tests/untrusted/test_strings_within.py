"""Keys and strings of JSON and YAML, however deep; few aliases are not followed billions of times."""

import pytest
import yaml

from stages.untrusted.strings_within import named, texts

VALUE = {"a": ["x", {"b": "y", "c": [{"a": "z"}, 3, None]}], "b": {"d": ["w"]}, "e": "v"}


def test_keys_are_found_at_every_depth():
    assert sorted(map(str, named(VALUE, "b"))) == ["y", "{'d': ['w']}"]
    outer, inner = named(VALUE, "a")
    assert (outer, inner) == (VALUE["a"], "z")
    assert list(named([1, "a"], "a")) == []


def test_strings_are_found_at_every_depth():
    assert sorted(texts(VALUE)) == ["v", "w", "x", "y", "z"]
    assert list(texts("alone")) == ["alone"]
    assert list(texts(None)) == []


@pytest.mark.timeout(10)
def test_aliases_are_followed_once():
    levels = ["a0: &a0 [laugh]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    value = yaml.safe_load("\n".join(levels))
    assert set(texts(value)) == {"laugh"}
    assert set(texts(yaml.safe_load("&a [*a, x]"))) == {"x"}
