"""The table of environments; a row here is an id that ``gymnasium.make`` knows."""

from __future__ import annotations

from dataclasses import dataclass

REACHED = 0.05
"""Metres from the gripper to what it is to reach, as in Meta-World."""
SLACK = 0.05
"""Metres that the actions may lead an arm away from where pictures show it; more of it has met a resistance."""
GOAL_DISTANCE, GOAL_ANGLE = 0.7, 0.4
"""The ball in the rooms is reached from so near (metres to its centre), looking at it as straight as this (radians)."""
SURE = 0.8
"""Standard deviation, in metres, from which on a ball counts as not seen."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What distinguishes one environment id from another.

    Attributes:
        modality: name of the action modality (a key of ``astra_env.actions.ACTION_MODALITIES``).
        domain: the folder of a checkpoint that holds its start states and reward head.
        description: what is imagined, in one line.
        rewards: what the reward is, in a sentence or two.
        episode_end: what ends an episode besides ``max_episode_steps``.
        max_episode_steps: steps after which an episode is truncated.
        discrete: whether an action is the number of a set of keys (``astra_env.actions.DISCRETE_ACTIONS``).
        follows_path: whether the task is to follow a path of poses, drawn anew for each episode.
        task: the folder in the domain's that holds the task's reward heads; the domain's own task if it is empty.
        dwells: whether the task is to be where it is solved, so that only time ends an episode.
    """

    modality: str
    domain: str
    description: str
    rewards: str
    episode_end: str
    max_episode_steps: int = 50
    discrete: bool = False
    follows_path: bool = False
    task: str = ""
    dwells: bool = False


_REACH = (
    "1 - tanh(0.4 d) at d metres from where the actions have led the camera to the red ball, where a model that was "
    f"trained on recordings saw it at the beginning; 1 within {GOAL_DISTANCE} m of it and looking at it. If it "
    "saw none, 0.1 (1 - cos a + tanh m) for looking a radians aside, neither up nor down, from m metres away."
)

ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    "Astra-RT1-v0": EnvironmentSpec(
        modality="end_effector",
        domain="robot",
        description="a robot arm at a table, moved by 7-DoF end-effector actions",
        rewards="0.6 (1 - tanh(8 d)) at d metres from the way that leads from above to the red cube, where a model "
        "that was trained on recordings saw it at the beginning; half of it for a gripper that is not open. Where the "
        "gripper has closed around the cube, there or pushed a little, a head that was trained on recordings reads the "
        "reward off the newest latent: up to 0.8 for holding the cube, 1 when the gripper has risen with it.",
        episode_end="Terminates when the red cube is lifted: when the head says so and the gripper has risen with it.",
    ),
    "Astra-RT1-Reach-v0": EnvironmentSpec(
        modality="end_effector",
        domain="robot",
        description="the robot arm of Astra-RT1-v0, which is to be at the red cube",
        rewards="1 - tanh(8 d) at d metres from the middle of the gripper, where the actions have led it "
        f"({SLACK} m at most from where a model that was trained on recordings sees it), to that of the red cube, "
        f"where the model saw it at the beginning; within {REACHED} m, `info['success']` is true.",
        episode_end="Nothing else ends an episode: the gripper is to stay there.",
        task="reach",
        dwells=True,
    ),
    "Astra-NuScenes-v0": EnvironmentSpec(
        modality="vehicle",
        domain="driving",
        description="a car on roads with traffic, seen from its driver's place",
        rewards="A head that was trained on recorded episodes reads it off the newest latent, in [0, 1]: the speed "
        "along the route as a share of 12 m/s; 1 on arrival, 0 off the road or touching anything. It is divided by "
        "1 + (d / 1.5)^2 at d metres from the middle of the lane, as far as that is seen at the beginning.",
        episode_end="Terminates on arrival, which is a success, and off the road or touching anything, which are not.",
    ),
    "Astra-Sekai-v0": EnvironmentSpec(
        modality="camera",
        domain="camera",
        description="furnished rooms, seen by a camera that moves and turns freely, as a small drone does",
        rewards=_REACH,
        episode_end="Terminates at the red ball, if that was seen at the beginning.",
    ),
    "Astra-SpatialVID-v0": EnvironmentSpec(
        modality="camera",
        domain="camera",
        description="the rooms of Astra-Sekai-v0, explored with the keys W A S D and the arrows",
        rewards=_REACH,
        episode_end="Terminates at the red ball, if that was seen at the beginning.",
        discrete=True,
    ),
    "Astra-MultiCam-v0": EnvironmentSpec(
        modality="camera",
        domain="multicam",
        description="a robot arm at work, seen by a camera that moves around it along a path of poses",
        rewards="1 - tanh(3 (distance + angle / 2)), metres and radians between the pose that the actions have led to "
        "and the path's at this step: geometry, nothing of it is learned.",
        episode_end="Terminates within 0.05 m and 0.1 rad of the last pose of the path, at its end or later.",
        max_episode_steps=24,
        follows_path=True,
    ),
}
