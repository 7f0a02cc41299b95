"""Columns of unknown data: a path that is written in some convention comes back as the actions that drive it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from astra_env import geometry
from astra_env.actions import ACTION_MODALITIES
from astra_env.datasets.columns import ANGLES, AXES, LENGTHS, ROTATIONS, ActionColumns, Timing, told
from astra_env.datasets.files import Files

FPS, N = 10.0, 12
START = geometry.make_pose(geometry.rpy_to_matrix([0.3, -0.4, 1.1]), [0.4, -0.2, 0.3])
ROTATION_NAMES = {kind: tuple(f"r{i}" for i in range(count)) for kind, (count, _) in ROTATIONS.items()}
WRITERS = {
    "yaw": lambda r: geometry.matrix_to_rpy(r)[..., 2:],
    "rpy": geometry.matrix_to_rpy,
    "axis_angle": geometry.matrix_to_axis_angle,
    "quaternion_xyzw": geometry.matrix_to_quaternion,
    "quaternion_wxyz": lambda r: np.roll(geometry.matrix_to_quaternion(r), 1, axis=-1),
    "matrix": lambda r: r.reshape(-1, 9),
}


def path(modality: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Actions (N - 1, A) within the bounds, and the poses (N, 4, 4) that they lead through."""
    kind, rng = ACTION_MODALITIES[modality], np.random.default_rng(seed)
    actions = rng.uniform(kind.low, kind.high, (N - 1, kind.action_dim))
    return actions, kind.integrate(START, actions, speed=5.0, rate_hz=FPS)


def written(poses: np.ndarray, kind: str, length_unit: str = "m", angle_unit: str = "rad") -> np.ndarray:
    """Translation and rotation of poses as columns."""
    turns = WRITERS[kind](poses[:, :3, :3]) / (ANGLES[angle_unit] if kind in ("yaw", "rpy", "axis_angle") else 1.0)
    return np.concatenate([poses[:, :3, 3] / LENGTHS[length_unit], turns], axis=-1)


def told_of(kind: str, **more) -> ActionColumns:
    gripper = {"gripper": "grip"} if more.get("modality", "end_effector") == "end_effector" else {}
    return ActionColumns(**{"rotation": ROTATION_NAMES[kind], "rotation_kind": kind, **gripper, **more})


def names_of(kind: str) -> list[str]:
    return ["x", "y", "z", *ROTATION_NAMES[kind], "grip"]


def with_gripper(columns: np.ndarray, grip: np.ndarray | float = 0.0) -> np.ndarray:
    return np.concatenate([columns, np.broadcast_to(grip, (len(columns),))[:, None]], axis=-1)


@pytest.mark.parametrize("length_unit", LENGTHS)
@pytest.mark.parametrize("angle_unit", ANGLES)
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "yaw"])
def test_poses_of_an_arm_come_back_whatever_they_are_written_in(kind, angle_unit, length_unit):
    actions, poses = path("end_effector")
    table = with_gripper(written(poses, kind, length_unit, angle_unit), np.append(0.0, actions[:, 6]))
    columns = told_of(kind, length_unit=length_unit, angle_unit=angle_unit)
    motion = columns.read(table, names_of(kind), FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, actions, atol=1e-6)
    np.testing.assert_allclose(motion.poses, poses, atol=1e-6)
    assert (motion.actions.dtype, motion.poses.dtype, motion.speeds) == (np.float32, np.float32, None)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_poses_of_a_camera_come_back_from_other_axes_and_from_world_to_camera(axes, inverse):
    actions, poses = path("camera")
    theirs = poses @ np.linalg.inv(AXES[axes])
    table = written(geometry.inverse(theirs) if inverse else theirs, "quaternion_wxyz")
    columns = told_of("quaternion_wxyz", modality="camera", axes=axes, inverse=inverse)
    motion = columns.read(table, names_of("quaternion_wxyz")[:-1], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, actions, atol=1e-6)
    np.testing.assert_allclose(motion.poses, poses, atol=1e-6)


def test_a_camera_with_other_axes_that_goes_forward_and_looks_left_does_so_in_ours():
    fields = ACTION_MODALITIES["camera"].fields
    forward, left = fields.index("dz"), fields.index("dyaw")
    for axes, ahead, up in (("opengl", [0, 0, -1], [0, 1, 0]), ("forward_left_up", [1, 0, 0], [0, 0, 1])):
        turn = geometry.axis_angle_to_matrix(0.1 * np.array(up))  # to the left, by the right-hand rule
        poses = np.stack([np.eye(4), geometry.make_pose(turn, 0.2 * np.array(ahead))])
        columns = told_of("matrix", modality="camera", axes=axes)
        action = columns.read(written(poses, "matrix"), names_of("matrix")[:-1], FPS, "a.csv").actions[0]
        expected = np.zeros(6)
        expected[forward], expected[left] = 0.2, -0.1
        np.testing.assert_allclose(action, expected, atol=1e-6, err_msg=axes)


