"""What every test stands on: one thread, no network, and two real voices."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from audiolm.audio import Waveform, read
from audiolm.model import AudioLM

EXAMPLES = Path(__file__).parent.parent / "examples"

torch.set_num_threads(1)  # tiny models are slower on two, and results may differ in the last bit
# The same examples in every run: a red suite is red for everyone. No deadline: other work shares the machine.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


@pytest.fixture(scope="session")
def female_path() -> Path:
    """4.4 s of a woman's voice, 16 kHz mono flac; "So I shall not tell you the rest until next Saturday. You see,"."""
    return EXAMPLES / "prompt-female.flac"


@pytest.fixture(scope="session")
def male_path() -> Path:
    """4.4 s of a man's voice, 16 kHz mono flac; "And there was a fumbling at the handle, but the bolt ..."."""
    return EXAMPLES / "prompt-male.flac"


@pytest.fixture(scope="session")
def female(female_path: Path) -> Waveform:
    """The sound of `female_path`."""
    return read(female_path)


@pytest.fixture(scope="session")
def male(male_path: Path) -> Waveform:
    """The sound of `male_path`."""
    return read(male_path)


def _is_outside(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return False
    try:
        return not ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return True


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Contract 9: nothing touches the network. A connection or a look-up beyond this machine fails the test.

    `pytest.fail` raises what no `except Exception` swallows, so that a silent fallback is caught too.
    """

    def guarded(real, host_of):
        def call(*args, **kwargs):
            host = host_of(*args)
            if _is_outside(host):
                pytest.fail(f"the network was touched: {host}")
            return real(*args, **kwargs)

        return call

    def address_host(sock, address):
        return None if sock.family == socket.AF_UNIX else address[0]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), address_host))
        patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))
        yield


@pytest.fixture(scope="session")
def tiny_model(female: Waveform, male: Waveform) -> AudioLM:
    """A whole bundle of tiny networks: codec and units fitted to the two voices, language models with random weights."""
    from audiolm import stages
    from audiolm.bundle import language_model
    from audiolm.codec import Codec, CodecConfig
    from audiolm.conformer import Conformer, ConformerConfig
    from audiolm.kmeans import KMeans
    from audiolm.tokenizers import SemanticTokenizer
    from audiolm.transformer import TransformerConfig

    torch.manual_seed(0)
    voices = torch.stack([sound.samples[:, : 4 * 16_000] for sound in (female, male)])
    codec = Codec(
        CodecConfig(
            num_codebooks=6, codebook_size=32, latent=32, encoder_width=16, decoder_width=16, encoder_layers=1, decoder_layers=1
        )
    )
    codec.start(voices)
    encoder = Conformer(ConformerConfig(layers=2, width=32, heads=2)).eval()
    with torch.no_grad():
        features = encoder(encoder.log_mel(voices), layers=1)[1].flatten(0, 1)
    semantic = SemanticTokenizer(encoder, KMeans.fit(features, 16), 1)
    network = TransformerConfig(layers=2, heads=2, width=32, ffn=32, dropout=0)
    values = {
        "semantic": replace(stages.semantic(semantic.spec), crop=4.0, overlap=1.0),
        "coarse": replace(stages.coarse(semantic.spec, codec.spec, 2), crop=4.0, overlap=1.0),
        "fine": replace(stages.fine(codec.spec, 2), crop=1.0),
        "acoustic": replace(stages.acoustic_only(codec.spec, 2), crop=4.0, overlap=1.0),
    }
    return AudioLM(semantic, codec, {name: (stage, language_model(stage, network)) for name, stage in values.items()})
