"""The verb that runs the server."""

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
    port: making.Whole = 8000,
    api_key_file: Path | None = None,
    public: str | None = None,
    device: str = "cpu",
    threads: making.Whole | None = None,
) -> None:
    """Serve the web page and the HTTP API: open the address it prints. When stopped, it finishes running requests first.

    Parameters
    ----------
    limits
        Limits such as seconds=30 queue=16 rate=0; an unknown name lists them all.
    model
        A packaged model (speech, piano), a bundle's folder, or a hub id owner/name (only then is the network used).
    host
        The address to listen on. 0.0.0.0 lets other machines in: use it with an API key.
    port
        0 picks a free one.
    api_key_file
        A file of API keys, one per line (# begins a comment); every request must present one. AUDIOLM_API_KEY holds another.
    public
        The address under which a proxy shows this server, as https://audio.example.com.
    device
        cpu, cuda, cuda:1, mps.
    threads
        CPU threads; default: one per core, fewer while other processes keep the cores busy.
    """
    try:
        from audiolm.serving.limits import Limits, origin_of
        from audiolm.serving.process import listen
    except ImportError as error:
        raise InputError(f"serve needs {error.name}; install it: pip install 'audiolm[serve]'") from error
    from audiolm.config import load_config

    taken = load_config(Limits, None, limits)
    keys = _keys(api_key_file)
    if public is not None:
        origin_of(public)
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: give a number from 0 to 65535")
    from audiolm import bundle
    from audiolm.serving.server import create_app

    making.settle(device, threads)
    if host not in LOOPBACK and not keys:
        print(f"audiolm: anyone who can reach {host} may use this server; --api-key-file requires a key", file=sys.stderr)
    hosts = (*LOOPBACK, "[::1]") if host in LOOPBACK else None
    with ThreadPoolExecutor(1) as apart:  # torch's helper threads end with it: see Service.open
        loaded = apart.submit(bundle.load, model, device).result()
        voice = apart.submit(lambda: bundle.detector_of(bundle.folder_of(model))).result()
    listen(create_app(loaded, taken, keys, hosts, voice, public), host, port, taken)


def _keys(path: Path | None) -> list[str]:
    """The keys of AUDIOLM_API_KEY and of the file: one per line, without blank lines and comments (#)."""
    keys = [os.environ.get("AUDIOLM_API_KEY", "").strip()]
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors write a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {path}: cannot be read; name a text file of keys, one per line") from error
        for number, line in enumerate(map(str.strip, lines), 1):
            if line.startswith("#"):
                continue
            if len(line.split()) > 1:  # each word as a key of its own would let in whoever guesses an ordinary word
                raise InputError(
                    f"--api-key-file {path}: line {number} has blanks in it; write one key per line, comments after #"
                )
            keys.append(line)
        if not any(keys[1:]):
            raise InputError(f"--api-key-file {path}: holds no keys; write one per line")
    return [key for key in keys if key]
