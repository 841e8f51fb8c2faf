"""The verb that answers others."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from audiolm.commands import making
from audiolm.errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    *limits: str,
    model: str = "speech",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> None:
    """The page and the HTTP API on this machine: open the address it prints. Stopping it finishes what runs.

    Parameters
    ----------
    limits
        What it takes on, as seconds=30 queue=16 rate=0; an unknown name lists them all.
    model
        A packaged model (speech, piano), a bundle's folder, or a hub id owner/name (only then is the network used).
    host
        The address to listen on. 0.0.0.0 lets other machines in: give them a key.
    port
        0 takes a free one.
    api_key_file
        A file of keys, one a line, of which every request must show one. The variable AUDIOLM_API_KEY holds one more.
    device
        cpu, cuda, cuda:1, mps.
    threads
        Processor threads; default: one per core, fewer where other processes keep the cores busy.
    """
    try:
        from audiolm.serving.limits import Limits
        from audiolm.serving.process import listen
    except ImportError as error:
        raise InputError(f"serve needs {error.name}; run: pip install 'audiolm[serve]'") from error
    from audiolm.config import load_config

    taken = load_config(Limits, None, limits)
    keys = _keys(api_key_file)
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: give a number from 0 to 65535")
    from audiolm import bundle
    from audiolm.serving.server import create_app

    making.settle(device, threads)
    if host not in LOOPBACK and not keys:
        print(f"audiolm: anyone who reaches {host} may use this server; --api-key-file asks for a key", file=sys.stderr)
    hosts = (*LOOPBACK, "[::1]") if host in LOOPBACK else None
    with ThreadPoolExecutor(1) as apart:  # its helpers end with it: see Service.open
        loaded = apart.submit(bundle.load, model, device).result()
        voice = apart.submit(lambda: bundle.detector_of(bundle.folder_of(model))).result()
    listen(create_app(loaded, taken, keys, hosts, voice), host, port, taken)


def _keys(path: Path | None) -> list[str]:
    keys = [os.environ.get("AUDIOLM_API_KEY", "")]
    if path is not None:
        try:
            keys += path.read_text(encoding="utf-8-sig").split()  # some editors put a mark before a text
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {path}: cannot be read; name a text file of keys, one a line") from error
        if len(keys) < 2:
            raise InputError(f"--api-key-file {path}: holds no key; write one a line")
    return [key for key in keys if key]
