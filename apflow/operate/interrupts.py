"""Ctrl-C: the driver hears it, once; its worker processes do not."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes and threads started inside never see SIGINT: who started them ends them.

    A terminal sends it to the whole process group, and a worker that dies of it in the middle of a step would leave
    a traceback and a step that is tried again. What arrives meanwhile is delivered at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt` once; later ones do not disturb the clearing up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
