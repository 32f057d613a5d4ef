"""A served model that gives structured verdicts: many requests at once, retried with patience, paid for once."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.errors import EndpointError, RecipeError
from stages.runtime import processes
from stages.sections import EndpointSection
from stages.served.case import Case
from stages.served.verdict_cache import VerdictCache, default_folder
from stages.untrusted.printable import keep_secret, redacted, told

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
LONGEST_RETRY_AFTER_S = 300.0
"""A server that asks for a longer wait is asked again after this one."""
FEWEST_VERDICTS = 20
"""`max_null_share` is of at least so many verdicts: one null of three is no sign of a server that is down."""
RETRY_TEMPERATURE = 0.3
"""Of tries after an invalid reply, at least."""
_PASSING = {408, 409, 429}
_OF_THE_CASE = {400, 413, 422}
"""Too long, too many pictures, filtered: another case may pass. What is wrong with all of them soon is the share that
`max_null_share` does not allow."""
_MESSAGE_LENGTH = 300

logger = logging.getLogger(__name__)


class Reply(BaseModel):
    """The structured reply of a served model; its JSON schema goes with every request."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ReplyT = TypeVar("ReplyT", bound=Reply)


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    finish_reason: Literal["stop"]
    message: _Message


class _Completion(BaseModel):
    """What of a chat completion is read; one that was cut, refused or filtered is not valid."""

    choices: list[_Choice] = Field(min_length=1)


@dataclass(frozen=True)
class _Question:
    case: Case
    seed: int
    key: str


