"""A world step of DIAMOND's published shape (arXiv 2405.12399, its default Atari configuration), for timing alone.

The weights are random: what it shows is noise, but it computes as much as the real one does. A step denoises one
64x64 frame from the four before it in three Euler steps, and tells reward and end with a recurrent network of its own.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAME_SIZE, PAST_FRAMES, NUM_ACTIONS = 64, 4, 18
DENOISER_DIM, DENOISER_CONDITION = 64, 256
JUDGE_DIM, JUDGE_CONDITION, LSTM_DIM = 32, 128, 512
LEVELS, DEPTH, HEAD_DIM = 4, 2, 8
NUM_STEPS, SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, RHO = 3, 2e-3, 5.0, 0.5, 7


class ConditionedNorm(nn.Module):
    """Group norm over groups of 32 channels, scaled and shifted by the condition."""

    def __init__(self, dim: int, condition: int) -> None:
        super().__init__()
        self.num_groups, self.modulate = max(1, dim // 32), nn.Linear(condition, 2 * dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w), condition (B, D) -> the shape of x."""
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, dim=1)
        return F.group_norm(x, self.num_groups) * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Attention among all places of a picture, with heads of eight channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(max(1, dim // 32), dim),
            nn.Conv2d(dim, 3 * dim, 1),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (B, h w, C)
        q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).transpose(1, 2)
        return x + self.out(attended.reshape(x.shape))


class Residual(nn.Module):
    """Two conditioned convolutions around which the input passes by."""

    def __init__(self, dim: int, out_dim: int, condition: int, *, attention: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionedNorm(width, condition) for width in (dim, out_dim))
        self.convs = nn.ModuleList(nn.Conv2d(width, out_dim, 3, padding=1) for width in (dim, out_dim))
        self.skip = nn.Identity() if dim == out_dim else nn.Conv2d(dim, out_dim, 1)
        self.attention = SelfAttention(out_dim) if attention else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w), condition (B, D) -> (B, C', h, w)."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.silu(norm(h, condition)))
        return self.attention(h + self.skip(x))


class Encoder(nn.Module):
    """Four levels of two residual blocks, each level at half the size of the last, then two with attention."""

    def __init__(self, dim: int, condition: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dim, dim, condition) for _ in range(LEVELS * DEPTH))
        self.shrink = nn.ModuleList(nn.Conv2d(dim, dim, 3, stride=2, padding=1) for _ in range(LEVELS - 1))
        self.middle = nn.ModuleList(Residual(dim, dim, condition, attention=True) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, h, w) -> (B, C, h / 8, w / 8), and what went into and came out of the blocks of each level."""
        kept = []
        for level in range(LEVELS):
            x = x if level == 0 else self.shrink[level - 1](x)
            kept.append(x)
            for block in self.blocks[level * DEPTH : (level + 1) * DEPTH]:
                x = block(x, condition)
                kept.append(x)
        for block in self.middle:
            x = block(x, condition)
        return x, kept


class Denoiser(nn.Module):
    """U-Net from a noisy frame, the frames before it and their actions to the clean frame."""

    def __init__(self) -> None:
        super().__init__()
        dim, condition = DENOISER_DIM, DENOISER_CONDITION
        self.register_buffer("frequencies", torch.randn(1, condition // 2))
        self.actions = nn.Embedding(NUM_ACTIONS, condition // PAST_FRAMES)
        self.condition = nn.Sequential(nn.Linear(condition, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.first = nn.Conv2d(3 * (PAST_FRAMES + 1), dim, 3, padding=1)
        self.encoder = Encoder(dim, condition)
        self.blocks = nn.ModuleList(Residual(2 * dim, dim, condition) for _ in range(LEVELS * (DEPTH + 1)))
        self.grow = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(LEVELS - 1))
        self.last = nn.Sequential(nn.GroupNorm(dim // 32, dim), nn.SiLU(), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, noisy: Tensor, sigma: Tensor, past: Tensor, actions: Tensor) -> Tensor:
        """noisy (B, 3, H, W), sigma (B,), past (B, 4, 3, H, W), actions long (B, 4) -> the frame (B, 3, H, W)."""
        total = (sigma.square() + SIGMA_DATA**2).sqrt()[:, None, None, None]
        angle = 2 * math.pi * (sigma.log() / 4)[:, None] @ self.frequencies  # type: ignore[operator]
        noise = torch.cat([angle.cos(), angle.sin()], dim=-1)
        condition = self.condition(noise + self.actions(actions).flatten(1))
        x, kept = self.encoder(
            self.first(torch.cat([noisy / total, past.flatten(1, 2) / SIGMA_DATA], dim=1)), condition
        )
        for level in range(LEVELS):
            x = x if level == 0 else self.grow[level - 1](F.interpolate(x, scale_factor=2.0))
            for block in self.blocks[level * (DEPTH + 1) : (level + 1) * (DEPTH + 1)]:
                x = block(torch.cat([x, kept.pop()], dim=1), condition)
        spread = sigma[:, None, None, None]
        return SIGMA_DATA**2 / total.square() * noisy + spread * SIGMA_DATA / total * self.last(x)


class Judge(nn.Module):
    """Reward (three classes) and end (two) from two successive frames and an action, with memory."""

    def __init__(self) -> None:
        super().__init__()
        self.actions = nn.Embedding(NUM_ACTIONS, JUDGE_CONDITION)
        self.first, self.encoder = nn.Conv2d(6, JUDGE_DIM, 3, padding=1), Encoder(JUDGE_DIM, JUDGE_CONDITION)
        self.memory = nn.LSTMCell(JUDGE_DIM * (FRAME_SIZE // 2 ** (LEVELS - 1)) ** 2, LSTM_DIM)
        self.head = nn.Sequential(nn.Linear(LSTM_DIM, LSTM_DIM), nn.SiLU(), nn.Linear(LSTM_DIM, 5, bias=False))

    def forward(self, frames: Tensor, action: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """frames (B, 6, H, W), action long (B,) -> five logits (B, 5), and the memory's two tensors (B, 512)."""
        x, _ = self.encoder(self.first(frames), self.actions(action))
        hidden, cell = self.memory(x.flatten(1), memory)
        return self.head(hidden), hidden, cell


