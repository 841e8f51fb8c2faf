"""What every test stands on: one thread, no network, and two real voices."""

import ipaddress
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def reading_model(tiny_model: AudioLM) -> AudioLM:
    """The tiny model with a text stage."""
    from audiolm import stages
    from audiolm.bundle import language_model
    from audiolm.transformer import TransformerConfig

    torch.manual_seed(1)
    stage = replace(stages.text(tiny_model.semantic.spec), crop=4.0, overlap=1.0)
    network = language_model(stage, TransformerConfig(layers=2, heads=2, width=32, ffn=32, dropout=0))
    return replace(tiny_model, stages={**tiny_model.stages, "text": (stage, network)}, sampling={})


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks of other people's classes with random weights, as transformers saves them: folders by kind, and "dac"."""
    from transformers import AutoConfig, AutoModel

    home = tmp_path_factory.mktemp("others")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (12,) * 7}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}  # how the large ones differ
    for kind in ("hubert", "wavlm", "wav2vec2"):
        for name, more in ((kind, {}), (f"{kind}-large", large)):
            AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **more)).save_pretrained(home / name)
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_size": 32, "codebook_dim": 4, "n_codebooks": 6}
    network = AutoModel.from_config(AutoConfig.for_model("dac", **sizes, downsampling_ratios=[2, 4, 5, 8]))
    with torch.no_grad():  # as initialised, its layers pass on next to nothing
        for weights in network.parameters():
            weights.mul_(3 if weights.ndim == 3 else 1)
    network.save_pretrained(home / "dac")
    (home / "dac" / "README.md").write_text("---\ntags: audio\nlicense: mit\n---\n# DAC\n")
    return home


@pytest.fixture
def two_processes() -> Callable[[Callable[[int], None]], None]:
    """Call work(rank) in two processes that are one group, with the environment that torchrun gives (gloo, this machine).

    They are forked: torch is loaded already. The test fails where one of them fails, or where they wait for each other.
    """

    def child(rank: int, port: int, work: Callable[[int], None]) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    def run(work: Callable[[int], None]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=child, args=(rank, port, work)) for rank in range(2)]
        for each in children:
            each.start()
        until = time.monotonic() + 180
        while any(each.is_alive() for each in children) and time.monotonic() < until:
            if any(each.exitcode for each in children):
                break
            time.sleep(0.05)
        codes = [each.exitcode for each in children]
        for each in children:
            each.kill()
            each.join()
        assert codes == [0, 0], "one failed" if any(codes) else "they wait for each other"

    return run
