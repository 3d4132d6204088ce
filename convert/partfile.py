"""Write a file so that it is either there as a whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusal_edge.errors import ConversionError


def check_target(target: Path, *, force: bool) -> None:
    """Raises ConversionError unless `target` may be created."""
    if target.is_dir():
        raise ConversionError(f"{target} is a folder; give the name of the file to write")
    if os.path.lexists(target) and not target.is_file():
        raise ConversionError(f"{target} is not a regular file; give the name of the file to write")
    if not target.parent.is_dir():
        raise ConversionError(f"{target.parent} does not exist; create the folder first")
    if target.exists() and not force:
        raise ConversionError(f"{target} exists; use --force to replace it")


def check_free_space(target: Path, n_bytes: int) -> None:
    """Raises ConversionError if `n_bytes` more do not fit where `target` goes."""
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise ConversionError(
            f"{target} needs {n_bytes / 1e6:,.0f} MB, {target.parent} has {free / 1e6:,.0f} MB free; "
            "free some space or write elsewhere"
        )


@contextmanager
def part_file(target: Path, *, force: bool) -> Iterator[tuple[int, Path]]:
    """A new file next to `target`, as (descriptor, path), that becomes `target` if the block succeeds.

    On an error it is removed and `target` is as before. A killed process leaves `<target>.part`, which the next run
    overwrites.

    Raises:
        ConversionError: `target` may not be created, or another process is writing it.
    """
    check_target(target, force=force)
    part = target.with_name(target.name + ".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(
                f"{part} is being written by another process; wait for it or choose another name"
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            yield descriptor, part
            os.fsync(descriptor)
            check_target(target, force=force)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
