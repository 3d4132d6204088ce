"""Write a file so that it is either there as a whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusal_edge.errors import ConversionError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    part = part_path(target)
    free, reused = shutil.disk_usage(target.parent).free, _bytes_on_disk(part)
    if n_bytes > free + reused:
        needed, there, left = (f"{n / 1e6:,.0f} MB" for n in (n_bytes, free + reused, reused))
        counting = f" (with {left} of {part.name}, left by an earlier run and reused)" if reused else ""
        raise ConversionError(
            f"{target} needs {needed}, {target.parent} has {there} free{counting}; free some space or write elsewhere"
        )


def part_path(target: Path) -> Path:
    """Where `target` is written until it is whole. The name is ours alone: others call theirs `<target>.part`."""
    return target.with_name(f"{target.name}.refusal-edge.part")


@contextmanager
def part_file(target: Path, *, force: bool) -> Iterator[tuple[int, Path]]:
    """A new file next to `target`, as (descriptor, path), that becomes `target` if the block succeeds.

    On an error it is removed and `target` is as before. A killed process leaves `part_path(target)`, which the next run
    overwrites.

    Raises:
        ConversionError: `target` may not be created, or another process is writing it.
        OSError: the disk is full; names the part file.
    """
    check_target(target, force=force)
    part = part_path(target)
    descriptor = _open_alone(part)
    try:
        try:
            os.ftruncate(descriptor, 0)
            yield descriptor, part
            os.fsync(descriptor)
            check_target(target, force=force)
            os.replace(part, target)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:
                raise OSError(error.errno, error.strerror, str(part)) from None
            raise
        _sync_folder(target.parent)
    finally:
        os.close(descriptor)


def _open_alone(part: Path) -> int:
    """A descriptor of the file `part`, which no other process of ours writes as long as it is open."""
    while True:
        if os.path.lexists(part) and not stat.S_ISREG(part.lstat().st_mode):
            raise ConversionError(f"{part} is not a regular file; remove it or choose another name")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        alone = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = _is_at(part, descriptor)
        except BlockingIOError:
            raise ConversionError(
                f"{part} is being written by another process; wait for it or choose another name"
            ) from None
        finally:
            if not alone:
                os.close(descriptor)
        if alone:
            return descriptor
        # Between the two calls its writer was done: the open file is the target by now.


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _bytes_on_disk(path: Path) -> int:
    return path.lstat().st_blocks * 512 if path.is_file() else 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
