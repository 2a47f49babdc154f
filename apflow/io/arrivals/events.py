"""Events of the file system (inotify), where it gives any."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

#: A file took its name; the same, and a file that was written was closed, and a folder was made.
APPEARED, LANDED = "appeared", "landed"
#: What other machines change in these is not told.
_SHARED = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse", "9p", "virtiofs", "afs", "pvfs", "panfs")


def is_heard(folder: Path) -> bool:
    """Whether inotify tells of every change in a folder, which need not exist: not where it is on a shared file system.

    A repository of several machines may also be on a local file system that one
    of them exports: there, those on the others see a shared one.
    """
    if sys.platform != "linux" or importlib.util.find_spec("inotify_simple") is None:
        return False
    return not _type_of(folder.resolve()).startswith(_SHARED)


def _type_of(folder: Path) -> str:
    """Type of the file system of a folder, as the kernel names it; of nothing where it does not say."""
    best, kind = 0, ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            point = Path(before.split()[4].encode().decode("unicode_escape"))
            # A later mount over the same point hides the earlier one.
            if folder.is_relative_to(point) and len(point.parts) >= best:
                best, kind = len(point.parts), after.split()[0]
    return kind


class FolderEvents:
    """What happens in some folders.

    Parameters
    ----------
    what : `str`
        `APPEARED` or `LANDED`.

    Raises
    ------
    OSError
        The kernel gives no more of them (fs.inotify.max_user_instances, max_user_watches).
    """

    def __init__(self, what: str) -> None:
        from inotify_simple import INotify, flags

        self._inotify: Any = INotify()
        self._flags: Any = flags
        self._mask = flags.MOVED_TO | flags.ONLYDIR
        if what == LANDED:
            self._mask |= flags.CLOSE_WRITE | flags.CREATE
        self._folders: dict[int, Path] = {}

    def watch(self, folder: Path) -> None:
        """Hear of a folder; again is harmless."""
        self._folders[self._inotify.add_watch(str(folder), self._mask)] = folder

    def forget(self, folder: Path) -> None:
        """Hear of a folder no more; it may be gone."""
        for number in [n for n, known in self._folders.items() if known == folder]:
            del self._folders[number]
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(number)

    def fileno(self) -> int:
        """Readable when something happened."""
        return int(self._inotify.fileno())

    def read(self) -> set[Path] | None:
        """Files with which something happened since; None where the kernel lost count."""
        files, lost = set(), False
        for event in self._inotify.read(timeout=0):
            if event.mask & self._flags.Q_OVERFLOW:
                lost = True
            elif event.mask & self._flags.IGNORED:
                self._folders.pop(event.wd, None)
            elif event.wd in self._folders:
                files.add(self._folders[event.wd] / event.name)
        return None if lost else files

    def close(self) -> None:
        """Hear of nothing any more."""
        self._inotify.close()
