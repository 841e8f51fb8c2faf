"""The engine: one process unless torchrun says otherwise; what a stage sounds like on the way."""

import pytest
import torch

from audiolm.model import AudioLM
from audiolm.training.engine import best_precision, engine
from audiolm.training.listening import stage_listener


def test_a_cluster_s_own_variables_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "1", "OMPI_COMM_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    fabric = engine("cpu", "auto")
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
    assert best_precision("cpu") == ("bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true")


def test_a_stage_is_heard_where_a_codec_decodes_it(tiny_model: AudioLM) -> None:
    codec = tiny_model.codec

    class Items:
        def batch(self, step: int) -> list[dict[str, object]]:
            draw = torch.Generator().manual_seed(step)
            return [
                {"given": [code(each, draw) for each in stage.given], "predicted": code(stage.predict, draw)} for _ in range(3)
            ]

    def code(stream, draw: torch.Generator) -> torch.Tensor:
        return torch.randint(stream.spec.codebook_size, (stream.levels, stream.frames(0.8)), generator=draw)

    for name, (stage, network) in tiny_model.stages.items():
        listen = stage_listener(stage, codec, Items())
        if name == "semantic":
            assert listen is None
            continue
        assert listen is not None
        sounds = listen(network)
        assert len(sounds) == 4  # two prompts, and what they truly go on as
        assert {sound.samples.shape[-1] for sound in sounds.values()} == {round(0.8 * codec.sample_rate)}
        again = listen(network)
        assert all(torch.equal(sound.samples, again[each].samples) for each, sound in sounds.items())
