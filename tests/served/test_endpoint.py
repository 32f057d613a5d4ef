"""Requests to a served model: limits, retries, what stops a stage, the cache; against a scripted server."""

import json
import logging
import re
import traceback
from email.utils import formatdate
from time import monotonic, sleep, time

import pyarrow.parquet as pq
import pytest
from openai import OpenAIError
from PIL import Image
from pydantic import ValidationError

from scripted_server import Special, completion, data_of, refusal, serving
from stages.errors import DataError, EndpointError, RecipeError
from stages.sections import EndpointSection
from stages.served import endpoint, verdict_cache
from stages.served.case import Case, Pictures
from stages.served.endpoint import Reply, ServedModel
from stages.served.verdict_cache import VERDICTS, VerdictCache

KEY = "sk-this-is-the-secret-key-0123456789"
YES = completion({"says": "yes"})


class Says(Reply):
    says: str


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Back-off in hundredths of a second."""
    monkeypatch.setattr(endpoint, "FIRST_DELAY_S", 0.02)


@pytest.fixture
def model(tmp_path):
    """A function: a served model with these options."""

    def make(server, instructions="Say yes.", **options):
        options = {"model": "tiny", "timeout_s": 5.0, "retries": 2, "cache": tmp_path / "cache"} | options
        section = EndpointSection(base_url=server.url, **options)
        return ServedModel(section, "reward.judge", instructions, Says)

    return make


def cases(*texts, image=None):
    return [Case(Pictures([image] if image else [], None), {"response": text}) for text in texts]


def numbered(count):
    return cases(*(str(i) for i in range(count)))


def said(replies):
    return [[reply.says for reply in group] for group in replies]


def script_of(*answers, then=YES):
    return lambda _server, _request, number: answers[number] if number < len(answers) else then


def test_every_case_gets_its_own_reply_in_order(model):
    def echo(_server, request, number):
        sleep(0.03 * (number % 3))
        return completion({"says": data_of(request)["response"]})

    with serving(echo) as server:
        replies = model(server, concurrency=5).ask(numbered(15))
    assert said(replies) == [[str(i)] for i in range(15)]


def test_what_is_sent(model):
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    with serving(script_of()) as server:
        model(server, temperature=0.5, max_tokens=77).ask(cases("a response", image=image))
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert (request["temperature"], request["max_completion_tokens"], request["seed"]) == (0.5, 77, 0)
    assert request["messages"][0] == {"role": "system", "content": "Say yes."}
    picture, _ = request["messages"][1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert data_of(request) == {"response": "a response"}
    schema = request["response_format"]["json_schema"]
    assert (request["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert schema["schema"]["required"] == ["says"]
    assert schema["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_under_way_reach_the_limit_and_never_pass_it(model, limit):
    def slow(*_):
        sleep(0.05)
        return YES

    with serving(slow) as server:
        model(server, concurrency=limit).ask(numbered(9))
    assert server.most_under_way == limit
    assert len(server.requests) == 9


def test_processes_share_the_limit(model, monkeypatch):
    def slow(*_):
        sleep(0.05)
        return YES

    monkeypatch.setattr(endpoint.processes, "count", lambda: 2)
    with serving(slow) as server:
        model(server, concurrency=4).ask(numbered(8))
    assert server.most_under_way == 2


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(500),
        refusal(503),
        refusal(429),
        refusal(408),
        Special(b'{"choices": [{"index": 0, "fini'),
        Special(b"<html>", headers={"Content-Type": "text/html"}),
        completion('{"says": "ye'),
        completion({"says": "yes"}, finish_reason="length"),
        completion({"says": 7}),
        completion({"verdict": "yes"}),
        completion({"says": "yes", "more": 1}),
        {"choices": []},
        {"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "no"}}]},
        Special(silence_s=3.0),
        Special(b" " * 200, drip_s=0.02),
    ],
    ids=["500", "503", "429", "408", "truncated body", "no JSON", "truncated reply", "cut reply", "wrong type",
         "wrong field", "further field", "no choice", "refused", "hang", "slow drip"],
)  # fmt: skip
def test_what_may_pass_is_tried_again_and_null_when_it_does_not(model, trouble):
    with serving(script_of(trouble, trouble)) as server:
        assert said(model(server, timeout_s=0.5).ask(cases("a"))) == [["yes"]]
        assert len(server.requests) == 3
    with serving(script_of(then=trouble)) as server:
        assert said(model(server, timeout_s=0.5, retries=1).ask(cases("b"))) == [[]]
        assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_null(model):
    with serving(script_of()) as server:
        pass
    assert said(model(server, retries=1).ask(cases("a"))) == [[]]


@pytest.mark.parametrize("after", ["0.6", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_the_server_asks_for_is_kept(model, status, after):
    started = monotonic()
    header = formatdate(time() + 2, usegmt=True) if after == "date" else after  # whole seconds: at least one from now
    with serving(script_of(refusal(status, Retry_After=header))) as server:
        model(server).ask(cases("a"))
    first, second = (at - started for at in server.times)
    assert second - first >= 0.55


def test_the_longest_wait_is_bounded():
    assert [endpoint._retry_after_s(h) for h in ("7", "1e9", "inf", "nan", "-3", "soon", None)] == [
        7, endpoint.LONGEST_RETRY_AFTER_S, endpoint.LONGEST_RETRY_AFTER_S, endpoint.LONGEST_RETRY_AFTER_S, 0, 0, 0,
    ]  # fmt: skip


def test_waits_grow_between_tries(model, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY_S", 0.2)
    with serving(script_of(then=refusal(500))) as server:
        model(server, retries=3).ask(cases("a"))
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert len(waits) == 3
    for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert least <= wait
    assert waits[2] > waits[0]


def test_another_try_has_another_seed(model):
    with serving(script_of(completion("{"), completion("{"))) as server:
        model(server, verdicts=3, temperature=1.0, concurrency=1).ask(cases("a"))
    assert [request["seed"] for request in server.requests] == [0, 3, 6, 1, 2]
    assert {request["temperature"] for request in server.requests} == {1.0}


def test_after_an_invalid_reply_a_greedy_verdict_is_sampled_and_after_a_busy_server_it_is_not(model):
    with serving(script_of(refusal(500), completion("{"), refusal(500))) as server:
        model(server, concurrency=1, retries=3).ask(cases("a", "b"))
    told = [(request["temperature"], request["seed"]) for request in server.requests]
    assert told == [(0, 0), (0, 0), (0.3, 1), (0.3, 1), (0, 0)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_the_stage_at_once(model, monkeypatch, status):
    monkeypatch.setenv("DF_KEY", KEY)
    with serving(script_of(then=refusal(status, f"bad request with {KEY}"))) as server:
        asked = model(server, api_key_env="DF_KEY", concurrency=1)
        with pytest.raises(EndpointError) as caught:
            asked.ask(numbered(9))
    assert len(server.requests) == 1
    message = str(caught.value)
    assert message.startswith(f"reward.judge: {server.url} refuses (HTTP {status}: ")
    assert "model tiny and the key in $DF_KEY, then run the same command again" in message


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(400, "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens"),
        refusal(400, "The prompt (length 9000) is longer than the maximum model length of 8192."),
        refusal(400, "At most 8 image(s) may be provided in one prompt."),
        refusal(413),
        refusal(422),
    ],
)
def test_a_case_that_is_refused_by_itself_is_null_and_is_not_tried_again(model, trouble):
    with serving(script_of(trouble)) as server:
        assert said(model(server, concurrency=1).ask(cases("long", "short"))) == [[], ["yes"]]
    assert len(server.requests) == 2


def test_cases_that_are_all_refused_stop_the_stage(model):
    told = r"2 of 9 verdicts .* could not be had.*unknown field response_format"
    with serving(script_of(then=refusal(400, "unknown field response_format"))) as server:
        asked = model(server, concurrency=1)
        with pytest.raises(EndpointError, match=told):
            asked.ask(numbered(9))
    assert len(server.requests) == 2


def test_the_key_is_sent_and_shows_up_nowhere_else(model, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("DF_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    told = []
    for number, answer in enumerate((YES, refusal(500, KEY), refusal(401, f"Incorrect key: {KEY}"))):
        with serving(script_of(then=answer)) as server:
            asked = model(server, api_key_env="DF_KEY", retries=0, max_null_share=0)
            try:
                asked.ask(numbered(number + 1)[number:])
            except EndpointError:
                told.append(traceback.format_exc())
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert len(told) == 2
    assert all("***" in text for text in told)
    on_disk = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert on_disk
    assert KEY.encode() not in on_disk
    assert all(KEY not in text for text in (*told, caplog.text, repr(vars(asked._section))))
    assert "api_key_env" not in asked._section.model_dump()


@pytest.mark.parametrize(
    "answer",
    [
        refusal(401, f"Incorrect key: {KEY}"),
        refusal(500, f'{{"authorization": "Bearer {KEY}"}}', x_echo=KEY),
        Special(f"<html>{KEY}</html>".encode(), 502),
        Special(f'{{"choices": "{KEY}"}}'.encode()),
        Special(f'{{"{KEY}": 1, '.encode()),
        completion({"says": "yes", KEY: KEY}),
        completion({"says": 1, "other": KEY}),
        completion(KEY),
        completion({"says": "yes"}, KEY),
    ],
    ids=lambda answer: str(answer.status) if isinstance(answer, Special) else "reply",
)
def test_no_exception_in_the_chain_holds_the_key(model, monkeypatch, caplog, answer):
    monkeypatch.setenv("DF_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(script_of(then=answer)) as server:
        asked = model(server, api_key_env="DF_KEY", retries=1, max_null_share=0)
        with pytest.raises(EndpointError) as caught:
            asked.ask(numbered(1))
    chain, error = [], caught.value
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    shown = "".join(traceback.format_exception(caught.value, chain=True)) + repr([vars(e) for e in chain]) + repr(chain)
    assert "0123456789" not in shown + caplog.text
    assert not any(isinstance(e, OpenAIError | ValidationError) for e in chain)


def test_a_reply_that_repeats_the_key_is_kept_without_it(model, monkeypatch, tmp_path):
    """However its JSON writes it."""
    monkeypatch.setenv("DF_KEY", KEY)
    escaped = json.dumps({"says": f"yes {KEY}"}).replace(
        KEY[:3], "".join(f"\\u{ord(letter):04x}" for letter in KEY[:3])
    )
    with serving(script_of(completion({"says": f"yes {KEY}"}), completion(escaped))) as server:
        replies = model(server, api_key_env="DF_KEY", concurrency=1).ask(numbered(2))
    assert said(replies) == [["yes ***"], ["yes ***"]]
    (file,) = (tmp_path / "cache").glob("*.parquet")
    assert [json.loads(reply) for reply in pq.read_table(file)["reply"].to_pylist()] == [{"says": "yes ***"}] * 2


def test_a_redirect_takes_the_key_to_no_other_server(model, monkeypatch):
    monkeypatch.setenv("DF_KEY", KEY)
    with serving(script_of()) as other:
        moved = Special(b"", 307, {"Location": f"{other.url}/chat/completions"})
        with serving(script_of(then=moved)) as server:
            replies = model(server, api_key_env="DF_KEY").ask(numbered(1))
    assert said(replies) == [["yes"]]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert len(other.headers) == 1
    assert KEY not in str(other.headers)


def test_without_a_key_none_is_sent(model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(script_of()) as server:
        model(server).ask(cases("a"))
    assert KEY not in str(server.headers)


@pytest.mark.parametrize(
    ("url", "name", "value", "message"),
    [
        ("http://h/v1", "DF_KEY", None, "environment variable DF_KEY is not set; export"),
        ("http://h/v1", "DF_KEY", "  ", "environment variable DF_KEY is not set; export"),
        ("http://h/v1", "DF_KEY", "two words", "DF_KEY holds characters that no key has"),
        ("http://h/v1", KEY, None, "api_key_env is not the name of an environment variable"),
        ("http://me:secret@h/v1", None, None, "base_url holds a user, a password or a query"),
        (f"http://h/v1?key={KEY}", None, None, "base_url holds a user, a password or a query"),
    ],
)
def test_a_key_that_cannot_be_had_is_refused_unseen(monkeypatch, tmp_path, url, name, value, message):
    monkeypatch.delenv("DF_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DF_KEY", value)
    section = EndpointSection(base_url=url, model="m", api_key_env=name, cache=tmp_path)
    with pytest.raises(RecipeError, match=r"audit\.endpoint\.") as caught:
        ServedModel(section, "audit.endpoint", "", Says)
    assert re.search(message, str(caught.value))
    assert not any(secret in str(caught.value) for secret in (KEY, "secret", "two words"))


def test_a_second_run_sends_nothing(model):
    with serving(script_of()) as server:
        first = model(server).ask(numbered(5))
        asked = model(server)
        assert asked.ask(numbered(5)) == asked.ask(numbered(5)) == first
        assert len(server.requests) == 5
        asked.ask(numbered(6))
        assert len(server.requests) == 6


def test_a_case_that_stands_twice_is_asked_once(model):
    with serving(script_of()) as server:
        assert said(model(server).ask(cases("a", "b", "a"))) == [["yes"]] * 3
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("changes", "asked_again"),
    [
        ({"model": "other"}, True),
        ({"instructions": "Say no."}, True),
        ({"temperature": 0.1}, True),
        ({"max_tokens": 7}, True),
        ({"text": "b"}, True),
        ({"image": Image.new("RGB", (4, 2), (9, 9, 8))}, True),
        ({"image": Image.new("RGB", (2, 4), (9, 9, 9))}, True),
        ({"image": Image.new("RGB", (4, 2), (9, 9, 9))}, False),
        ({"timeout_s": 3.0, "retries": 0, "concurrency": 1, "max_null_share": 0.5}, False),
    ],
)
def test_what_a_verdict_depends_on_is_its_key(model, changes, asked_again):
    options = dict(changes)
    case = cases(options.pop("text", "a"), image=options.pop("image", Image.new("RGB", (4, 2), (9, 9, 9))))
    with serving(script_of()) as server:
        model(server).ask(cases("a", image=Image.new("RGB", (4, 2), (9, 9, 9))))
        model(server, **options).ask(case)
    assert len(server.requests) == 1 + asked_again


def test_more_verdicts_ask_only_for_those_that_are_missing(model):
    with serving(script_of()) as server:
        model(server, temperature=1.0).ask(cases("a"))
        assert said(model(server, temperature=1.0, verdicts=3).ask(cases("a"))) == [["yes"] * 3]
    assert sorted(request["seed"] for request in server.requests) == [0, 1, 2]


def test_nulls_are_not_cached(model):
    with serving(script_of(refusal(500))) as server:
        assert said(model(server, retries=0).ask(cases("a"))) == [[]]
        assert said(model(server, retries=0).ask(cases("a"))) == [["yes"]]


def only_below(limit):
    def script(_server, request, _number):
        return YES if int(data_of(request)["response"]) < limit else refusal(500)

    return script


@pytest.mark.parametrize(("verdicts", "nulls", "stops"), [(40, 2, False), (40, 3, True), (4, 1, False), (4, 2, True)])
def test_too_many_nulls_stop_the_stage(model, verdicts, nulls, stops):
    """5% of 40 are two; of fewer than 20 verdicts, one is let pass."""
    with serving(only_below(verdicts - nulls)) as server:
        asked = model(server, retries=0)
        if not stops:
            assert said(asked.ask(numbered(verdicts))).count([]) == nulls
            return
        with pytest.raises(EndpointError) as caught:
            asked.ask(numbered(verdicts))
    message = str(caught.value)
    assert f"reward.judge: {nulls} of {verdicts} verdicts of tiny at {server.url} could not be had" in message
    assert "max_null_share 0.05 (the last: HTTP 500: " in message
    assert "run the same command again" in message


def test_nulls_add_up_over_calls(model):
    with serving(only_below(0)) as server:
        asked = model(server, retries=0)
        asked.ask(numbered(1))
        with pytest.raises(EndpointError, match="2 of 2 verdicts"):
            asked.ask(cases("7"))


def test_the_share_is_the_recipe_s(model):
    with serving(only_below(0)) as server:
        assert said(model(server, retries=0, max_null_share=1.0).ask(numbered(30))) == [[]] * 30
        with pytest.raises(EndpointError):
            model(server, retries=0, max_null_share=0.0).ask(numbered(1))


def test_a_stopped_stage_goes_on_where_it_stopped(model):
    with serving(only_below(25)) as server:
        with pytest.raises(EndpointError):
            model(server, retries=0, concurrency=4).ask(numbered(40))
        server.script = script_of()
        had = len(server.requests)
        assert said(model(server, concurrency=4).ask(numbered(40))) == [["yes"]] * 40
        assert len(server.requests) - had == 15


def test_verdicts_are_on_disk_while_others_are_under_way(model, tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_cache, "FLUSH_S", 0.0)
    rows = []

    def script(*_):
        files = (tmp_path / "cache").glob("verdicts-*.parquet")
        rows.append(sum(pq.ParquetFile(file).metadata.num_rows for file in files))
        return YES

    with serving(script) as server:
        model(server, concurrency=1).ask(numbered(4))
    assert rows == [0, 1, 2, 3]


def test_the_cache_fills_files_and_reads_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_cache, "ROWS_PER_FILE", 2)
    monkeypatch.setattr(verdict_cache, "FLUSH_S", 0.0)
    cache = VerdictCache(tmp_path, "m", "p")
    other = VerdictCache(tmp_path, "m", "p")
    for number in range(5):
        cache.add(f"k{number}", str(number))
    other.add("other", "x")
    files = sorted(tmp_path.glob("*.parquet"))
    assert sorted(pq.ParquetFile(file).metadata.num_rows for file in files) == [1, 1, 2, 2]
    assert pq.read_schema(files[0]).names == [column.name for column in VERDICTS.columns]
    again = VerdictCache(tmp_path, "m", "p")
    assert [again.get(key) for key in ("k0", "k4", "other", "absent")] == ["0", "4", "x", None]
    assert VerdictCache(tmp_path, "m", "other prompt").get("k0") is None
    assert VerdictCache(tmp_path, "other model", "p").get("k0") is None


def test_a_cache_that_cannot_be_read_or_written_says_so(tmp_path):
    (tmp_path / "verdicts-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"verdicts-0\.parquet: not a readable Parquet file"):
        VerdictCache(tmp_path, "m", "p")
    (tmp_path / "file").write_text("")
    cache = VerdictCache(tmp_path / "file" / "folder", "m", "p")
    cache.add("k", "{}")
    with pytest.raises(DataError, match="make room, or name another folder as the cache"):
        cache.flush()


def test_the_default_cache_is_the_user_s(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with serving(script_of()) as server:
        model(server, cache=None).ask(cases("a"))
    assert len(list((tmp_path / "xdg" / "difference-feedback" / "verdicts").glob("verdicts-*.parquet"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verdicts": 2, "temperature": 1.0}, "make it odd"),
        ({"verdicts": 3}, "raise temperature"),
        ({"base_url": "localhost:8000"}, "pattern"),
        ({"max_null_share": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointSection(**({"base_url": "http://h", "model": "m"} | options))
