"""What a .rrd file holds, read back by Rerun's own reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One thing that was logged: times, and values by name of the component, such as "Scalars:scalars"."""

    frame: int
    step: int
    time: float  # seconds
    wall_time: float  # seconds since 1970
    values: dict[str, Any]


def read(path: Path) -> dict[str, list[Row]]:
    """Entity -> all that was logged there, in the order of frames and steps; what holds at all times is left out."""
    from rerun.chunk import RrdReader

    entities: dict[str, list[Row]] = {}
    for chunk in RrdReader(path).stream():
        if chunk.is_static:
            continue
        columns = {}
        batch = chunk.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            timed = name in ("time", "wall_time")
            columns[name] = column.cast("int64").to_pylist() if timed else column.to_pylist()
        names = [name for name in columns if ":" in name]
        for index in range(chunk.num_rows):
            times = (
                columns["frame"][index],
                columns["step"][index],
                columns["time"][index] / 1e9,
                columns["wall_time"][index] / 1e9,
            )
            row = Row(*times, {name: columns[name][index] for name in names})
            entities.setdefault(chunk.entity_path.removeprefix("/"), []).append(row)
    return {entity: sorted(rows, key=lambda row: (row.frame, row.step)) for entity, rows in entities.items()}


def numbers(entities: dict[str, list[Row]], entity: str) -> list[float]:
    """The values of a curve."""
    return [row.values["Scalars:scalars"][0] for row in entities[entity]]
