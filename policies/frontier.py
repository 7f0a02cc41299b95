"""Exploring with a camera: a grid of the poses that were visited, and imagination to choose what to visit next.

The idea of a frontier, the border between what is known and what is not, is Yamauchi's ("A frontier-based approach for
autonomous exploration", 1997); here the cells are poses, and what lies in them is imagined before anyone goes there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from astra_env import geometry
from astra_env.actions import DISCRETE_ACTIONS
from astra_env.models import WorldState

Cell = tuple[int, int, int]


class Choice(NamedTuple):
    """What the explorer does next and what it expects of it.

    Attributes:
        action: of the environment's action space.
        frames: uint8 (T, H, W, 3), what the world predicts of holding the action for the horizon.
        value: sum of the terms; larger is better.
        terms: by name, what the value is made of.
    """

    action: Any
    frames: np.ndarray
    value: float
    terms: dict[str, float]


class PoseGrid:
    """Cells of place and heading that a camera has visited, seen from its first pose: x right, z ahead, heading right.

    Args:
        start: camera pose (4, 4), with y down.
        cell_size: metres along x and z.
        num_headings: parts of the full turn.
    """

    def __init__(self, start: np.ndarray, *, cell_size: float = 0.4, num_headings: int = 8) -> None:
        self._from_world = geometry.inverse(start)
        self.cell_size, self.num_headings = cell_size, num_headings
        self.visited: set[Cell] = {self.cell(start)}
        self.blocked: set[Cell] = set()

    def cell(self, pose: np.ndarray) -> Cell:
        """The cell (x, z, heading) of a camera pose (4, 4)."""
        seen = self._from_world @ pose
        heading = np.arctan2(seen[0, 2], seen[2, 2]) * self.num_headings / (2 * np.pi)
        x, z = np.round(seen[[0, 2], 3] / self.cell_size)
        return int(x), int(z), int(np.round(heading)) % self.num_headings

    def way(self, poses: Iterable[np.ndarray]) -> list[Cell]:
        """The cells of poses, as far as none is blocked."""
        return list(itertools.takewhile(lambda cell: cell not in self.blocked, map(self.cell, poses)))

    def frontier(self) -> set[Cell]:
        """Cells beside a visited one that were neither visited nor found blocked."""
        beside = {cell for visited in self.visited for cell in self._neighbours(visited)}
        return beside - self.visited - self.blocked

    def distance(self, cell: Cell) -> int:
        """Cells from a visited one to the nearest of the frontier; 0 on the frontier and beyond it."""
        if cell not in self.visited | self.blocked:
            return 0
        cells = np.array(sorted(self.frontier())).reshape(-1, 3)
        away = np.abs(cells - cell)
        away[:, 2] = np.minimum(away[:, 2], self.num_headings - away[:, 2])
        return int(away.sum(1).min(initial=10_000))

    def _neighbours(self, cell: Cell) -> list[Cell]:
        x, z, heading = cell
        turned = [(x, z, (heading + turn) % self.num_headings) for turn in (-1, 1)]
        return [(x - 1, z, heading), (x + 1, z, heading), (x, z - 1, heading), (x, z + 1, heading), *turned]


class FrontierExplorer:
    """Chooses the motion that is imagined to lead to most new poses and to the newest views, and not into things.

    Each candidate motion is held for the horizon, all of them as one batch from the present state. A candidate's value
    adds up the new cells on its way, how much the last imagined latent differs from all that were seen, and, taken off,
    whether the picture would stand still although the camera should move, and how far its end is from the frontier.

    Args:
        env: an imagined environment of ``camera`` actions, continuous or numbers of keys, wrapped or not.
        horizon: steps that a candidate is held.
        motions: candidates float (K, A) within the bounds; the sets of keys of ``DISCRETE_ACTIONS`` if None.
        novelty_scale: worth of a view that differs by one standard deviation of latents, in new cells.
        blocked_scale: cost of a picture that stands still, in new cells.
        distance_scale: cost of a cell's way to the frontier, in new cells.
        still: root mean squared change of the newest latent over the horizon below which the picture stands still; the
            default is for three steps of the bundled world.
        cell_size: metres of a cell of the grid.
        num_headings: parts of the full turn in the grid.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        horizon: int = 3,
        motions: np.ndarray | None = None,
        novelty_scale: float = 1.0,
        blocked_scale: float = 3.0,
        distance_scale: float = 0.5,
        still: float = 0.45,
        cell_size: float = 0.4,
        num_headings: int = 8,
    ) -> None:
        world: Any = env.unwrapped
        self.modality, self._discrete = world.action_modality, isinstance(env.action_space, gymnasium.spaces.Discrete)
        if self.modality.name != "camera" or (self._discrete and motions is not None):
            given = f"{self.modality.name} actions{', numbers of keys, with motions' if self._discrete else ''}"
            raise ValueError(f"FrontierExplorer moves cameras, by motions where actions are a Box; got {given}.")
        keys = self.modality.discrete(DISCRETE_ACTIONS["camera"])
        self.motions = keys if motions is None else self.modality.validate(motions)
        self.env, self.horizon, self.still = env, horizon, still
        self._scales = {"new": 1.0, "novelty": novelty_scale, "blocked": -blocked_scale, "distance": -distance_scale}
        self._sizes: dict[str, Any] = {"cell_size": cell_size, "num_headings": num_headings}
        self.reset()

    def reset(self, seed: int | None = None) -> FrontierExplorer:
        """Forget all that was visited and restart the random numbers; call it when an episode begins."""
        self._generator = torch.Generator().manual_seed(0 if seed is None else seed)
        self.grid: PoseGrid | None = None
        self._seen: list[Tensor] = []  # newest latents (C, h, w)
        self._expected: tuple[Cell | None, np.ndarray] | None = None  # a new cell, and the pose after one step
        return self

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """The action of `choose`."""
        return self.choose(info).action

    @torch.no_grad()
    def choose(self, info: Mapping[str, Any], state: WorldState | None = None) -> Choice:
        """The best candidate from ``info["pose"]``, imagined from a world, or from where the environment is if None.

        A world of its own is given where the camera is a real one: what its pictures show, as `init_state` makes it.
        """
        world: Any = self.env.unwrapped
        present, pose = world.save_state() if state is None else state, np.asarray(info["pose"])
        grid = self._observe(pose, present)
        states = self._imagine(present)
        paths = [self.modality.integrate(pose, np.tile(motion, (self.horizon, 1)))[1:] for motion in self.motions]
        ways = [[grid.cell(pose), *grid.way(path)] for path in paths]
        terms = {
            "new": np.array([len(set(way) - grid.visited) for way in ways], dtype=np.float64),
            "novelty": self._novelty(states[-1]),
            "blocked": self._stands_still(present, states[-1]).astype(np.float64),
            "distance": np.array([grid.distance(way[-1]) for way in ways], dtype=np.float64),
        }
        values = np.sum([scale * terms[name] for name, scale in self._scales.items()], axis=0)
        best = int(np.argmax(values))
        self._expected = next((cell for cell in ways[best] if cell not in grid.visited), None), paths[best][0]
        frames = [world.world_model.decode(after[best])[1][0].cpu().numpy() for after in states]
        action = best if self._discrete else self.motions[best].copy()
        return Choice(
            action, np.concatenate(frames), float(values[best]), {n: float(t[best]) for n, t in terms.items()}
        )

    def _observe(self, pose: np.ndarray, present: WorldState) -> PoseGrid:
        """Note what is seen and where from; a place that was made for and not reached is blocked."""
        if self.grid is None:
            self.grid = PoseGrid(pose, **self._sizes)
        if self._expected is not None:
            cell, expected = self._expected
            short = np.linalg.norm(pose[:3, 3] - expected[:3, 3]) > self.grid.cell_size / 4
            if short and cell is not None:
                self.grid.blocked.add(cell)
        self.grid.visited.add(self.grid.cell(pose))
        self._seen.append(present.newest[0].float().cpu())
        return self.grid

    def _imagine(self, present: WorldState) -> list[WorldState]:
        """The worlds after each step of the horizon, one row a candidate.

        All draw the same noise, so that they differ by their motion alone; it is not the noise that the environment
        goes on to draw.
        """
        world: Any = self.env.unwrapped
        seed = int(torch.randint(2**31, (), generator=self._generator))
        generators = [torch.Generator().manual_seed(seed) for _ in self.motions]
        states, actions = [present.repeat(len(self.motions))], torch.from_numpy(self.motions)
        for _ in range(self.horizon):
            states.append(world.world_model.step(states[-1], actions, generators, **world.sampling))
        return states[1:]

    def _stands_still(self, before: WorldState, after: WorldState) -> np.ndarray:
        """Whether (K,) the picture does not change although the motion would move or turn the camera."""
        changed = _change(before.newest[0], after.newest).cpu().numpy()
        return (changed < self.still) & self.motions.any(1)

    def _novelty(self, states: WorldState) -> np.ndarray:
        """Root mean squared difference (K,) of each world's newest latent to the most similar one seen."""
        seen = torch.stack(self._seen)
        return np.array([float(_change(latent, seen).min()) for latent in states.newest.float().cpu()])


def explore(
    env: gymnasium.Env[Any, Any], num_steps: int, *, seed: int | None = None, **options: Any
) -> Iterator[Choice]:
    """Explore an imagined environment from its reset: yields each choice before it is made.

    options are those of `FrontierExplorer`. It ends early where the episode does.
    """
    explorer = FrontierExplorer(env, **options).reset(seed)
    _, info = env.reset(seed=seed)
    for _ in range(num_steps):
        choice = explorer.choose(info)
        yield choice
        _, _, terminated, truncated, info = env.step(choice.action)
        if terminated or truncated:
            return


def _change(latent: Tensor, others: Tensor) -> Tensor:
    """Root mean squared difference of a latent (C, h, w) to others (..., C, h, w)."""
    return (others.to(latent) - latent).square().mean((-3, -2, -1)).sqrt()
