"""The estimator in verl's own registry, and its advantages in verl's own losses, beside ours: make test-verl."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core import difference_masks, group_advantages, policy_loss

pytestmark = pytest.mark.verl

README = Path(__file__).parents[2] / "stages" / "plugins" / "README.md"
PULLED_BY_MORE = {"kl_cov", "dro"}
"""Losses with a term that no advantage multiplies."""


@pytest.fixture(scope="module")
def algorithms():
    from verl.trainer.ppo import core_algos

    return core_algos


@pytest.fixture(scope="module")
def actor():
    from verl.workers.config import FSDPActorConfig

    def configure(**options):
        return FSDPActorConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=1, **options)

    return configure


@pytest.fixture(scope="module")
def advantages():
    """A function: what verl's `compute_advantage` makes of these options, for two problems with pairs of each."""
    from verl import DataProto
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.ray_trainer import compute_advantage

    def compute(batch, **options):
        data = DataProto.from_single_dict(dict(batch))
        return compute_advantage(data, "difference_grpo", config=AlgoConfig(**options)).batch

    return compute


@pytest.fixture
def batch():
    """Eight responses of unequal lengths: errors with reward 0.25 and repairs with 1 of two problems, mixed."""
    rng = np.random.default_rng(1)
    lengths = torch.tensor([9, 7, 12, 12, 5, 6, 8, 3])
    mask = (torch.arange(12) < lengths[:, None]).float()
    rewards = torch.zeros_like(mask)
    rewards[torch.arange(8), lengths - 1] = torch.tensor([0.25, 1.0] * 4)
    return {
        "response_mask": mask,
        "token_level_rewards": rewards,
        "reward_baselines": torch.tensor(rng.random(mask.shape) < 0.4).float(),
        "uid": np.array(["a", "a", "b", "b", "b", "b", "a", "a"], dtype=object),
    }


@pytest.fixture
def logprobs(batch):
    generator = torch.Generator().manual_seed(2)
    new = -2 * torch.rand(batch["response_mask"].shape, generator=generator)
    return new.requires_grad_(), new.detach() + 0.3 * torch.randn(new.shape, generator=generator)


@pytest.mark.parametrize("by_std", [True, False])
def test_the_advantages_are_ours_times_the_gate(batch, advantages, by_std):
    ours = torch.empty(8)
    for problem in ("a", "b"):
        members = torch.tensor(batch["uid"] == problem)
        rewards = batch["token_level_rewards"].sum(-1)[members]
        ours[members] = group_advantages(rewards, scale="std" if by_std else "none")
    found = advantages(batch, norm_adv_by_std_in_grpo=by_std)
    ungated = ours[:, None] * batch["response_mask"]
    # verl divides by std + 1e-6, we by std + 1e-4.
    torch.testing.assert_close(found["returns"], ungated, rtol=3e-4, atol=0)
    torch.testing.assert_close(found["advantages"], ungated * batch["reward_baselines"], rtol=3e-4, atol=0)


LOSSES = {
    "grpo": ("vanilla", "seq-mean-token-mean", {}, {"dual_clip": 3.0}),
    "dapo": ("vanilla", "token-mean", {"clip_ratio_high": 0.28}, {"dual_clip": 3.0}),
    "dr_grpo": ("vanilla", "seq-mean-token-sum-norm", {"loss_scale_factor": 20}, {"dual_clip": 3.0}),
    "gspo": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, {}),
    "sapo": ("sapo", "seq-mean-token-mean", {}, {}),
    "cispo": ("cispo", "token-mean", {"clip_ratio_low": 1.0, "clip_ratio_high": 0.1}, {"clip_high": 1.1}),
}
"""Our name: verl's loss, its aggregation, what differs from its defaults and from ours."""


@pytest.mark.parametrize("name", LOSSES)
def test_its_losses_of_gated_advantages_are_ours(batch, advantages, logprobs, algorithms, actor, name):
    loss_mode, aggregation, theirs, ours = LOSSES[name]
    new, old = logprobs
    mask, found, config = batch["response_mask"], advantages(batch), actor(**theirs)
    config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor
    loss, _ = algorithms.get_policy_loss_fn(loss_mode)(old, new, found["advantages"], mask, aggregation, config)
    if name == "dr_grpo":
        ours = ours | {"max_response_length": config.loss_scale_factor}
    result = policy_loss(
        name,
        logprobs_BT=new,
        old_logprobs_BT=old,
        advantages_B=found["returns"],
        response_mask_BT=mask,
        gate_BT=batch["reward_baselines"],
        **ours,
    )
    torch.testing.assert_close(loss, result.loss)
    gradients = [torch.autograd.grad(value, new)[0] for value in (loss, result.loss)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].count_nonzero() > 5


