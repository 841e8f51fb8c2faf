"""Storage: a local path, or a URL of an object store (s3://, gs://, az://, ...) accessed through fsspec.

Both have the methods of pathlib.Path. Remote files are fetched before they are read, and stored once they are complete.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from audiolm.errors import InputError
from audiolm.files import whole_file

LOCAL = ("file://", "local://")


def place(where: str | os.PathLike[str]) -> Path:
    """A path, local or remote. Raises InputError if the package that accesses that kind of store is not installed."""
    text = str(where)
    for scheme in LOCAL:
        text = text.removeprefix(scheme)
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath
    except ImportError as error:
        raise InputError(f"{text}: object storage needs universal_pathlib; run: pip install 'audiolm[ray]'") from error
    try:
        remote = UPath(where)
        remote.fs  # noqa: B018  (a property: imports the package that accesses the store)
    except (ImportError, ValueError) as error:
        raise InputError(f"{text}: cannot be reached ({' '.join(str(error).split())}); s3:// needs: pip install s3fs") from error
    return cast(Path, remote)  # not a subclass, but it has all methods that are used here


def located(where: str | os.PathLike[str]) -> str:
    """An absolute path with links followed, or a URL: the same however a place is spelled, and from whatever folder."""
    found = place(where)
    return str(where) if is_remote(found) else os.path.realpath(found)


def is_remote(path: Path) -> bool:
    """Whether the path is in an object store: it cannot be memory-mapped, and a glob goes over the network."""
    return not isinstance(path, Path)


def listed(folder: Path, pattern: str) -> list[Path]:
    """What a folder holds now, including other processes' files: fsspec caches the listing of a remote folder."""
    if is_remote(folder):
        cast(Any, folder).fs.invalidate_cache()
    return sorted(folder.glob(pattern))


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A local file with the contents of `path`: itself, or a copy that lasts as long as the block. Errors name `path`."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="audiolm-") as folder:
        local = Path(folder) / path.name
        try:
            cast(Any, path).fs.get_file(cast(Any, path).path, str(local))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; check the path") from error
        except Exception as error:  # each store has its own exceptions
            raise InputError(f"{path}: cannot be fetched ({' '.join(str(error).split())}); check address and access") from error
        try:
            yield local
        except InputError as error:
            raise InputError(str(error).replace(str(local), str(path))) from error


@contextmanager
def stored(path: Path) -> Iterator[Path]:
    """Yield a local path to write to. On success `path` then holds the complete file; on any failure `path` is untouched."""
    if not is_remote(path):
        with whole_file(path) as temporary:
            try:
                yield temporary
            except InputError as error:
                raise InputError(str(error).replace(str(temporary), str(path))) from error
        return
    with tempfile.TemporaryDirectory(prefix="audiolm-") as folder:
        local = Path(folder) / path.name
        yield local
        try:
            cast(Any, path).fs.put_file(str(local), cast(Any, path).path)  # an object appears only when it is complete
        except Exception as error:
            raise InputError(f"{path}: cannot be stored ({' '.join(str(error).split())}); check address and access") from error
