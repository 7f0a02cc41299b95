"""Readers of recorded data: every format gives the same `Clip`."""

from __future__ import annotations

import os
from pkgutil import resolve_name
from typing import Any

from astra_env.datasets.clip import Clip

DATASETS: dict[str, str] = {
    "recorded": "astra_env.datasets.recorded:RecordedDataset",
    "rlds": "astra_env.datasets.rlds:RLDSDataset",
    "rt1": "astra_env.datasets.rlds:RT1Dataset",
    "lerobot": "astra_env.datasets.lerobot:LeRobotDataset",
    "nuscenes": "astra_env.datasets.nuscenes:NuScenesDataset",
    "sekai": "astra_env.datasets.sekai:SekaiDataset",
    "spatialvid": "astra_env.datasets.spatialvid:SpatialVIDDataset",
    "multicamvideo": "astra_env.datasets.multicamvideo:MultiCamVideoDataset",
    "hdf5": "astra_env.datasets.hdf5:HDF5Dataset",
    "minari": "astra_env.datasets.minari:MinariDataset",
    "folder": "astra_env.datasets.folder:FolderDataset",
}


def load_dataset(name: str, root: str | os.PathLike[str], **options: Any) -> Any:
    """Open a data set: `len` and integer indices, which give a `Clip`; `options` go to its reader."""
    if name not in DATASETS:
        raise ValueError(f"There is no reader for {name!r} data sets; there are readers for {sorted(DATASETS)}.")
    return resolve_name(DATASETS[name])(root, **options)


__all__ = ["DATASETS", "Clip", "load_dataset"]
