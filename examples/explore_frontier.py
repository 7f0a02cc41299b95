"""A camera explores imagined rooms by its frontier: what it sees, what it expects, and its map. Writes a video."""

import cv2
import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401  (registers the ids)
from astra_env.video import resize_frames, side_by_side, write_video
from policies.frontier import FrontierExplorer, PoseGrid

SIZE, REACH = 256, 8  # pixels; cells of the map to each side
PALE, DARK, RED, BLUE = (225, 225, 225), (60, 130, 60), (200, 60, 60), (40, 40, 220)


def draw_map(grid: PoseGrid, pose: np.ndarray) -> np.ndarray:
    """The visited cells in green, the frontier in grey, blocked ones in red, the camera in blue; ahead is up."""
    picture = np.full((2 * REACH + 1, 2 * REACH + 1, 3), 255, np.uint8)
    for cells, colour in (
        (grid.frontier(), PALE),
        (grid.blocked, RED),
        (grid.visited, DARK),
        ([grid.cell(pose)], BLUE),
    ):
        for x, z, _ in cells:
            if max(abs(x), abs(z)) <= REACH:
                picture[REACH - z, REACH + x] = colour
    return cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)


env = gym.make("Astra-Sekai-v0")
explorer = FrontierExplorer(env)
observation, info = env.reset(seed=0, options={"start": 11})
video = []
for step in range(18):
    choice = explorer.choose(info)
    observation, reward, terminated, truncated, info = env.step(choice.action)
    seen, expected = (resize_frames(frames, (SIZE, SIZE)) for frames in (info["frames"], choice.frames[-4:]))
    pair = side_by_side(seen, expected, ("now", "0.6 s ahead, as expected"))
    map_now = np.repeat(draw_map(explorer.grid, info["pose"])[None], len(pair), axis=0)
    video.append(np.concatenate([pair, map_now], axis=2))
    if step % 6 == 0:
        worth = ", ".join(f"{name} {value:.2f}" for name, value in choice.terms.items())
        print(f"step {step}: {np.round(choice.action, 2)}, value {choice.value:.2f}: " + worth)
write_video("outputs/explore_frontier.mp4", np.concatenate(video), fps=20)
print(f"visited {len(explorer.grid.visited)} cells, found {len(explorer.grid.blocked)} blocked")
