"""A window that shows the timeline while an episode runs: `render_mode="human"`."""

import time

import numpy as np
from numpy.typing import NDArray


class Window:
    """A window of the desktop. Once its user or `close` has closed it, it stays closed.

    Args:
        fps: images per second, at most.

    Raises:
        RuntimeError: there is no desktop, or Python came without Tk.
    """

    def __init__(self, fps: float) -> None:
        advice = "render_mode='human' needs a desktop and Python's Tk; 'rgb_array' and 'ansi' need neither"
        try:
            import tkinter
        except ImportError as error:
            raise RuntimeError(f"{advice} ({error})") from error
        try:
            self._root: tkinter.Tk | None = tkinter.Tk()
        except tkinter.TclError as error:
            raise RuntimeError(f"{advice} ({error})") from error
        self._tkinter = tkinter
        self._root.title("vmr-env")
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._pause, self._next = 1 / fps, 0.0

    def show(self, image: NDArray[np.uint8]) -> None:
        """Show an image (height, width, 3), as soon as the one before has been seen for its time."""
        if self._root is None:
            return
        time.sleep(max(0.0, self._next - time.monotonic()))
        height, width, _ = image.shape
        data = b"P6 %d %d 255\n" % (width, height) + image.tobytes()
        self._image = self._tkinter.PhotoImage(master=self._root, data=data, format="PPM")  # Tk keeps no copy
        self._label.configure(image=self._image)
        self._root.update()
        self._next = time.monotonic() + self._pause

    def close(self) -> None:
        """Close the window; again does nothing."""
        if self._root is not None:
            self._root.destroy()
            self._root = None
