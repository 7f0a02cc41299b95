"""What a checkpoint folder holds of each domain: start states, and a reward head where one was learned."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = "domains"
MANIFEST = "dataset.json"


def domain_folder(checkpoint: Path | None, domain: str, modality: str) -> Path | None:
    """CHECKPOINT/domains/DOMAIN, else the only folder there whose recordings have the actions of a modality.

    None for a world model that comes without recordings; ValueError where it has those of other domains only.
    """
    folders = sorted(checkpoint.glob(f"{FOLDER}/*/")) if checkpoint is not None else []
    matching = [folder for folder in folders if _modality(folder) == modality]
    for folder in folders:
        if folder.name == domain:
            matching = [folder]
    if folders and len(matching) != 1:
        known = {folder.name: _modality(folder) for folder in folders}
        raise ValueError(
            f"{checkpoint} has recordings of {known}, expected a domain {domain!r} or one of {modality!r} actions; "
            "choose another environment id or another world model."
        )
    return matching[0] if matching else None


def _modality(folder: Path) -> str | None:
    """Name of the actions that a domain's manifest describes, if it has one."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        return str(json.loads(manifest.read_text())["modality"]["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{manifest} does not tell its modality's name ({error!r}); copy it from the recordings again."
        ) from error