@pytest.mark.parametrize(
    ("meaning", "kind"),
    [*(("deltas", kind) for kind in WRITERS if kind != "yaw"), ("velocities", "rpy"), ("velocities", "axis_angle")],
)
def test_motions_of_an_arm_come_back(meaning, kind):
    actions, poses = path("end_effector")
    turns = geometry.rpy_to_matrix(actions[:, 3:6])
    steps = written(geometry.make_pose(turns, actions[:, :3]), kind, "cm")
    table = with_gripper(steps * (FPS if meaning == "velocities" else 1), actions[:, 6])
    table = np.concatenate([table, np.full((1, table.shape[1]), np.nan)])  # the last row leads nowhere
    motion = told_of(kind, meaning=meaning, length_unit="cm").read(table, names_of(kind), FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, actions, atol=1e-6)
    assert motion.poses is None
    followed = ACTION_MODALITIES["end_effector"].integrate(START, motion.actions)
    np.testing.assert_allclose(followed, poses, atol=1e-5)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("meaning", ["deltas", "velocities"])
def test_motions_of_a_camera_come_back_from_the_moving_frame_in_any_axes(meaning, axes):
    actions, poses = path("camera")
    theirs = poses @ np.linalg.inv(AXES[axes])
    steps = written(geometry.relative(theirs[:-1], theirs[1:]), "axis_angle")
    table = np.concatenate([steps * (FPS if meaning == "velocities" else 1), np.full((1, 6), np.nan)])
    columns = told_of("axis_angle", modality="camera", meaning=meaning, tool_frame=True, axes=axes)
    motion = columns.read(table, names_of("axis_angle")[:-1], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, actions, atol=1e-6)


def drive(turn: float) -> np.ndarray:
    """Poses of a car that holds a steering angle at 5 m/s."""
    actions = np.tile([turn, 0.0], (N - 1, 1))
    return ACTION_MODALITIES["vehicle"].integrate(np.eye(4), actions, speed=5.0, rate_hz=FPS)


@pytest.mark.parametrize("turn", [0.2, -0.2])
@pytest.mark.parametrize("meaning", ["poses", "deltas", "velocities"])
def test_a_vehicle_steers_to_the_side_that_its_yaw_grows_to(turn, meaning):
    poses = drive(turn)
    if meaning != "poses":
        poses = geometry.relative(poses[:-1], poses[1:])[np.minimum(np.arange(N), N - 2)]
    table = np.delete(written(poses, "yaw", angle_unit="deg"), 2, axis=1) * (FPS if meaning == "velocities" else 1)
    columns = ActionColumns(
        modality="vehicle",
        meaning=meaning,
        translation=("east", "north"),
        rotation=("heading",),
        rotation_kind="yaw",
        angle_unit="deg",
        tool_frame=meaning != "poses",
    )
    motion = columns.read(table, ["east", "north", "heading"], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, np.tile([turn, 0.0], (N - 1, 1)), atol=1e-4)


def test_a_measured_speed_gives_the_acceleration():
    actions, poses = path("vehicle")
    speeds = 5.0 + np.append(0, np.cumsum(actions[:, 1])) / FPS
    table = np.concatenate([written(poses, "matrix"), speeds[:, None]], axis=-1)
    columns = told_of("matrix", modality="vehicle", speed="v")
    motion = columns.read(table, [*names_of("matrix")[:-1], "v"], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions[:, 1], actions[:, 1], atol=1e-4)
    np.testing.assert_allclose(motion.speeds, speeds, rtol=1e-6)


@pytest.mark.parametrize(("unit", "ratio"), [("rad", 1.0), ("deg", 14.0), ("rad", -1.0)])
def test_controls_of_a_vehicle_become_the_angle_of_its_wheels(unit, ratio):
    actions, _ = path("vehicle")
    table = np.concatenate([actions * [ratio / ANGLES[unit], 1.0], [[np.nan, np.nan]]])
    columns = ActionColumns(modality="vehicle", meaning="controls", angle_unit=unit, steering_ratio=ratio)
    motion = columns.read(table, ["steering", "acceleration"], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions, actions, rtol=1e-5)


@pytest.mark.parametrize(("at_open", "at_closed"), [(0.0, 1.0), (1.0, 0.0), (0.0, 100.0), (0.08, 0.0), (-1.0, 1.0)])
def test_a_gripper_is_open_at_0_and_closed_at_1_whatever_its_numbers(at_open, at_closed):
    closed = np.linspace(0, 1, N)
    table = with_gripper(np.zeros((N, 3)), at_open + closed * (at_closed - at_open))
    columns = ActionColumns(gripper="grip", gripper_open=at_open, gripper_closed=at_closed)
    motion = columns.read(table, ["x", "y", "z", "grip"], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions[:, 6], closed[1:], atol=1e-6)
    beyond = with_gripper(np.zeros((N, 3)), at_open - (at_closed - at_open))
    assert (columns.read(beyond, ["x", "y", "z", "grip"], FPS, "a.csv").actions[:, 6] == 0).all()


