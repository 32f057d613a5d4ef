import threading
from types import SimpleNamespace

import pytest

from stages.artifacts.ledger import CostLedger
from stages.engines.protocol import Completion, Sampling
from stages.errors import EndpointError
from stages.repair.answering import Answerer, Shard
from stages.reward.rewards import Reward

LONGEST_S = 30.0


class Engine:
    """Answers with the seed and a count."""

    def __init__(self, codec):
        self.codec = codec
        self.shards = 0
        self.began = threading.Condition()

    def generate(self, requests, sampling):
        with self.began:
            self.shards += 1
            self.began.notify_all()
        texts = [[f"{sampling.seed}{index}{k}" for k in range(r.n)] for index, r in enumerate(requests)]
        return [[Completion(self.codec.tokenizer(text)["input_ids"], [], "stop") for text in own] for own in texts]

    def stream(self, batches):
        return (self.generate(batch.requests, batch.sampling) for batch in batches)


class Served(Reward):
    """Scores a shard only when the one after it is being generated; `refused` is the number of one that it refuses."""

    waits = True

    def __init__(self, engine, shards, refused=None):
        self.engine = engine
        self.shards = shards
        self.refused = refused
        self.scored = 0

    def score_many(self, responses, _problems):
        self.scored += 1
        following = min(self.scored + 1, self.shards)
        with self.engine.began:
            assert self.engine.began.wait_for(lambda: self.engine.shards >= following, LONGEST_S)
        if self.scored == self.refused:
            raise EndpointError("refused")
        return [int(response) / 1000 for response in responses]


@pytest.fixture
def answerer(tiny_vlm, recipe):
    def make(shards, refused=None):
        engine = Engine(tiny_vlm)
        return Answerer(engine, recipe.prompt, Served(engine, shards, refused), CostLedger())

    return make


def shards(problems, answers, *seeds):
    return [Shard(index, problems[:3], answers, Sampling(8, seed=seed)) for index, seed in enumerate(seeds)]


def test_a_shard_is_scored_while_the_next_is_generated(answerer, problems):
    wanted = shards(problems, 2, 5, 7, 9)
    found = list(answerer(3).answer_each(wanted))

    assert [shard for shard, _ in found] == wanted
    for shard, groups in found:
        texts = [[f"{shard.sampling.seed}{index}{k}" for k in range(2)] for index in range(3)]
        assert [[answer.text for answer in group] for group in groups] == texts
        assert [[answer.reward for answer in group] for group in groups] == [
            [int(text) / 1000 for text in own] for own in texts
        ]


def test_what_the_server_refuses_comes_behind_the_shards_before_it(answerer, problems):
    done = []
    with pytest.raises(EndpointError, match="refused"):
        done += (shard.index for shard, _ in answerer(3, refused=2).answer_each(shards(problems, 2, 5, 7, 9)))
    assert done == [0]


def test_a_reward_that_computes_is_asked_in_turn(answerer, problems):
    own = answerer(3)
    order = []
    own.reward = SimpleNamespace(
        waits=False, score_many=lambda responses, _: order.append("s") or [0.0] * len(responses)
    )
    generate = own.engine.generate
    own.engine.generate = lambda *arguments: order.append("g") or generate(*arguments)
    list(own.answer_each(shards(problems, 1, 5, 7)))

    assert order == ["g", "s", "g", "s"]
