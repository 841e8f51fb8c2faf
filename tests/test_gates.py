"""Gates: an honest result passes, a broken one fails with its figure, and nothing passes in silence."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from lightning.fabric import Fabric

from audiolm import stages
from audiolm.bundle import language_model
from audiolm.model import AudioLM
from audiolm.stages import Stage
from audiolm.training import gates
from audiolm.training.audio_store import AudioCrops, AudioStore
from audiolm.training.card import card
from audiolm.training.chain import Chain, Step
from audiolm.training.data import Recording
from audiolm.training.gates import GATES, LANGUAGE_MODELS, GateFailed, GatesConfig, check, surviving, verdicts
from audiolm.training.recipe import StageName
from audiolm.training.train_lm import LMTrainConfig, collate_items, optimizer_of
from audiolm.transformer import LanguageModel, TransformerConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINING = LMTrainConfig(network=TransformerConfig(layers=2, heads=2, width=32, ffn=32, dropout=0), lr=5e-3, unigram_batches=2)
ALL = GatesConfig(split="train", overfits=0.2, batches=2, hears=0.05)


class Shop:
    """A workshop of the two voices, whose results can be broken one by one."""

    def __init__(self, out: Path, store: AudioStore, model: AudioLM) -> None:
        self.out, self.store, self.model, self.fabric = out, store, model, Fabric(accelerator="cpu", devices=1)
        semantic, acoustic = model.semantic.spec, model.codec.spec
        self.stages = {
            "semantic": replace(stages.semantic(semantic), crop=2.0, overlap=1.0),
            "coarse": replace(stages.coarse(semantic, acoustic, 2), crop=1.0, overlap=0.2),
        }
        self.networks: dict[str, LanguageModel] = {}
        self.training = TRAINING
        self.tokenized = False

    def audio(self) -> AudioStore:
        return self.store

    def hours(self) -> dict[str, float]:
        return {"train": self.store.hours()}

    def train_crops(self) -> AudioCrops:
        return AudioCrops(self.store, "train", 2.0, 4)

    def codec(self) -> Any:
        return self.model.codec

    def semantic(self) -> Any:
        return self.model.semantic

    def trained(self, name: str) -> tuple[Stage, LanguageModel, LMTrainConfig]:
        return self.stages[name], self.networks[name], self.training

    def token_crops(self, name: str, split: str) -> Any:
        stage, model = self.stages[name], self.model
        sounds = [self.store.read(number)[None, None] for number in range(len(self.store))]
        codes = [{"semantic": model.semantic.encode(sound)[0], "acoustic": model.codec.encode(sound)[0]} for sound in sounds]
        return Crops(stage, codes)

    def done(self, step: str, result: str = "0") -> None:
        (self.out / step).mkdir(exist_ok=True)
        (self.out / step / "done.json").write_text(json.dumps({"result": result}))


class Crops:
    """Every batch has one crop of each recording, another one in each batch."""

    def __init__(self, stage: Stage, codes: Sequence[dict[str, Any]]) -> None:
        self.stage, self.codes = stage, codes

    def batch(self, step: int) -> list[dict[str, Any]]:
        items = []
        for codes in self.codes:
            cut = [
                stream.take(codes[stream.spec.name])[:, step % 4 * round(stream.spec.frame_rate * 0.4) :][
                    :, : stream.frames(self.stage.crop)
                ]
                for stream in self.stage.streams
            ]
            items.append({"given": cut[:-1], "predicted": cut[-1], "ends": False})
        return items


@pytest.fixture
def shop(tmp_path: Path, store: AudioStore, tiny_model: AudioLM) -> Shop:
    return Shop(tmp_path, store, tiny_model)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    clips = [Recording(path, path.stem, path.stem, "train", 4.0) for path in sorted(EXAMPLES.glob("prompt-*male.flac"))]
    return AudioStore.prepare(tmp_path_factory.mktemp("store"), clips)


def taught(shop: Shop, name: str, steps: int, deaf: bool = False) -> LanguageModel:
    """A language model that knows the crops; deaf: that never got its given tokens in their place."""
    torch.manual_seed(0)
    stage = shop.stages[name]
    network = language_model(stage, TRAINING.network)
    optimizer, crops = optimizer_of(network, TRAINING), shop.token_crops(name, "train")
    batches = [(gates.Late(crops) if deaf and number % 2 else crops).batch(number) for number in range(4)]
    for step in range(steps):
        items = batches[step % 4]
        if deaf:
            items = [{**item, "given": [codes[:, torch.randperm(codes.shape[1])] for codes in item["given"]]} for item in items]
        nats, counts = network(*collate_items(stage, items, step))
        optimizer.zero_grad()
        (nats.sum() / counts.sum()).backward()
        optimizer.step()
    return network.eval()


def figure(name: str, shop: Shop, step: str, config: GatesConfig = ALL) -> float:
    gate = next(gate for gate in GATES if gate.name == name)
    value = gate.measure(shop, step, config).value
    assert value is not None
    return value


def test_a_codec_that_works_and_broken_ones(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figure("reconstructs", shop, "codec") > 0.2  # of six levels of 32 codes, never trained further than their start
    decode = shop.model.codec.decode
    monkeypatch.setattr(shop, "codec", lambda: SimpleNamespace(**names(shop), decode=lambda codes: 0 * decode(codes)))
    assert figure("reconstructs", shop, "codec") < 0
    noise = torch.Generator().manual_seed(0)
    broken = SimpleNamespace(**names(shop), decode=lambda codes: 0.1 * torch.randn(decode(codes).shape, generator=noise))
    monkeypatch.setattr(shop, "codec", lambda: broken)
    assert figure("reconstructs", shop, "codec") < 0.1


def names(shop: Shop) -> dict[str, Any]:
    return {"encode": shop.model.codec.encode, "sample_rate": 16_000}


def test_units_of_noise_and_units_that_never_change_fail(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = figure("beats_mfcc", shop, "units")
    assert honest > 0.5  # of an encoder that was never trained
    sounds, draw = [shop.store.read(number)[None, None] for number in (0, 1)], torch.Generator().manual_seed(0)
    frames = lambda audio: -(-audio.shape[-1] // 640)  # noqa: E731
    assert surviving(lambda audio: torch.zeros(frames(audio), dtype=torch.int64), sounds, 16) == 0
    monkeypatch.setattr(
        *(shop, "semantic"),
        lambda: SimpleNamespace(
            spec=shop.model.semantic.spec,
            hop=shop.model.semantic.hop,
            encode=lambda audio: torch.randint(16, (1, 1, frames(audio)), generator=draw),
        ),
    )
    assert figure("beats_mfcc", shop, "units") < 0.1
    assert honest > 5 * figure("beats_mfcc", shop, "units")


def test_phones_judge_where_there_are_transcripts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["so i shall not tell you the rest until next saturday", "and there was a fumbling at the handle but the bolt"]
    entries = [replace(entry, columns={"transcript": text}) for entry, text in zip(shop.store.entries, texts, strict=True)]
    known = copy.copy(shop.store)
    known.entries = entries
    monkeypatch.setattr(shop, "store", known)
    found = gates.against_mfcc(shop, "units", ALL)
    assert found.note.startswith("PNMI")
    assert found.value is not None


def test_language_models_learn_or_fail(shop: Shop) -> None:
    shop.networks["coarse"] = taught(shop, "coarse", 0)
    assert figure("beats_unigram", shop, "coarse") < 0.02
    assert abs(figure("hears", shop, "coarse")) < 0.005
    shop.networks["coarse"] = taught(shop, "coarse", 80)
    assert figure("beats_unigram", shop, "coarse") > 0.2
    hears = figure("hears", shop, "coarse")
    shop.networks["coarse"] = taught(shop, "coarse", 80, deaf=True)
    assert figure("beats_unigram", shop, "coarse") > 0.1  # it learns, but
    assert figure("hears", shop, "coarse") < 0.3 * hears


def test_one_batch_is_learned_by_heart_or_not(shop: Shop) -> None:
    shop.networks["coarse"] = taught(shop, "coarse", 0)
    assert figure("overfits", shop, "coarse") > 0.3
    shop.training = TRAINING.model_copy(update={"lr": 1e-9})
    assert figure("overfits", shop, "coarse") < 0.01


def test_a_failed_gate_is_one_line_and_stays_failed(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.done("codec")
    state = torch.get_rng_state()
    with pytest.raises(GateFailed) as caught:
        check("codec", shop, GatesConfig(reconstructs=0.99, split="train"))
    assert torch.equal(state, torch.get_rng_state())
    line = str(caught.value)
    assert "\n" not in line
    for said in ("codec: gate reconstructs failed", "at least 0.99", "codec.steps", "--ignore-gates"):
        assert said in line
    assert "reconstructs failed" in capsys.readouterr().err
    with pytest.raises(GateFailed):
        check("codec", shop, GatesConfig(reconstructs=0.99, split="train"))
    kept = verdicts(shop.out, ["codec", "units"])
    assert kept["codec"]["reconstructs"]["verdict"] == "failed"
    check("codec", shop, GatesConfig(reconstructs=0.99, split="train"), ignore=True)
    assert verdicts(shop.out, ["codec"])["codec"]["reconstructs"]["verdict"] == "ignored"


def test_what_was_measured_on_is_said(shop: Shop) -> None:
    """Where nothing is held out, training recordings are measured; where there are only tokens, neither codec nor units."""
    for split, said in (("valid", True), ("train", False)):
        shop.done("codec", split)
        check("codec", shop, ALL.model_copy(update={"split": split, "reconstructs": -9.0}))
        note = json.loads((shop.out / "codec" / "gates.json").read_text())["gates"]["reconstructs"]["note"]
        assert ("on training recordings, as none are valid" in note) == said
    shop.tokenized = True
    shop.done("codec", "tokens")
    check("codec", shop, ALL.model_copy(update={"reconstructs": 9.0}))
    assert json.loads((shop.out / "codec" / "gates.json").read_text())["gates"]["reconstructs"]["verdict"] == "not measured"


def test_measured_once_judged_each_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(_: Any, step: str, config: GatesConfig) -> gates.Figure:
        measured.append(step)
        return gates.Figure({"codec": 0.5, "units": None}[step], "why")

    monkeypatch.setattr(
        gates, "GATES", [replace(gate, measure=measure) for gate in GATES if gate.name in ("reconstructs", "beats_mfcc")]
    )
    shop.done("codec")
    check("codec", shop, GatesConfig(reconstructs=0.4))
    before = (shop.out / "codec" / "gates.json").stat().st_mtime_ns
    check("codec", shop, GatesConfig(reconstructs=0.4))
    assert (shop.out / "codec" / "gates.json").stat().st_mtime_ns == before
    with pytest.raises(GateFailed):
        check("codec", shop, GatesConfig(reconstructs=0.6))
    assert measured == ["codec"]
    shop.done("codec", "another result")
    check("codec", shop, GatesConfig(reconstructs=0.4))
    check("codec", shop, GatesConfig(reconstructs=0.4, recordings=3))
    assert measured == ["codec"] * 3
    shop.done("units")
    check("units", shop, GatesConfig())
    assert verdicts(shop.out, ["units"])["units"]["beats_mfcc"]["verdict"] == "not measured"
    check("tokens", shop, GatesConfig())
    check("units", shop, GatesConfig(beats_mfcc="off"))
    assert not (shop.out / "tokens").exists()


def test_no_stage_is_without_gates() -> None:
    assert set(LANGUAGE_MODELS) == set(get_args(StageName))


def test_not_a_number_is_a_failure(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "GATES", [replace(GATES[0], measure=lambda *_: gates.Figure(float("nan"), "diverged"))])
    shop.done("codec")
    with pytest.raises(GateFailed, match="nan"):
        check("codec", shop, GatesConfig())


def test_the_chain_stops_at_a_gate(tmp_path: Path) -> None:
    did: list[str] = []

    def refuse(step: str) -> None:
        if step == "a":
            raise GateFailed("a: no")

    chain = [Step(name, (), {}, lambda _, name=name: did.append(name) or name) for name in "ab"]
    with pytest.raises(GateFailed):
        Chain(tmp_path, chain, Fabric(accelerator="cpu", devices=1)).run(None, then=refuse)
    with pytest.raises(GateFailed):  # done already, and still not good enough
        Chain(tmp_path, chain, Fabric(accelerator="cpu", devices=1)).run(None, then=refuse)
    assert did == ["a"]


def test_the_card_tells_what_was_ignored() -> None:
    gate = {"figure": -0.004, "threshold": 0.01, "verdict": "ignored", "note": "7.153 bits"}
    unknown = {"figure": None, "threshold": 1.0, "verdict": "not measured", "note": "no recordings"}
    about = {
        **{"name": "x", "licence": "none", "hours": {"train": 1.0}, "recordings": 2, "training_seconds": {}, "versions": {}},
        "gates": {"coarse": {"hears": gate}, "units": {"beats_mfcc": unknown}},
    }
    text = card(about, ["semantic"])
    assert "| coarse | hears | -0.004 | 0.01 | ignored | 7.153 bits |" in text
    assert "| units | beats_mfcc | - | 1 | not measured | no recordings |" in text
    assert "nothing was measured" in card(about | {"gates": {}}, ["semantic"])
