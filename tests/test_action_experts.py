from __future__ import annotations

import pytest
import torch
from tiny import perturb, seeded

from astra_env.models.action_experts import ActionExperts, ActionFeatures

DIMS = {"end_effector": 7, "vehicle": 2}


def experts(*, perturbed: bool = True, **changes) -> ActionExperts:
    torch.manual_seed(0)
    module = ActionExperts(DIMS, 8, 3, shared_dim=16, hidden_dim=8, **changes).requires_grad_(False)
    if perturbed:
        perturb(module, scale=0.3)
    return module


def run(module, actions, modality, *, present=None, current=True) -> ActionFeatures:
    present = torch.ones(actions.shape[:2]) if present is None else present
    return module(module.project(actions, present, modality, current=current), modality)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def test_the_start_is_neutral_but_can_be_learned():
    module = experts(perturbed=False).requires_grad_(True)
    features = run(module, random(2, 5, 7), ("end_effector",) * 2)
    assert features.values.shape == (3, 2, 5, 8) and not features.values.any()
    (features.values - 1).square().sum().backward()
    assert module.expert_out.grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_routing_weights_sum_to_one_over_the_best_experts(top_k):
    routing = run(experts(top_k=top_k), random(4, 6, 7), ("end_effector",) * 4).routing
    assert routing.shape == (4, 6, 4) and (routing >= 0).all()
    torch.testing.assert_close(routing.sum(-1), torch.ones(4, 6))
    assert ((routing > 0).sum(-1) == top_k).all()


def test_experts_are_the_weighted_sum_of_their_networks():
    module, actions = experts(), random(1, 1, 7)
    features = run(module, actions, ("end_effector",))
    shared = module.project(actions, torch.ones(1, 1), ("end_effector",), current=True)[0, 0]
    hidden = torch.nn.functional.silu(module.expert_in(shared)).reshape(3, 4, 8)
    out = module.expert_out.reshape(3, 4, 8, 8)
    for layer in range(3):
        parts = [features.routing[0, 0, k] * hidden[layer, k] @ out[layer, k] for k in range(4)]
        torch.testing.assert_close(features.values[layer, 0, 0], sum(parts))


def test_modalities_share_a_batch_without_meeting():
    module, actions = experts(), random(4, 3, 7)
    names = ("end_effector", "vehicle", "vehicle", "end_effector")
    together = run(module, actions, names)
    for row, name in enumerate(names):
        alone = run(module, actions[row : row + 1, :, : DIMS[name]], (name,))
        torch.testing.assert_close(together.values[:, row], alone.values[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.routing[row], alone.routing[0], atol=1e-5, rtol=1e-5)


def test_an_absent_action_is_the_same_null_action_whatever_it_holds():
    module, absent = experts(), torch.zeros(1, 2)
    values = [run(module, random(1, 2, 7, seed=s), ("end_effector",), present=absent).values for s in (1, 2)]
    assert torch.equal(*values)
    zero = run(module, torch.zeros(1, 2, 7), ("end_effector",)).values
    assert not torch.allclose(values[0], zero), "an action of zeros is not the absence of an action"


def test_past_and_current_actions_differ():
    module, actions = experts(), random(1, 2, 7)
    now, past = (run(module, actions, ("end_effector",), current=flag).values for flag in (True, False))
    assert not torch.allclose(now, past)


def test_an_unknown_modality_is_named():
    with pytest.raises(ValueError, match="not 'submarine'"):
        run(experts(), random(1, 1, 7), ("submarine",))


def test_load_balancing_is_least_when_experts_share_equally():
    def loss(*shares):
        return ActionFeatures(torch.zeros(1, 1, 1, 1), torch.tensor(shares)[None]).load_balancing_loss()

    torch.testing.assert_close(loss([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]), torch.tensor(1.0))
    torch.testing.assert_close(loss([1.0, 0, 0, 0], [1.0, 0, 0, 0]), torch.tensor(4.0))
    torch.testing.assert_close(loss([0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]), torch.tensor(2.0))
    routing = run(experts(), random(8, 6, 7), ("end_effector",) * 8)
    assert routing.load_balancing_loss() >= 1 - 1e-6


def test_load_balancing_reaches_the_router():
    module = experts().requires_grad_(True)
    run(module, random(8, 6, 7), ("end_effector",) * 8).load_balancing_loss().backward()
    assert module.router.weight.grad.abs().sum() > 0
