"""The order of the parts: imports point down, heavy libraries have one home each, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("astra_env", "policies", "benchmarks", "examples")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

# Lower layers first; parts of one layer do not import each other.
LAYERS = (
    # astra_env.envs itself is the light table of ids, and start states are a file format.
    ("astra_env.geometry", "astra_env.flags", "astra_env.writing", "astra_env.envs", "astra_env.envs.start_states"),
    ("astra_env.kinematics",),
    ("astra_env.actions",),
    ("astra_env.video",),
    ("astra_env.pictures",),
    ("astra_env.models", "astra_env.datasets", "astra_env.simulators"),
    ("astra_env.envs.", "astra_env.training"),
    ("astra_env.visualization",),
    ("astra_env.demo", "astra_env.play"),
    ("astra_env.commands",),
    ("astra_env.cli", "astra_env.__main__"),
    ("policies",),
    ("benchmarks",),
    ("examples",),
)
# What carries the table of ids is imported by everyone.
ANYWHERE = {"astra_env"}

HEAVY = (
    "diffusers",
    "ikpy",
    "lerobot",
    "markdown",
    "matplotlib",
    "mujoco",
    "nuscenes",
    "pygame",
    "ray",
    "rerun",
    "robosuite",
    "stable_baselines3",
    "tensorflow_datasets",
)


def layer_of(module: str) -> tuple[int, str]:
    """Index and name of the layer part that a module belongs to; the longest matching prefix decides."""
    matches = [
        (len(part), index, part)
        for index, parts in enumerate(LAYERS)
        for part in parts
        if (module.startswith(part) if part.endswith(".") else f"{module}.".startswith(f"{part}."))
    ]
    assert matches, f"{module} has no place in LAYERS"
    _, index, part = max(matches)
    return index, part


def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from package import module` imports the module.
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in found}
    return names


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ANYWHERE])
def test_imports_point_down(module):
    layer, part = layer_of(module)
    for name in imports_of(MODULES[module]) & MODULES.keys() - ANYWHERE:
        imported_layer, imported_part = layer_of(name)
        assert imported_part == part or imported_layer < layer, f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_has_one_home(library):
    homes = {
        module
        for module, path in MODULES.items()
        if any(name == library or name.startswith(f"{library}.") for name in imports_of(path))
    }
    assert len(homes) <= 1, f"{library} is imported in {sorted(homes)}"


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_importing_the_package_loads_gymnasium_only():
    script = """
import sys, time, gymnasium
start = time.perf_counter()
import astra_env
seconds = time.perf_counter() - start
loaded = {"torch", "cv2", "diffusers", "rerun", "av", "mujoco"} & sys.modules.keys()
assert not loaded, f"loads {loaded}"
assert seconds < 0.5, f"takes {seconds:.2f} s"
assert "Astra-RT1-v0" in gymnasium.registry
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
