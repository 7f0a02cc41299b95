"""Action rows equal the recorded ones of the reference; where they differ from a right answer, a test shows how."""

from __future__ import annotations

import numpy as np
import pytest
from golden import ATOL, golden_index, load_case

from astra_env import geometry
from astra_env.models import reference_actions as actions

PRESETS = tuple(actions.PRESET_CAMERAS)


def recorded(variant: str) -> dict[str, np.ndarray]:
    """One group of case_i_actions as arrays."""
    return {name: tensor.numpy() for name, tensor in load_case("case_i_actions")[variant].items()}


def assert_rows(rows: np.ndarray, expected: dict[str, np.ndarray], name: str) -> None:
    """Rows equal the recorded float32 ones, and exactly the recorded bfloat16 ones after rounding."""
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected[f"out.{name}_fp32"], rtol=0, atol=ATOL)
    np.testing.assert_array_equal(actions.round_to_bfloat16(rows), expected[f"out.{name}_bf16"])


def key_frames() -> actions.KeyFrames:
    case = recorded("nuscenes")
    return actions.KeyFrames(case["in.keyframe_indices"], case["in.translation"], case["in.rotation_wxyz"])


def random_poses(count: int) -> np.ndarray:
    """World-to-camera poses (count, 7)."""
    rng = np.random.default_rng(0)
    rotations = geometry.axis_angle_to_matrix(rng.normal(size=(count, 3)))
    return np.concatenate([rng.normal(size=(count, 3)), geometry.matrix_to_quaternion(rotations)], axis=1)


def test_sekai_rows():
    case = recorded("sekai")
    extrinsics = case["in.extrinsic"]
    assert_rows(actions.sekai_rows(extrinsics, 1, 6), case, "train")
    assert_rows(actions.camera_inference_rows(extrinsics, num_history=1, num_new=8), case, "infer_real")
    expected = recorded("relative_pose")["out.4x4"]
    np.testing.assert_allclose(actions.relative_pose(extrinsics[0], extrinsics[4]), expected, rtol=0, atol=ATOL)
    with pytest.raises(ValueError, match="4 frames after the last"):
        actions.sekai_rows(extrinsics, 5, 11)


def test_openx_rows():
    case, extrinsics = recorded("openx"), recorded("sekai")["in.extrinsic"]
    assert_rows(actions.openx_rows(extrinsics[:19], 1, 6), case, "train_short")
    assert_rows(actions.camera_inference_rows(extrinsics, num_history=1, num_new=8), case, "infer_real")
    assert_rows(actions.openx_synthetic_rows(num_history=1, num_new=8), case, "infer_synthetic")
    with pytest.raises(ValueError, match="skip this sample"):
        actions.openx_rows(extrinsics[:19], 4, 6)


