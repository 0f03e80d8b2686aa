"""Files that must survive a crash: written through to the disk, and put in the place of an old one whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def sync(path: Path) -> None:
    """Flushes a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Puts a new file in the place of an old one: whole or not at all, and on the disk when this returns.

    Args:
      write: makes the new file, under the path it is given.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        write(temporary)
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # what a full disk could take of it makes room again
        raise
    sync(path.parent)
