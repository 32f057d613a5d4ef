"""Log-probs made chunk by chunk are those of the whole logits, and so are their gradients.

Axes: N tokens, H hidden size, V vocabulary.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.model import head
from stages.model.batches import encode_prompt
from stages.model.head import token_logprobs
from stages.model.layout import Reading
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt

N, H, V = 13, 6, 29
BANNED = (0, 11, 28)
TEMPERATURE = 0.7
# Tokens whose logits exist at once; 13 tokens end in a chunk of 13, 6, 1, 1 and 1 of them.
CHUNKS = [13, 7, 4, 3, 1]


@pytest.fixture(params=CHUNKS)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


class Inputs:
    """Leaves with a gradient, targets that are not banned, and the weight of each log-prob in a loss."""

    def __init__(self, dtype, bias=True, n=N, vocabulary=V):
        rng = np.random.default_rng(4)
        self.hidden_NH, self.weight_VH, self.bias_V = (
            torch.from_numpy(rng.normal(0, scale, shape)).to(dtype).requires_grad_()
            for shape, scale in (((n, H), 1.5), ((vocabulary, H), 0.8), ((vocabulary,), 0.5))
        )
        self.bias_V = self.bias_V if bias else None
        allowed = np.setdiff1d(np.arange(vocabulary), BANNED)
        # Repeats: several tokens pull at the same row of the head.
        self.targets_N = torch.from_numpy(rng.choice(allowed[:9], n))
        self.coefficients_N = torch.from_numpy(rng.normal(0, 1, n)).to(dtype)

    @property
    def leaves(self):
        return [leaf for leaf in (self.hidden_NH, self.weight_VH, self.bias_V) if leaf is not None]

    def own(self):
        return token_logprobs(
            self.hidden_NH, self.weight_VH, self.bias_V, self.targets_N, banned_ids=BANNED, temperature=TEMPERATURE
        )

    def plain(self):
        """Log-probs and entropies from all logits at once, in the inputs' own type."""
        logits_NV = torch.nn.functional.linear(self.hidden_NH, self.weight_VH, self.bias_V) / TEMPERATURE
        allowed = torch.tensor([i not in BANNED for i in range(len(self.weight_VH))])
        logits_NV = logits_NV.where(allowed, -torch.inf)
        log_distribution_NV = logits_NV.log_softmax(-1)
        entropy_N = -(log_distribution_NV.exp() * log_distribution_NV)[:, allowed].sum(-1)
        return log_distribution_NV[torch.arange(len(self.targets_N)), self.targets_N], entropy_N

    def gradients(self, logprobs_N):
        return torch.autograd.grad((self.coefficients_N.to(logprobs_N.dtype) * logprobs_N).sum(), self.leaves)