class DiamondWorld(nn.Module):
    """N worlds that go on by one frame a step."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser, self.judge = Denoiser(), Judge()

    def start(self, num_worlds: int) -> tuple[Tensor, ...]:
        """The state of N worlds: past frames (N, 4, 3, H, W), actions long (N, 4) and the judge's memory."""
        frames = torch.randn(num_worlds, PAST_FRAMES, 3, FRAME_SIZE, FRAME_SIZE).clamp(-1, 1)
        memory = torch.zeros(num_worlds, LSTM_DIM)
        return frames, torch.zeros(num_worlds, PAST_FRAMES, dtype=torch.long), memory, memory

    def step(self, state: tuple[Tensor, ...], action: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The state after an action, long (N,), and the five logits of reward and end (N, 5)."""
        past, actions, hidden, cell = state
        actions = torch.cat([actions[:, 1:], action[:, None]], dim=1)
        ramp = torch.linspace(0, 1, NUM_STEPS)
        ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
        sigmas = [*((ends[0] + ramp * (ends[1] - ends[0])) ** RHO).tolist(), 0.0]
        frame = SIGMA_MAX * torch.randn_like(past[:, -1])
        for sigma, next_sigma in pairwise(sigmas):
            clean = self.denoiser(frame, torch.full((len(frame),), sigma), past, actions)
            frame = frame + (next_sigma - sigma) * (frame - clean) / sigma
        frame = frame.clamp(-1, 1)
        logits, hidden, cell = self.judge(torch.cat([past[:, -1], frame], dim=1), action, (hidden, cell))
        return (torch.cat([past[:, 1:], frame[:, None]], dim=1), actions, hidden, cell), logits