@pytest.mark.parametrize(
    ("meaning", "gripper_meaning", "shift"),
    [
        ("poses", None, 1),
        ("poses", "measured", 1),
        ("poses", "commanded", 0),
        ("deltas", None, 0),
        ("deltas", "commanded", 0),
        ("deltas", "measured", 1),
    ],
)
def test_a_command_belongs_to_its_own_action_and_a_measurement_to_the_one_before(meaning, gripper_meaning, shift):
    grip = np.random.default_rng(0).uniform(0, 1, N)
    columns = ActionColumns(meaning=meaning, gripper="grip", gripper_meaning=gripper_meaning)
    motion = columns.read(with_gripper(np.zeros((N, 3)), grip), ["x", "y", "z", "grip"], FPS, "a.csv")
    np.testing.assert_allclose(motion.actions[:, 6], grip[shift : shift + N - 1], atol=1e-6)


def test_rows_at_other_times_are_brought_to_the_frames():
    frames = np.arange(5) / FPS
    rows = np.sort(np.concatenate([frames[:-1], frames[1:-1] - 0.03, frames[1:-1] + 0.04, [0.39]]))
    grip = (rows > 0.15).astype(float)
    places = 0.5 * rows[:, None] * [1.0, 2.0, 0.0]  # half a metre a second ahead
    turns = geometry.axis_angle_to_matrix(rows[:, None] * [0, 0, 0.8])
    table = with_gripper(written(geometry.make_pose(turns, places), "quaternion_xyzw"), grip)
    columns = told_of("quaternion_xyzw")
    motion = columns.read(table, names_of("quaternion_xyzw"), FPS, "a.csv", Timing(rows, frames))
    assert motion.poses.shape == (5, 4, 4)
    np.testing.assert_allclose(motion.actions[:3, :6], np.tile([0.05, 0.1, 0, 0, 0, 0.08], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(motion.actions[3, 0], 0.045, atol=1e-6)  # the rows end at 0.39
    np.testing.assert_array_equal(motion.actions[:, 6], [0, 1, 1, 1])


def test_velocities_last_from_row_to_row_and_commands_hold_until_the_next():
    frames, rows = np.arange(7) / FPS, np.array([0.0, 0.2, 0.4, 0.6])
    table = with_gripper(np.array([[1.0, 0, 0], [2, 0, 0], [3, 0, 0], [9, 0, 0]]), [0.1, 0.2, 0.3, 0.9])
    columns = ActionColumns(meaning="velocities", gripper="grip")
    motion = columns.read(table, ["x", "y", "z", "grip"], FPS, "a.csv", Timing(rows, frames))
    np.testing.assert_allclose(motion.actions[:, 0], [0.1, 0.1, 0.2, 0.2, 0.3, 0.3], atol=1e-6)
    np.testing.assert_allclose(motion.actions[:, 6], [0.1, 0.1, 0.2, 0.2, 0.3, 0.3], atol=1e-6)
    controls = ActionColumns(modality="vehicle", meaning="controls", controls=("x", "grip"))
    held = controls.read(table, ["x", "y", "z", "grip"], FPS, "a.csv", Timing(rows, frames)).actions
    np.testing.assert_allclose(held[:, 0], [1, 1, 2, 2, 3, 3], atol=1e-6)


def test_a_part_of_a_motion_is_that_of_its_frames():
    actions, poses = path("camera")
    columns = told_of("matrix", modality="camera")
    motion = columns.read(written(poses, "matrix"), names_of("matrix")[:-1], FPS, "a.csv").cut(3, 7)
    np.testing.assert_allclose(motion.actions, actions[3:6], atol=1e-6)
    np.testing.assert_allclose(motion.poses, poses[3:7], atol=1e-6)
    assert motion.speeds is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "telepathy"}, "modality is 'telepathy', expected one of"),
        ({"meaning": "hopes"}, "meaning"),
        ({"rotation_kind": "euler"}, "rotation_kind"),
        ({"length_unit": "ft"}, "length_unit"),
        ({"angle_unit": "turns"}, "angle_unit"),
        ({"axes": "blender"}, "axes"),
        ({"gripper_meaning": "guessed"}, "gripper_meaning"),
        ({"rotation_kind": "rpy"}, "rotation 0, expected 2 or 3, and 3"),
        ({"translation": ("x",)}, "translation has 1 columns"),
        ({"gripper": "g", "gripper_closed": 0.0}, "both 0"),
        ({"gripper": None}, "name the gripper's column"),
        ({"modality": "camera", "gripper": "g"}, "name the gripper's column"),
        ({"meaning": "controls"}, "those of vehicles"),
        ({"speed": "v"}, "those of vehicles"),
        ({"modality": "vehicle", "gripper": None, "meaning": "controls", "controls": ("s",)}, "two columns"),
        ({"modality": "vehicle", "gripper": None, "meaning": "controls", "steering_ratio": 0.0}, "other than 0"),
        ({"modality": "vehicle", "gripper": None}, "tell its rotation"),
        ({"axes": "opengl"}, "which cameras have"),
        ({"meaning": "deltas", "inverse": True}, "inverse is for poses"),
        ({"meaning": "deltas", "tool_frame": True}, "in the fixed frame .* tool_frame=False"),
        ({"modality": "camera", "gripper": None, "meaning": "velocities"}, "in the moving frame .* tool_frame=True"),
        (
            {"meaning": "velocities", "rotation_kind": "quaternion_xyzw", "rotation": ("a", "b", "c", "d")},
            "Velocities turn by",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    ActionColumns(gripper="g")
    with pytest.raises(ValueError, match=message):
        ActionColumns(**{"gripper": "g", **fields})


def broken(table: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    table = table.copy()
    table[row, column] = value
    return table


def test_rows_that_are_not_right_are_named():
    _, poses = path("end_effector")
    table, names = with_gripper(written(poses, "quaternion_xyzw")), names_of("quaternion_xyzw")
    columns = told_of("quaternion_xyzw")
    with pytest.raises(ValueError, match=r"a.csv: columns \['r3'\] are missing; it has"):
        columns.read(np.delete(table, 6, 1), [name for name in names if name != "r3"], FPS, "a.csv")
    with pytest.raises(ValueError, match=r"a.csv, row 4: .*not a finite number"):
        columns.read(broken(table, 4, 1, np.nan), names, FPS, "a.csv")
    with pytest.raises(ValueError, match=r"a.csv, row 11: .*grip.*not a finite number"):
        columns.read(broken(table, N - 1, 7, np.inf), names, FPS, "a.csv")
    lost = table.copy()
    lost[5, 3:7] = 0
    with pytest.raises(ValueError, match=r"a.csv, row 5: .*no rotation of the kind 'quaternion_xyzw'"):
        columns.read(lost, names, FPS, "a.csv")
    with pytest.raises(ValueError, match="1 rows, expected at least 2"):
        columns.read(table[:1], names, FPS, "a.csv")


@pytest.mark.parametrize("matrix", [np.diag([1.0, 1, -1]), 2 * np.eye(3), np.ones((3, 3)), np.zeros((3, 3))])
def test_a_matrix_that_is_no_rotation_is_named(matrix):
    _, poses = path("camera")
    table = written(poses, "matrix")
    table[3, 3:] = matrix.reshape(9)
    with pytest.raises(ValueError, match=r"a.csv, row 3: .*no rotation of the kind 'matrix'"):
        told_of("matrix", modality="camera").read(table, names_of("matrix")[:-1], FPS, "a.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([0.0, 0.1, 0.1, 0.3]), "row 2: its time 0.1 is not after 0.1"),
        (np.array([0.0, 0.1, np.nan, 0.3]), "row 2: the time is not a finite number"),
        (1.7e9 + np.arange(4) / FPS, "seconds since the first frame"),
        (np.arange(4) * 100.0, "seconds since the first frame"),
        (np.arange(4) * 0.08, "seconds since the first frame"),
    ],
)
def test_times_that_are_not_right_are_named(rows, message):
    columns = ActionColumns(gripper="grip")
    with pytest.raises(ValueError, match=f"a.csv.*{message}"):
        columns.read(np.zeros((4, 4)), ["x", "y", "z", "grip"], FPS, "a.csv", Timing(rows, np.arange(4) / FPS))


def test_columns_lie_beside_the_data_and_are_never_guessed(tmp_path):
    files, columns = Files(tmp_path), told_of("rpy", angle_unit="deg")
    assert told(columns, files, list) is columns
    with pytest.raises(ValueError, match=r"cannot be guessed; .*columns.json there; the columns are \['a', 'b'\]"):
        told(None, files, lambda: ["a", "b"])
    (tmp_path / "columns.json").write_text(json.dumps(dataclasses.asdict(columns)))
    assert told(None, files, list) == columns
    for text, message in (
        ("{", "columns.json does not tell"),
        ('{"lenght_unit": "m"}', "lenght_unit.*expected fields"),
        ('{"gripper": "g", "length_unit": "ft"}', "columns.json.*length_unit is 'ft'"),
        ('{"gripper": "g", "rotation": 3}', "columns.json does not tell"),
    ):
        (tmp_path / "columns.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            told(None, files, list)