def test_a_token_behind_a_closed_gate_has_no_gradient(batch, advantages, logprobs, algorithms, actor):
    from verl.workers.config import PolicyLossConfig

    new, old = logprobs
    config = actor(policy_loss=PolicyLossConfig(dro_beta=0.1, kl_cov_ratio=0.5))
    closed = batch["reward_baselines"] == 0
    pulled = set()
    for name, loss_function in algorithms.POLICY_LOSS_REGISTRY.items():
        if name == "bypass_mode":  # hands on to one of the others
            continue
        loss, _ = loss_function(old, new, advantages(batch)["advantages"], batch["response_mask"], config=config)
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient[~closed].count_nonzero() > 0, name
        pulled |= {name} if gradient[closed].count_nonzero() else set()
    assert pulled == PULLED_BY_MORE


@pytest.mark.parametrize("nested", [True, False])
def test_the_gated_loss_of_its_workers_is_ours(batch, advantages, logprobs, actor, nested):
    """On the ungated advantages of the estimator, behind prompts of one token; the KL is ungated."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_to_nested

    from stages.plugins.verl import gated_ppo_loss

    new, old = logprobs
    found, mask = advantages(batch)["returns"], batch["response_mask"]
    lengths = mask.sum(-1).int().tolist()
    fields = {
        "responses": mask.long(),
        "response_mask": mask,
        "old_log_probs": old,
        "ref_log_prob": old.flip(0),
        "advantages": found,
        "gate": batch["reward_baselines"],
    }
    if nested:
        rows = torch.nested.as_nested_tensor([mask.new_ones(length) for length in lengths], layout=torch.jagged)
        fields = {name: response_to_nested(value, rows) for name, value in fields.items()}
        prompts = torch.nested.as_nested_tensor(list(torch.ones(8, 1).long()), layout=torch.jagged)
    else:
        prompts = torch.ones(8, 1).long()
        fields["attention_mask"] = torch.cat([prompts, mask.long()], dim=1)
    data = TensorDict(fields | {"prompts": prompts}, batch_size=8)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=None, global_batch_size=None)
    # A model's log-probs are of the next token: those of the responses, and one behind each.
    flat = torch.cat([torch.nn.functional.pad(row[:length], (0, 1)) for row, length in zip(new, lengths, strict=True)])
    config = actor(use_kl_loss=True, kl_loss_coef=0.1, loss_agg_mode="seq-mean-token-mean")
    loss, _ = gated_ppo_loss(config, {"log_probs": flat}, data)
    result = policy_loss(
        "grpo",
        logprobs_BT=new,
        old_logprobs_BT=old,
        ref_logprobs_BT=old.flip(0),
        advantages_B=found,
        response_mask_BT=mask,
        gate_BT=batch["reward_baselines"],
        kl_coef=0.1,
        dual_clip=3.0,
    )
    torch.testing.assert_close(loss, result.loss)
    gradients = [torch.autograd.grad(value, new)[0] for value in (loss, result.loss)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(data.select("advantages").to_padded_tensor()["advantages"], found)


def test_verl_registers_the_estimator_by_itself(algorithms):
    # Nothing here imports the plug-in: verl found it among the installed packages.
    assert algorithms.get_adv_estimator_fn("difference_grpo").__module__ == "stages.plugins.verl"


def test_a_missing_gate_is_refused(batch, advantages):
    del batch["reward_baselines"]
    with pytest.raises(ValueError, match=r"the gate is missing; put one of \(8, 12\) into data.batch"):
        advantages(batch)


def test_a_gate_of_another_shape_is_refused(batch, advantages):
    batch["reward_baselines"] = batch["reward_baselines"][:, 0]
    with pytest.raises(ValueError, match=r"the gate is of shape \(8,\)"):
        advantages(batch)


def test_the_page_pushes_errors_down_and_repairs_up_where_they_differ():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "verl" in block]
    page = {}
    exec(code, page)
    (gradient,) = torch.autograd.grad(page["loss"], page["log_prob"])
    # 3 became 4; then 9 became 4 and 3 went, whose place in the repair, before the end token, is marked.
    masks = [difference_masks(*pair) for pair in zip(page["errors"], page["repairs"], strict=True)]
    assert [m.error_T.tolist() for m in masks] == [[0, 0, 1, 0], [0, 0, 1, 1, 0]]
    # Descent follows the negative gradient: A is -0.866 at errors and 0.866 at repairs, over 4, 5, 4 and 4 tokens.
    expected = torch.zeros(4, 5)
    expected[0, 2], expected[1, 2:4] = 0.866 / 4 / 4, 0.866 / 5 / 4
    expected[2, 2], expected[3, 2] = -0.866 / 4 / 4, -0.866 / 4 / 4
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
