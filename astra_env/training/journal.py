"""The course of a run on the disk: JSON lines, and the same as curves for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class Journal:
    """Lines of FOLDER/log.jsonl and scalars in FOLDER/tensorboard.

    What was written after the step at which a killed run goes on is taken back.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step_index: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("Curves need tensorboard; run: pip install 'astra-env[training]'") from error
        self.path = folder / LOG
        if self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines(keepends=True) if _step(line) <= step_index]
            partial = self.path.with_name(f"{LOG}.partial")
            partial.write_text("".join(lines))
            os.replace(partial, self.path)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step_index + 1)

    def log(self, step_index: int, **values: Any) -> None:
        """One line, and a scalar for each number in it; values of a dictionary are named after it."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step_index, **values}) + "\n")
        for name, value in values.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                self._writer.add_scalar(f"{name}/{part}".rstrip("/"), number, step_index)
        self._writer.flush()

    def close(self) -> None:
        """Finish the curves' file."""
        self._writer.close()


def _step(line: str) -> float:
    """The step of a line; a line that a kill cut short belongs to none."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
