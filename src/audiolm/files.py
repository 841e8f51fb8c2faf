"""Atomic file writes: to a temporary file in the same folder, then renamed. Tensors are safetensors, never pickles."""

import hashlib
import json
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiolm.errors import InputError


def check_place(path: Path) -> None:
    """Reject a path where no file can be written, or where one would take the place of a folder, pipe or device."""
    folder = _target(path).parent
    # os.path's functions do not fail for a name that is too long: the writing will say so.
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name a file in it, such as {path / ('out' + (path.suffix or '.wav'))}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is a pipe or a device, not a file; name another file")
    if os.path.isfile(folder):
        raise InputError(f"{path}: cannot be written ({folder} is a file); name a file in a folder")
    if not os.path.isdir(folder):
        raise InputError(f"{path}: cannot be written (no such folder); create {folder} first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written (permission denied); choose another folder")


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path (same suffix) and rename it to `path` on success; on any failure `path` is untouched.

    A link's target is written, not the link; an existing file's permissions are kept. InputError as for `check_place`, or if
    the disk is full.
    """
    path = Path(path)
    check_place(path)
    place = _target(path)
    temporary = place.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        kept = stat.S_IMODE(place.stat().st_mode) if place.exists() else None
        # Not tempfile, whose files are private: new results should have the permissions given by the user's umask.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if kept is None else 0o600))
        mode = temporary.stat().st_mode if kept is None else kept
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors replaces it with a private file of its own
        os.replace(temporary, place)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); free space or choose another folder") from error
    finally:
        with suppress(OSError):  # it is renamed, or there was none
            temporary.unlink()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Refuse a second command in a folder, where two would corrupt each other's work. The lock dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({(error.strerror or 'error').lower()}); choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is training there; wait for it, or choose another folder") from None
        yield


def make_folder(path: Path) -> None:
    """Create a folder and its parents. InputError if that fails, for example because a file has its name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be created ({_reason(error)}); choose another folder") from error


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata atomically as one safetensors file."""
    with whole_file(path) as temporary:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {})
            )
        except SafetensorError as error:  # the library wraps the operating system's error, such as a full disk
            raise InputError(f"{path}: cannot be written ({error}); free space or choose another folder") from error


def load_tensors(path: str | os.PathLike[str], device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file (memory-mapped). InputError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = file.keys()  # `file` itself cannot be iterated
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, struct.error, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error}); copy or train it again") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no file. InputError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete its folder and run the same command again") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def file_hash(path: str | os.PathLike[str]) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if os.path.islink(path) else path
