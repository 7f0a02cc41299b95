"""The one place where Rerun is imported."""

from __future__ import annotations

try:
    import rerun as rr
    import rerun.blueprint as rrb
except ImportError as error:
    raise ImportError("recording needs the package rerun-sdk; install it with: pip install rerun-sdk") from error

__all__ = ["rr", "rrb"]