def test_spatialvid_rows():
    case = recorded("spatialvid")
    poses = case["in.poses7"]
    assert_rows(actions.spatialvid_rows(poses, 4, 13), case, "rows")
    from_stored = actions.spatialvid_rows(actions.round_to_bfloat16(poses), 4, 13)
    np.testing.assert_allclose(from_stored, case["out.rows_from_bf16_poses"], rtol=0, atol=ATOL)
    expected = recorded("relative_pose7")["out.3x4"]
    np.testing.assert_allclose(actions.spatialvid_relative_pose(poses[0], poses[1]), expected, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(actions.spatialvid_rows(poses, 12, 14), np.zeros((2, 12)))


def test_spatialvid_translation_depends_on_how_the_world_is_turned_and_sekai_does_not():
    poses, turn = random_poses(2), geometry.axis_angle_to_matrix([0.3, 1.0, -0.5])
    turned = poses.copy()  # the same cameras in a turned world: R' = R turn, t' = t
    turned[:, 3:] = geometry.matrix_to_quaternion(geometry.quaternion_to_matrix(poses[:, 3:]) @ turn)
    row, turned_row = (actions.spatialvid_relative_pose(*pair) for pair in (poses, turned))
    np.testing.assert_allclose(row[:, :3], turned_row[:, :3], atol=1e-9)
    assert np.abs(row[:, 3] - turned_row[:, 3]).max() > 0.1
    right, turned_right = (
        actions.relative_pose(*geometry.make_pose(geometry.quaternion_to_matrix(pair[:, 3:]), pair[:, :3]))
        for pair in (poses, turned)
    )
    np.testing.assert_allclose(right, turned_right, atol=1e-9)


def test_spatialvid_data_preparation():
    case = recorded("spatialvid")
    for fps, num_frames, expected in case["out.pose_count_table"]:
        assert actions.spatialvid_pose_count(int(num_frames), fps) == expected
    np.testing.assert_array_equal(actions.spatialvid_frames(300, 50), case["out.frame_sampling_T300_P50"])
    with pytest.raises(ValueError, match="fps is 4"):
        actions.spatialvid_pose_count(100, 4)


@pytest.mark.parametrize(("num_history", "start"), [(6, 2), (3, 5)])
def test_nuscenes_training_rows(num_history, start):
    case, frames = recorded(f"nuscenes/n{num_history}_start{start}"), key_frames()
    rows = actions.nuscenes_rows(frames, start, num_history, num_target=4)
    np.testing.assert_allclose(rows, case["out.rows"], rtol=0, atol=ATOL)
    middle = start + num_history
    assert frames.within(start, middle)[-1] == case["out.reference_keyframe"]
    assert frames.within(middle, middle + 4) == case["out.target_keyframes"].tolist()


def test_nuscenes_rows_without_key_frames():
    rows = actions.nuscenes_rows(key_frames(), start=24, num_history=1, num_target=2)
    np.testing.assert_array_equal(rows[1:], np.tile([0, 0, 0, 1, 0, 0, 0], (2, 1)))
    with pytest.raises(ValueError, match="hold no key frame"):
        actions.nuscenes_rows(key_frames(), start=1, num_history=2)


def test_nuscenes_inference_rows():
    case, frames = recorded("nuscenes"), key_frames()
    assert_rows(actions.nuscenes_inference_rows(frames, num_history=1, num_new=8), case, "infer_real")
    assert_rows(actions.nuscenes_synthetic_rows(num_history=1, num_new=8), case, "infer_synthetic")
    empty = actions.KeyFrames(frames.indices[:0], frames.translations[:0], frames.rotations[:0])
    rows = actions.nuscenes_inference_rows(empty, num_history=1, num_new=8)
    np.testing.assert_array_equal(rows, case["out.infer_empty"])
    rotation = actions.relative_rotation(frames.rotations[0], frames.rotations[3])
    np.testing.assert_allclose(rotation, case["out.relative_rotation_0_3"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("cam_type", PRESETS)
def test_preset_cameras(cam_type):
    rows = actions.preset_camera_rows(cam_type, num_history=1, num_new=24)
    assert_rows(rows, recorded(f"cam_type{cam_type}"), "rows")
    keys = golden_index()["key_overlay"]["lit_keys_per_row"][f"cam_type{cam_type}"]
    assert [list(actions.lit_keys(row)) for row in rows] == keys


def test_s_curve_of_another_length():
    expected = recorded("cam_type6_init3_new9")["out.rows_fp32"]
    np.testing.assert_allclose(actions.preset_camera_rows(6, 3, 9), expected, rtol=0, atol=ATOL)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"expected one of \[1, 2"):
        actions.preset_camera_rows("left", 1, 24)


def test_lit_keys():
    probe = golden_index()["key_overlay"]["overlay_probe"]
    for row, (name, keys, _) in zip(recorded("overlay")["in.rows"], probe, strict=True):
        assert list(actions.lit_keys(row)) == keys, name
    assert actions.lit_keys(np.zeros(13)) == ()