def numerical_gradients(inputs):
    """Central differences of the plain loss in float64 NumPy: no autograd at all."""
    leaves = [leaf.detach().numpy() for leaf in inputs.leaves]
    targets_N, coefficients_N = inputs.targets_N.numpy(), inputs.coefficients_N.numpy()

    def loss():
        logits_NV = leaves[0] @ leaves[1].T + (leaves[2] if len(leaves) == 3 else 0)
        weights_NV = np.exp(logits_NV / TEMPERATURE)
        weights_NV[:, BANNED] = 0
        probabilities_N = weights_NV[np.arange(len(targets_N)), targets_N] / weights_NV.sum(-1)
        return (coefficients_N * np.log(probabilities_N)).sum()

    for leaf in leaves:
        gradient = np.empty_like(leaf)
        for place in np.ndindex(leaf.shape):
            kept = leaf[place]
            leaf[place] = kept + 1e-5
            above = loss()
            leaf[place] = kept - 1e-5
            gradient[place] = (above - loss()) / 2e-5
            leaf[place] = kept
        yield torch.from_numpy(gradient)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_all_logits_at_once(dtype, bias):
    inputs = Inputs(dtype, bias)
    logprobs_N, entropy_N = inputs.own()
    plain_N, plain_entropy_N = inputs.plain()
    assert logprobs_N.dtype == entropy_N.dtype == torch.float32
    torch.testing.assert_close(logprobs_N, plain_N.float(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(entropy_N, plain_entropy_N.float(), atol=2e-6, rtol=1e-6)
    for found, expected in zip(inputs.gradients(logprobs_N), inputs.gradients(plain_N), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradients_are_the_slopes_of_the_loss(monkeypatch, bias):
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", 5)
    inputs = Inputs(torch.float64, bias)
    found = inputs.gradients(inputs.own()[0])
    assert len(found) == 2 + bias
    for gradient, expected in zip(found, numerical_gradients(inputs), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(gradient, expected, atol=5e-6, rtol=1e-5)


def test_no_tokens_have_no_logprobs_and_no_gradient():
    inputs = Inputs(torch.float32, n=0)
    logprobs_N, entropy_N = inputs.own()
    assert logprobs_N.shape == entropy_N.shape == (0,)
    for leaf, gradient in zip(inputs.leaves, inputs.gradients(logprobs_N), strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


def test_a_banned_target_has_no_probability():
    inputs = Inputs(torch.float32)
    inputs.targets_N[3] = BANNED[1]
    logprobs_N, entropy_N = inputs.own()
    assert logprobs_N.isneginf().nonzero().tolist() == [[3]]
    assert entropy_N.isfinite().all()


@pytest.mark.usefixtures("_chunks")
def test_rows_of_banned_ids_get_no_gradient():
    inputs = Inputs(torch.float32)
    _, grad_weight_VH, grad_bias_V = inputs.gradients(inputs.own()[0])
    moved = (grad_weight_VH != 0).any(-1)
    assert (~moved).nonzero()[:, 0].tolist() == list(BANNED)
    assert torch.equal(grad_bias_V != 0, moved)


def test_the_entropy_has_no_gradient():
    assert not Inputs(torch.float32).own()[1].requires_grad


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("frozen", ["weight_VH", "bias_V", "hidden_NH"])
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(frozen):
    inputs = Inputs(torch.float32)
    (-inputs.plain()[0].mean()).backward()
    expected = {name: getattr(inputs, name).grad for name in ("hidden_NH", "weight_VH", "bias_V")}
    for leaf in inputs.leaves:
        leaf.grad = None
    getattr(inputs, frozen).requires_grad_(False)
    (-inputs.own()[0].mean()).backward()
    assert getattr(inputs, frozen).grad is None
    for name in expected.keys() - {frozen}:
        torch.testing.assert_close(getattr(inputs, name).grad, expected[name], atol=1e-6, rtol=1e-5)


def test_a_frozen_head_costs_no_memory_for_its_gradient(monkeypatch):
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", 2)
    inputs = Inputs(torch.float32)
    inputs.weight_VH.requires_grad_(False)
    inputs.bias_V.requires_grad_(False)
    with Sizes() as sizes:
        inputs.own()[0].sum().backward()
    assert sizes.of_shape((V, H)) == sizes.of_shape((V,)) == 0
    assert sizes.largest() == max(N * H, 2 * V)


class Sizes(TorchDispatchMode):
    """Records the shape of every new tensor, views left out, and the types that matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.product_dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.product_dtypes.add(result.dtype)
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.shapes += [tuple(x.shape) for x in made if x.untyped_storage().data_ptr() not in known]
        return result

    def largest(self, with_width=None):
        return max(int(np.prod(s)) for s in self.shapes if with_width is None or with_width in s)

    def of_shape(self, shape):
        return self.shapes.count(shape)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_no_tensor_holds_the_logits_of_more_tokens_than_a_chunk(monkeypatch, autocast):
    tokens, vocabulary, rows = 200, 101, 16
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", rows)
    inputs = Inputs(torch.float32, n=tokens, vocabulary=vocabulary)
    with Sizes() as sizes, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        inputs.own()[0].sum().backward()
    assert sizes.largest(with_width=vocabulary) == rows * vocabulary
    # Of the rest, hidden states and their gradient are the largest.
    assert sizes.largest() == max(rows * vocabulary, tokens * H)
    assert sizes.product_dtypes == {torch.bfloat16 if autocast else torch.float32}
    with Sizes() as sizes, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        inputs.plain()[0].sum().backward()
    assert sizes.largest() == tokens * vocabulary


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_under_bf16_autocast_values_are_those_of_a_linear_layer(monkeypatch, rows):
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", rows)
    inputs = Inputs(torch.float32)
    layer = torch.nn.Linear(H, V)
    layer.weight, layer.bias = (torch.nn.Parameter(leaf.detach().clone()) for leaf in inputs.leaves[1:])
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_N, entropy_N = inputs.own()
        logits_NV = layer(inputs.hidden_NH)
    assert logits_NV.dtype == torch.bfloat16
    assert logprobs_N.dtype == entropy_N.dtype == torch.float32
    logits_NV = logits_NV.detach().float() / TEMPERATURE
    logits_NV[:, BANNED] = -torch.inf
    distribution = torch.distributions.Categorical(logits=logits_NV)
    torch.testing.assert_close(logprobs_N, distribution.log_prob(inputs.targets_N), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(entropy_N, distribution.entropy(), atol=2e-6, rtol=1e-6)
    # bf16 is seen in the values: they are not those of float32.
    assert (logprobs_N - inputs.plain()[0]).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_under_bf16_autocast_gradients_are_float32_s_but_for_rounding(monkeypatch, rows):
    monkeypatch.setattr(head, "TOKENS_PER_CHUNK", rows)
    inputs = Inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_N, _ = inputs.own()
    for found, expected in zip(inputs.gradients(logprobs_N), inputs.gradients(inputs.plain()[0]), strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_under_bf16_autocast_a_model_is_read_as_its_own_lm_head_reads(tiny_vlm, problems, recipe, packed):
    vlm = replace(tiny_vlm, autocast_dtype=torch.bfloat16)
    prompt = encode_prompt(vlm, policy_prompt(vlm.processor, recipe.prompt, problems[0]))
    ids = [20, 21, 40, 22, 9]
    reader = LogprobReader(vlm)
    reader.packed = packed
    layout = reader.layout([Reading(prompt, ids)])
    with torch.no_grad():
        found = reader.read([Reading(prompt, ids)], temperature=TEMPERATURE, layout=layout)
        with torch.autocast("cpu", torch.bfloat16):
            # The last token is no input: the last position predicts it.
            logits_TV = vlm.model(**layout.inputs, use_cache=False).logits[0, -len(ids) :]
    assert logits_TV.dtype == torch.bfloat16
    logits_TV = logits_TV.float() / TEMPERATURE
    logits_TV[:, list(vlm.banned_ids)] = -torch.inf
    distribution = torch.distributions.Categorical(logits=logits_TV)
    torch.testing.assert_close(found.logprobs_BT[0], distribution.log_prob(torch.tensor(ids)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy_BT[0], distribution.entropy(), atol=1e-5, rtol=0)
