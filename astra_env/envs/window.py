"""A window in which an imagined world runs at its own speed, with the action below it: `render_mode="human"`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from astra_env.actions import ActionModality
from astra_env.pictures import enlarged, with_action

LAG = 2
"""Frames that may follow each other faster, so that a second of the world takes a second."""


class Window:
    """Shows one chunk after the other, each of its frames for as long as it lasts in the world.

    Closing the window ends the show, not the episode: what comes later is imagined unseen, at full speed.

    Args:
        title: what stands above the window.
        modality: of the actions below the picture.
        fps: frames a second.

    Raises:
        ImportError: when pygame is not installed.
    """

    def __init__(self, title: str, modality: ActionModality, fps: float) -> None:
        try:
            import pygame
        except ImportError as error:
            raise ImportError(
                "A window needs pygame: install it with `pip install 'astra-env[human]'`, or choose "
                'render_mode="rgb_array".'
            ) from error
        self._pygame: Any = pygame
        self.title, self.modality, self.fps = title, modality, fps
        self._due = 0.0
        self._opened = self.closed = False

    def show(self, frames: np.ndarray, action: np.ndarray | None) -> None:
        """Show frames uint8 (T, H, W, 3), and the action (A,) that led to them, and return after the last one's start.

        RuntimeError where the machine has no screen.
        """
        for picture in with_action(enlarged(frames), self.modality, action):
            if any(event.type == self._pygame.QUIT for event in self._events(picture.shape)):
                self.close()
            if self.closed:
                return
            self._wait()
            screen = self._pygame.display.get_surface()
            self._pygame.surfarray.blit_array(screen, picture.swapaxes(0, 1))
            self._pygame.display.flip()

    def _wait(self) -> None:
        """Until the next frame is due; what imagining has taken too long is made up for, by `LAG` frames at most."""
        now = time.perf_counter()
        self._due = max(self._due + 1 / self.fps, now - LAG / self.fps)
        time.sleep(max(0.0, self._due - now))

    def _events(self, shape: tuple[int, ...]) -> list[Any]:
        """What the user did, in the window for pictures (H, W, 3)."""
        if self.closed:
            return []
        self._open((shape[1], shape[0]))
        events: list[Any] = self._pygame.event.get()
        return events

    def _open(self, size: tuple[int, int]) -> None:
        """Open the window if it is not; pygame has one for all, which others may have closed or opened anew."""
        display = self._pygame.display
        if display.get_init() and (screen := display.get_surface()) is not None and screen.get_size() == size:
            return
        try:
            display.init()
            display.set_mode(size)
        except self._pygame.error as error:
            raise RuntimeError(
                f"No window can be opened here ({error}); choose render_mode='rgb_array', or set "
                "SDL_VIDEODRIVER=dummy to show it nowhere."
            ) from error
        display.set_caption(self.title)
        self._opened = True

    def close(self) -> None:
        """Close the window for good."""
        if self._opened and not self.closed:
            self._pygame.display.quit()
        self.closed = True
