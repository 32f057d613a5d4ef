"""Which models take packed rows: the reader's own check, and what it falls back to."""

import copy
import logging

import numpy as np
import pytest
import torch

from readings import assert_read_as_plain, encode, noisy, plain
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import ModelError
from stages.model import logprobs
from stages.model.layout import Reading, packed_layout
from stages.model.loading import wrap_model
from stages.model.logprobs import LogprobReader, made_up_group, made_up_prompt


@pytest.fixture(scope="module")
def mixed(tiny_vlm):
    """Unequal prompts and responses; two share a beginning that is longer than a small window."""
    allowed = np.setdiff1d(np.arange(len(tiny_vlm.tokenizer)), tiny_vlm.banned_ids)
    rng = np.random.default_rng(5)
    beginning, *rest = (rng.choice(allowed, length).tolist() for length in (12, 6, 3, 9))
    one = encode(tiny_vlm, "Which is it?", noisy(84, 28, 0), noisy(56, 84, 1))
    other = encode(tiny_vlm, "What is the sum of the digits?")
    read_T = np.arange(9) % 3 == 1
    return [Reading(one, beginning + rest[0]), Reading(one, beginning + rest[1]), Reading(other, rest[2], read_T)]


def assert_plain_rows(vlm, readings):
    """The reader takes plain rows and reads what a row alone gives."""
    reader = LogprobReader(vlm)
    assert not reader.packed
    layout = reader.layout(readings)
    assert layout.inputs["input_ids"].shape[0] == len(readings)
    assert "tree" not in layout.inputs
    # What one packed row would hold is more than one pass of padded ones.
    assert len(list(reader.micro_batches(readings, packed_layout(vlm, readings).tokens))) > 1
    assert_read_as_plain(vlm, reader, readings)


def told(caplog):
    return [(record.levelname, record.message) for record in caplog.records if record.name == "stages.model.logprobs"]


def test_eager_attention_takes_plain_rows(tiny_vlm, unwrapped, mixed, caplog):
    unwrapped.set_attn_implementation("eager")
    vlm = wrap_model(unwrapped, tiny_vlm.processor)
    with caplog.at_level(logging.INFO, "stages.model.logprobs"):
        assert_plain_rows(vlm, mixed)
    ((level, message),) = told(caplog)
    assert level == "INFO"
    assert "its attention takes no packed ones" in message
    assert_read_as_plain(tiny_vlm, LogprobReader(vlm), mixed)


def test_attention_dropout_takes_plain_rows(tiny_vlm, unwrapped, mixed):
    """It is on in training alone, where the reader's own check would not see it."""
    unwrapped.config.text_config.attention_dropout = 0.1
    assert_plain_rows(wrap_model(unwrapped, tiny_vlm.processor), mixed)


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)], ids=["all layers", "one layer"])
def test_sliding_windows_take_plain_rows(tiny_vlm, layers, caplog):
    """Windows that no row of the reader's own check fills."""
    window = max(len(reading.prompt.ids) + len(reading.ids) for reading in made_up_group(tiny_vlm))
    config = copy.deepcopy(tiny_vlm.model.config)
    text = config.text_config
    text.use_sliding_window, text.sliding_window = True, window
    text.layer_types = ["sliding_attention" if i in layers else "full_attention" for i in range(3)]
    config._attn_implementation = "sdpa"
    model = type(tiny_vlm.model)(config).eval()
    model.load_state_dict(tiny_vlm.model.state_dict())
    vlm = wrap_model(model, tiny_vlm.processor)
    beginning, *rest = np.random.default_rng(1).integers(20, 200, (3, window)).tolist()
    prompts = encode(vlm, "Which is it?", noisy(84, 28, 0)), encode(vlm, "What is the sum of the digits?")
    readings = [Reading(prompts[0], beginning + rest[0]), Reading(prompts[0], beginning + rest[1])]
    readings.append(Reading(prompts[1], rest[1], np.arange(window) % 3 == 1))
    with caplog.at_level(logging.WARNING, "stages.model.logprobs"):
        assert_plain_rows(vlm, readings)
    assert not told(caplog)
    windowed, full = (next(plain(one, readings, 1.0)) for one in (vlm, tiny_vlm))
    assert (windowed - full).abs().max() > 1e-2


