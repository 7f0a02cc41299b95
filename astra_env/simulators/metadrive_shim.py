"""Import MetaDrive 0.3.0.1 beside current packages and without a display.

Its road networks, traffic and physics are used; pictures are drawn elsewhere, so no graphics context is opened. While
its modules are imported, stand-ins take the place of packages that it imports but that nothing here needs; afterwards
the process is as it was.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import gymnasium.envs.registration
import gymnasium.spaces
import gymnasium.utils.seeding
import numpy as np

_PALETTE = [(value, value, value) for value in np.linspace(0.1, 0.9, 10)]


def load_metadrive() -> tuple[type, Any]:
    """MetaDrive's environment class and the module that knows its engine; ImportError if a package is missing."""
    if "metadrive.envs.metadrive_env" not in sys.modules:
        with _stand_ins():
            importlib.import_module("metadrive.envs.metadrive_env")
            base_object = importlib.import_module("metadrive.base_class.base_object")
            importlib.import_module("metadrive.policy.idm_policy")
            importlib.import_module("metadrive.manager.traffic_manager")
            importlib.import_module("metadrive.manager.map_manager")
        # colours and names are drawn from the operating system's randomness, which nothing could repeat
        base_object.get_np_random = lambda seed=None: np.random.RandomState(0 if seed is None else seed)  # type: ignore[attr-defined]
    environment = sys.modules["metadrive.envs.metadrive_env"].MetaDriveEnv
    return environment, sys.modules["metadrive.engine.engine_utils"]


@contextmanager
def _stand_ins() -> Iterator[None]:
    spec = importlib.util.find_spec("metadrive")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("metadrive is not installed.")
    root = Path(spec.submodule_search_locations[0])
    modules: dict[str, ModuleType] = {"gym": gymnasium, "pygame": ModuleType("pygame")}
    modules |= {f"gym.{name[10:]}": module for name, module in sys.modules.items() if name.startswith("gymnasium.")}
    seaborn = ModuleType("seaborn")
    seaborn.color_palette = lambda name: list(_PALETTE)  # type: ignore[attr-defined]
    modules["seaborn"] = seaborn
    before = {name: sys.modules.get(name) for name in modules}
    # these two packages import every environment there is, and with them more packages; their modules load one by one
    for name, folder in (("metadrive", root), ("metadrive.envs", root / "envs")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        modules[name] = package
    modules["metadrive"].envs = modules["metadrive.envs"]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, previous in before.items():
            if previous is None:
                del sys.modules[name]
            else:
                sys.modules[name] = previous