class _Failure(Exception):
    """No verdict this time: the request is sent again after a growing wait, at once, or never."""

    def __init__(self, what: str, again: Literal["later", "at_once", "never"], wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.again = again
        self.wait_s = wait_s
        """What the server asks for at least."""


class ServedModel(Generic[ReplyT]):
    """One model with one task: the same instructions and the same schema of replies for every case."""

    def __init__(self, section: EndpointSection, place: str, instructions: str, reply_type: type[ReplyT]) -> None:
        """Read the key and the verdicts had so far; no request is sent.

        Raises:
            RecipeError: the URL holds a password, or the key is not there; neither is shown.
            DataError: the cache cannot be read.
        """
        self.majority = section.verdicts // 2 + 1
        self._section = section
        self._place = place
        self._key = _api_key(section, place)
        keep_secret(self._key or "")
        self._instructions = instructions
        self._reply_type = reply_type
        self._schema = reply_type.model_json_schema()
        self._prompt = _sha256([instructions, self._schema])[:16]
        self._cache = VerdictCache(section.cache or default_folder(), section.model, self._prompt)
        self._wanted = 0
        self._nulls = 0

    def ask(self, cases: Sequence[Case]) -> list[list[ReplyT]]:
        """Each case's verdicts, `verdicts` of them less those that could not be had.

        Raises:
            EndpointError: the server refuses, or more than `max_null_share` of all verdicts asked for are missing.
        """
        questions = [[self._question(case, seed) for seed in range(self._section.verdicts)] for case in cases]
        uses = Counter(question.key for group in questions for question in group)
        missing = {q.key: q for group in questions for q in group if self._cache.get(q.key) is None}
        self._wanted += uses.total()
        if missing:
            asyncio.run(self._ask_missing(list(missing.values()), uses))
        return [
            [
                self._reply_type.model_validate_json(reply)
                for question in group
                if (reply := self._cache.get(question.key)) is not None
            ]
            for group in questions
        ]

    def _question(self, case: Case, seed: int) -> _Question:
        section = self._section
        sampling = [section.temperature, section.max_tokens, seed]
        return _Question(
            case, seed, _sha256([section.model, self._prompt, case.pictures.digests, case.text, *sampling])
        )

    async def _ask_missing(self, questions: Sequence[_Question], uses: Counter[str]) -> None:
        section = self._section
        client = AsyncOpenAI(
            base_url=section.base_url, api_key=self._key or "none", max_retries=0, timeout=section.timeout_s
        )
        waiting = iter(questions)
        limit = max(1, section.concurrency // processes.count())
        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(limit, len(questions))):
                    group.create_task(self._work(client, waiting, uses))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._cache.flush()

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[_Question], uses: Counter[str]) -> None:
        """One request at a time, until no question is left."""
        for question in waiting:
            try:
                self._cache.add(question.key, await self._reply(client, question))
            except _Failure as failure:
                self._note_null(uses[question.key], str(failure))

    def _note_null(self, count: int, reason: str) -> None:
        section = self._section
        self._nulls += count
        logger.warning("%s: a verdict could not be had: %s", self._place, reason)
        if self._nulls / max(self._wanted, FEWEST_VERDICTS) > section.max_null_share:
            raise EndpointError(
                f"{self._place}: {self._nulls} of {self._wanted} verdicts of {section.model} at {section.base_url} "
                f"could not be had, more than max_null_share {section.max_null_share:g} (the last: {reason}); see to "
                "the server and run the same command again: verdicts and shards that are done are kept"
            ) from None

    async def _reply(self, client: AsyncOpenAI, question: _Question) -> str:
        """A valid reply, as JSON.

        Raises:
            _Failure: there is none after every retry.
            EndpointError: the server refuses.
        """
        attempt = invalid = 0
        while True:
            try:
                return await self._try(client, question, invalid)
            except _Failure as failure:
                if failure.again == "never" or attempt == self._section.retries:
                    raise
                wait_s = max(_backoff_s(attempt), failure.wait_s) if failure.again == "later" else 0.0
                invalid += failure.again == "at_once"
            await asyncio.sleep(wait_s)
            attempt += 1

    async def _try(self, client: AsyncOpenAI, question: _Question, invalid: int) -> str:
        """Once.

        What it raises has no context: there, a request would carry the key into whatever looks at exceptions.
        """
        section = self._section
        failure: Exception
        try:
            async with asyncio.timeout(section.timeout_s):  # the client's own starts again with every byte
                response = await client.chat.completions.with_raw_response.create(**self._request(question, invalid))
            return self._valid(response.text)
        except (TimeoutError, APITimeoutError):
            failure = _Failure(f"no reply within {section.timeout_s:g} s", "later")
        except APIConnectionError as error:
            failure = _Failure(f"no connection: {_safe(str(error.__cause__ or error))}", "later")
        except APIStatusError as error:
            failure = self._refusal(error)
        except ValidationError as error:
            failure = _Failure(f"an invalid reply: {_safe(_first_line(error))}", "at_once")
        raise failure

    def _request(self, question: _Question, invalid: int) -> dict[str, Any]:
        """The request's body; after an invalid reply it samples, with another seed, or it would get the same one."""
        section = self._section
        return {
            "model": section.model,
            "messages": [
                {"role": "system", "content": self._instructions},
                {"role": "user", "content": question.case.content()},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": self._reply_type.__name__, "schema": self._schema, "strict": True},
            },
            "temperature": max(section.temperature, RETRY_TEMPERATURE) if invalid else section.temperature,
            "max_completion_tokens": section.max_tokens,
            "seed": question.seed + invalid * section.verdicts,
        }

    def _valid(self, body: str) -> str:
        reply = _Completion.model_validate_json(body).choices[0].message.content
        return redacted(
            self._reply_type.model_validate_json(reply).model_dump_json()
        )  # it is kept, and may quote a key

    def _refusal(self, error: APIStatusError) -> Exception:
        """A failure that may pass, or is the case's own; else what stops the stage."""
        status = error.status_code
        what = f"HTTP {status}: {_safe(error.message.removeprefix(f'Error code: {status} - '))}"
        if status in _PASSING or status >= 500:
            return _Failure(what, "later", _retry_after_s(error.response.headers.get("retry-after")))
        if status in _OF_THE_CASE:
            return _Failure(what, "never")
        section = self._section
        key = "no key" if section.api_key_env is None else f"the key in ${section.api_key_env}"
        return EndpointError(
            f"{self._place}: {section.base_url} refuses ({what}); check base_url, model {section.model} and {key}, "
            "then run the same command again: verdicts and shards that are done are kept"
        )


def _safe(message: str) -> str:
    """A server's words in one line, without the key that it may repeat."""
    return told(" ".join(message.split()))[:_MESSAGE_LENGTH]


def _api_key(section: EndpointSection, place: str) -> str | None:
    """The key, if one is named.

    Raises:
        RecipeError: it is not there or cannot be sent, or the recipe itself seems to hold one.
    """
    if re.search("[@?#]", section.base_url):
        raise RecipeError(
            f"{place}.base_url holds a user, a password or a query; leave them out, name a key in api_key_env"
        )
    name = section.api_key_env
    if name is None:
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise RecipeError(
            f"{place}.api_key_env is not the name of an environment variable in capitals; put the key into one and "
            "its name there: a key never stands in a recipe"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise RecipeError(f"{place}.api_key_env: the environment variable {name} is not set; export the key in it")
    if not re.fullmatch(r"[!-~]+", key):
        raise RecipeError(f"{place}.api_key_env: {name} holds characters that no key has; export the key alone")
    return key


def _backoff_s(attempt: int) -> float:
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**attempt) * random.uniform(0.5, 1)


def _retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, in digits or as a date; 0 for none, and for one that is neither."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        date = email.utils.parsedate_tz(header)
        seconds = 0.0 if date is None else email.utils.mktime_tz(date) - time.time()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if math.isfinite(seconds) else LONGEST_RETRY_AFTER_S


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])} {first['msg']}".strip()


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
