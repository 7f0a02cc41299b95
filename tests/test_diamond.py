from __future__ import annotations

import torch

from benchmarks.diamond import DiamondWorld


def test_it_has_the_published_size():
    """4.4 million parameters in the denoiser (arXiv 2405.12399, table of architectures)."""
    world = DiamondWorld()
    assert 4.2e6 < sum(parameter.numel() for parameter in world.denoiser.parameters()) < 4.6e6


@torch.no_grad()
def test_worlds_go_on_by_a_frame_under_their_action():
    torch.manual_seed(0)
    world = DiamondWorld().eval()
    state = world.start(2)
    ends = []
    for action in ([1, 2], [1, 3]):
        torch.manual_seed(1)
        after, logits = world.step(state, torch.tensor(action))
        assert logits.shape == (2, 5) and torch.equal(after[0][:, :3], state[0][:, 1:])
        assert after[1][:, -1].tolist() == action and after[0].isfinite().all()
        ends.append(after[0][:, -1])
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ends[0][1], ends[1][1], atol=1e-4)