def test_a_model_that_mixes_neighbours_of_a_row_is_noticed(tiny_vlm, unwrapped, mixed, caplog):
    """As architectures with short convolutions do: a branch's first token would see the end of the branch before."""

    def convolve(_, args):
        hidden_BLH = args[0]
        before_BLH = torch.nn.functional.pad(hidden_BLH, (0, 0, 1, 0))[:, :-1]
        return (hidden_BLH + 0.5 * before_BLH, *args[1:])

    unwrapped.get_decoder().layers[1].register_forward_pre_hook(convolve)
    with caplog.at_level(logging.WARNING, "stages.model.logprobs"):
        assert_plain_rows(wrap_model(unwrapped, tiny_vlm.processor), mixed[:2])
    ((level, message),) = told(caplog)
    assert level == "WARNING"
    assert message.startswith("Qwen2_5_VLForConditionalGeneration: plain rows, packed ones are off by ")


def test_a_model_that_reads_positions_off_the_row_is_refused(tiny_vlm, unwrapped):
    """As architectures with learned positions do: padding moves a row, packed or not."""
    positions = torch.randn(1024, 128, generator=torch.Generator().manual_seed(0))

    def add(_, args):
        return (args[0] + 0.1 * positions[: args[0].shape[1]], *args[1:])

    unwrapped.get_decoder().layers[0].register_forward_pre_hook(add)
    with pytest.raises(ModelError, match=r"log-probs of a row are off by \S+ where longer rows and other images are"):
        LogprobReader(wrap_model(unwrapped, tiny_vlm.processor))


def test_a_model_whose_images_see_those_of_other_rows_is_refused(tiny_vlm, unwrapped):
    """As a vision tower does that attends to what images were filled up with."""

    def mix(_, __, output):
        output.pooler_output = output.pooler_output - output.pooler_output.mean(0)
        return output

    unwrapped.model.visual.register_forward_hook(mix)
    vlm = wrap_model(unwrapped, tiny_vlm.processor)
    told = r"log-probs of a row are off by \S+ where longer rows and other images are beside it; take another model"
    with pytest.raises(ModelError, match=told):
        LogprobReader(vlm)
    with pytest.raises(ModelError, match=told):
        TransformersEngine(vlm).generate([Request(made_up_prompt(vlm), 1)], Sampling(4, 1.0, seed=0))


@pytest.mark.parametrize(
    "change", [lambda logits: 4 * torch.tanh(logits / 4), lambda logits: 0.9 * logits], ids=["capped", "scaled"]
)
def test_a_model_that_changes_its_logits_after_the_head_is_refused(tiny_vlm, unwrapped, change):
    class Changed(type(unwrapped)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = change(output.logits)
            return output

    unwrapped.__class__ = Changed
    with pytest.raises(ModelError, match="changes its logits after the head"):
        LogprobReader(wrap_model(unwrapped, tiny_vlm.processor))


def test_what_two_plain_layouts_differ_by_is_no_reason_for_plain_rows(tiny_vlm, unwrapped, mixed):
    """In bfloat16 a 7B's log-probs depend on the shape of the batch by more than any tolerance that finds an error."""

    def round_by_shape(_, args):
        seeded = torch.Generator().manual_seed(1000 * args[0].shape[0] + args[0].shape[1])
        return (args[0] + 0.02 * torch.randn(args[0].shape, generator=seeded), *args[1:])

    unwrapped.get_decoder().layers[1].register_forward_pre_hook(round_by_shape)
    vlm = wrap_model(unwrapped, tiny_vlm.processor)
    reader = LogprobReader(vlm)
    packed = reader.read(mixed[:2], temperature=1.0)
    off = torch.cat(list(plain(vlm, mixed[:2], 1.0))) - packed.logprobs_BT[packed.read_BT]
    assert off.abs().mean() > logprobs.CHECK_TOLERANCE[torch.float32]
    assert reader.packed
