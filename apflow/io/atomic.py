"""Files that appear under their name complete or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from apflow.errors import ServiceError

_counter = itertools.count()


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file for writing that takes its name when the block ends well, and vanishes otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name must be free of other threads, processes and machines that write the same output again.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{next(_counter)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ServiceError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
