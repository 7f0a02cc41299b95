"""Files of pretrained parts in diffusers form: from a local folder, the hub's cache or the hub, whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

# the HTTP library's base of errors, under the one name that outlives the hub's changes of library
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Source = str | os.PathLike[str]
Say = Callable[[str], None]

WAN_REPO = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

# Visible without any set-up, as gigabytes are about to be written.
tell: Say = logging.getLogger(__name__).warning


def fetch(source: Source, parts: Sequence[str], say: Say = tell) -> Path:
    """Folder that holds parts ("transformer", "vae", "text_encoder", "tokenizer"), downloaded where it must be.

    Args:
        source: a local folder in diffusers form, or a repository on the hub, whose cache is looked at first.
        parts: the sub-folders that are needed; nothing else is downloaded.
        say: told what is about to be downloaded, and how many GB.

    Raises:
        ValueError: a file is missing from a local folder.
        ConnectionError: the hub cannot be reached, or does not give the files.
    """
    if Path(source).is_dir():
        for part in parts:
            part_files(Path(source) / part)
        return Path(source)
    patterns = [f"{part}/*{suffix}" for part in parts for suffix in (".json", ".safetensors", ".model")]

    def check(folder: Path) -> None:
        for part in parts:
            part_files(folder / part)

    return download(str(source), patterns, check, say)


def download(repo: str, patterns: Sequence[str], check: Callable[[Path], object], say: Say = tell) -> Path:
    """Folder of a repository's snapshot with the files of the patterns: the hub's cache where it is whole, or the hub.

    Args:
        repo: owner/name on the hub.
        patterns: which files, as globs.
        check: raises ValueError where a folder lacks some of them.
        say: told what is about to be downloaded, and how many GB.

    Raises:
        ConnectionError: the hub cannot be reached, or does not give the files.
    """
    try:
        cached = Path(snapshot_download(repo, allow_patterns=list(patterns), local_files_only=True))
        check(cached)
        return cached
    except (LocalEntryNotFoundError, ValueError):
        pass  # not there or not whole: the hub has the rest
    try:
        wanted = snapshot_download(repo, allow_patterns=list(patterns), dry_run=True)
        files = [file for file in wanted if file.will_download]
        sizes: dict[str, int] = {}
        for file in files:
            part = file.filename.rpartition("/")[0] or file.filename
            sizes[part] = sizes.get(part, 0) + (file.file_size or 0)
        described = ", ".join(f"{part} {size / 1e9:.1f} GB" for part, size in sizes.items() if size)
        say(f"Downloading {sum(sizes.values()) / 1e9:.1f} GB of {repo} to the hub's cache: {described}.")
        folder = Path(snapshot_download(repo, allow_patterns=list(patterns)))
        check(folder)
        return folder
    except (OSError, HTTPError, ValueError) as error:
        included = " ".join(f"--include '{pattern}'" for pattern in patterns)
        raise ConnectionError(
            f"{repo!r} is no local folder, is not whole in the hub's cache and cannot be downloaded "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); where the hub can be reached run "
            f"`hf download {repo} {included} --local-dir FOLDER`, then give FOLDER in place of {repo!r}."
        ) from error


def part_files(part: Path) -> list[Path]:
    """Safetensors files of a sub-folder: one, or the shards of its index; ValueError names those that are missing."""
    name = "model.safetensors" if part.name == "text_encoder" else "diffusion_pytorch_model.safetensors"
    index = part / f"{name}.index.json"
    weights = [part / name]
    if part.name == "tokenizer":
        weights = []
    elif index.is_file():
        weights = [part / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
    config = part / ("tokenizer_config.json" if part.name == "tokenizer" else "config.json")
    missing = [file.name for file in (config, *weights) if not file.is_file()]
    if missing:
        raise ValueError(
            f"{part} lacks {', '.join(missing[:8])}; expected the {part.name} of a checkpoint in diffusers form, "
            f"as in {WAN_REPO}: complete the download or copy it again."
        )
    return weights


def check_config(
    config: Mapping[str, Any], expected: Mapping[str, Any], required: Iterable[str] = (), *, file: str | Path
) -> None:
    """ValueError that names the file and lists which entries are not as expected (absent ones are), and which required
    ones are absent.
    """
    wrong = [f"{name} is absent" for name in required if name not in config]
    wrong += [
        f"{name} is {config[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if name in config and config[name] != value
    ]
    if wrong:
        raise ValueError(
            f"{file} is of another model than the expected part of Wan-2.1 text-to-video: {', '.join(wrong)}; "
            f"give the folder or the name of a checkpoint like {WAN_REPO}."
        )


def read_json(file: Path) -> dict[str, Any]:
    """ValueError names a file that is cut short."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); {_renew(file)}.") from error


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors of several safetensors files, mapped rather than read; ValueError names a truncated or damaged one."""
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or damaged ({error}); {_renew(file)}.") from error
    return weights


def _renew(file: Path) -> str:
    return f"delete {file.resolve()} and load again, or copy it again"
