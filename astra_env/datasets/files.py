"""Files of a data set in a folder, or anywhere that fsspec reaches, fetched one by one into a bounded cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "astra_env"


class Files:
    """Names below a root, and a local path of each.

    Args:
        root: a local folder, or an address such as ``hf://datasets/OWNER/NAME`` or ``s3://BUCKET/FOLDER``.
        cache_gb: space for fetched files; those used longest ago are deleted when it is full.
        cache: folder of the fetched files; by the XDG convention if None.

    Raises:
        FileNotFoundError: when a local root does not exist.
    """

    def __init__(self, root: str | os.PathLike[str], cache_gb: float = 20.0, cache: Path | None = None) -> None:
        self.root, self.cache_bytes = str(root), cache_gb * 1e9
        self.remote: Any = None
        if "://" in self.root:
            self.remote, self._base = url_to_fs(self.root)
            self.local = (cache or CACHE) / hashlib.sha256(self.root.encode()).hexdigest()[:16]
            self.local.mkdir(parents=True, exist_ok=True)
            return
        self.local = Path(root)
        if not self.local.is_dir():
            raise FileNotFoundError(f"{root} is not a folder; give the one that holds the data set.")

    def glob(self, pattern: str) -> list[str]:
        """Sorted names below the root, with slashes, that match a pattern such as ``videos/*/*.mp4``."""
        if self.remote is None:
            return sorted(path.relative_to(self.local).as_posix() for path in self.local.glob(pattern))
        base = PurePosixPath(self._base)
        return sorted(str(PurePosixPath(name).relative_to(base)) for name in self.remote.glob(f"{base}/{pattern}"))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if self.remote is None:
            return (self.local / name).is_file()
        return bool(self.remote.exists(f"{self._base}/{name}"))

    def path(self, name: str) -> Path:
        """Where a file lies, fetched first if it is remote.

        Raises:
            FileNotFoundError: when there is none of this name.
        """
        path = self.local / name
        if self.remote is None:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing from the data set.")
            return path
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            self.remote.get_file(f"{self._base}/{name}", str(partial))
            os.replace(partial, path)
            self._make_room(path)
        os.utime(path)
        return path

    def _make_room(self, newest: Path) -> None:
        fetched = sorted((p for p in self.local.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
        used = sum(path.stat().st_size for path in fetched)
        for path in fetched:
            if used <= self.cache_bytes:
                return
            if path != newest:
                used -= path.stat().st_size
                path.unlink()
