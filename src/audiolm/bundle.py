"""A model on disk ("bundle"): a folder with config.json, one safetensors file per part, and README.md, the model card.

config.json alone determines the architecture. Nothing is unpickled, and the network is used only for a hub id.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiolm import detector
from audiolm.adapters import dac
from audiolm.adapters.dac import DacConfig
from audiolm.adapters.hubert import Hubert, HubertConfig
from audiolm.adapters.taken import LibraryMissing
from audiolm.asking import Sampling
from audiolm.audio import READABLE
from audiolm.codec import Codec, CodecConfig
from audiolm.config import parse_config
from audiolm.conformer import Conformer, ConformerConfig
from audiolm.detector import Detector
from audiolm.errors import InputError
from audiolm.files import file_hash, load_tensors, save_tensors, whole_file
from audiolm.kernels import Precision
from audiolm.kmeans import KMeans
from audiolm.model import AudioLM
from audiolm.parallel import ParallelModel
from audiolm.stages import Stage
from audiolm.tokenizers import Encoder, SemanticTokenizer
from audiolm.transformer import LanguageModel, TransformerConfig

FORMAT = 1  # version of config.json; newer ones are refused
PRETRAINED = Path(__file__).parent / "pretrained"
TRAINING_ONLY = (".count", ".total")  # a codebook's moving averages, needed only for training; bundles omit them
SCALE = ".scale"  # suffix of an 8-bit matrix's scales, one per row


def save(model: AudioLM, folder: str | Path, card: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a bundle with weights rounded to `dtype`. config.json is written last, so a folder that has one is complete.

    torch.int8: 8-bit matrices with one scale per row; everything else is bfloat16, including the weights that determine
    tokens (see `deciding`). A recipe for such a bundle tokenizes with the encoder as saved.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    for name, part in parts(model).items():
        save_tensors(folder / f"{name}.safetensors", packed(part, dtype, exact=deciding(name, part)))
    config = {
        "format": FORMAT,
        "about": model.about,
        "codec": model.codec.config.plain(),
        "semantic": {
            "encoder": model.semantic.encoder.config.plain(),
            "layer": model.semantic.layer,
            "units": model.semantic.spec.codebook_size,
        },
        "stages": {
            name: {
                "stage": stage.to_dict(),
                "network": network.transformer.config.plain(),
                "sampling": model.sampling[name].plain(),
            }
            for name, (stage, network) in model.stages.items()
        },
        "weights": {name: file_hash(folder / f"{name}.safetensors") for name in parts(model)},
    }
    for name, text in (("README.md", card), ("config.json", json.dumps(config, indent=2) + "\n")):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def load(model: str | Path = "speech", device: str = "cpu", precision: Precision | Literal["auto"] | None = "auto") -> AudioLM:
    """Load a packaged model by name, a bundle's folder, or a hub id "owner/name" (the only case that uses the network).

    precision: of the stages' weights on CPU; see audiolm.kernels. None: float32, as trained.
    """
    loaded = load_folder(folder_of(model), device)
    loaded.precision = precision
    return loaded


def folder_of(model: str | Path) -> Path:
    """The folder of a model named as in `load`."""
    if str(model) in packaged():
        return PRETRAINED / str(model)
    if Path(model).exists():
        return Path(model)
    if is_hub_id(str(model)):
        return from_hub(str(model))
    raise InputError(f"{model}: no such model; name one of {_known()}, a bundle's folder, or a hub id owner/name")


def is_hub_id(name: str) -> bool:
    """Whether it can be one. What starts with an existing folder, or ends like a sound file, is a mistyped path instead."""
    mistyped = Path(Path(name).parts[0] if name else "").exists() or Path(name).suffix.lower() in READABLE
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not mistyped


def load_folder(folder: Path, device: str = "cpu") -> AudioLM:
    """Read a bundle. InputError if the folder is not a bundle, is damaged, or has a newer format."""
    model = built(folder)
    for name, part in parts(model).items():
        unpack(part, folder / f"{name}.safetensors")
    return model.to(device)


def built(folder: Path) -> AudioLM:
    """Build a bundle's networks from config.json, without their weights. InputError if it does not describe them."""
    config = read_config(folder)
    try:
        with _Unfilled():
            codec = codec_of(codec_config(config["codec"]))
            encoder = encoder_of(encoder_config(config["semantic"]["encoder"]))
            units, layer = KMeans(config["semantic"]["units"], encoder.config.features), config["semantic"]["layer"]
            if layer not in range(encoder.config.layers + 1):
                raise ValueError(f"semantic.layer {layer} is not in 0 to {encoder.config.layers}")
            stages: dict[str, tuple[Stage, LanguageModel]] = {}
            sampling: dict[str, Sampling] = {}
            for name, values in config["stages"].items():
                stage = Stage.from_dict(values["stage"])
                stages[name] = stage, language_model(stage, parse_config(TransformerConfig, values["network"], f"stages.{name}"))
                sampling[name] = parse_config(Sampling, values["sampling"], f"stages.{name}")
            semantic = SemanticTokenizer(encoder, units, layer)
    except LibraryMissing:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / 'config.json'}: not a bundle's configuration ({reason}); copy it again") from error
    return AudioLM(semantic, codec, stages, sampling, config["about"])


def codec_config(values: Mapping[str, Any]) -> CodecConfig | DacConfig:
    """A codec's configuration, as config.json has it: of an adapter if it names one."""
    return parse_config(DacConfig if "adapter" in values else CodecConfig, values, "codec")


def encoder_config(values: Mapping[str, Any]) -> ConformerConfig | HubertConfig:
    """A semantic encoder's configuration, as config.json has it: of an adapter if it names one."""
    return parse_config(HubertConfig if "adapter" in values else ConformerConfig, values, "semantic.encoder")


def codec_of(config: CodecConfig | DacConfig) -> Codec:
    """The codec, without its weights."""
    return dac.codec(config) if isinstance(config, DacConfig) else Codec(config)


def encoder_of(config: ConformerConfig | HubertConfig) -> Encoder:
    """The semantic encoder, without its weights."""
    return Hubert(config) if isinstance(config, HubertConfig) else Conformer(config)


class _Unfilled(TorchFunctionMode):
    """Skip weight initialisation: it took half of the loading time, and all weights are then replaced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


def detector_of(folder: Path) -> Detector | None:
    """The bundle's detector of its own voice; None if it has none."""
    if not (folder / detector.FILE).is_file():
        return None
    found = detector.load(folder / detector.FILE)
    found.stale = found.about.get("weights") != detector.identity(read_config(folder))
    return found


def describe(model: AudioLM) -> dict[str, Any]:
    """A summary of a model, JSON-ready."""
    semantic, acoustic = model.semantic.spec, model.codec.spec
    return {
        **{name: each for name, each in model.about.items() if name != "letter_seconds"},  # a line for each letter
        "sample_rate": model.sample_rate,
        "watermark": f"{model.payload:04x}",
        "semantic": f"{semantic.codebook_size} units at {semantic.frame_rate:g} Hz",
        "acoustic": f"{acoustic.num_codebooks} x {acoustic.codebook_size} codes at {acoustic.frame_rate:g} Hz, "
        f"{acoustic.bitrate / 1000:g} kbit/s",
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts(model).items()},
        "sampling": {name: sampling.plain() for name, sampling in model.sampling.items()},
    }


def parts(model: AudioLM) -> dict[str, nn.Module]:
    """A bundle's networks by file name: "codec", "encoder" (with its units), and one per stage."""
    return {"codec": model.codec, "encoder": model.semantic, **{name: network for name, (_, network) in model.stages.items()}}


def deciding(name: str, part: nn.Module) -> Collection[str]:
    """Names of weights kept out of int8 because it would change the tokens: centroids, codebooks, the codec's encoder.

    The semantic encoder's blocks are not among them: in int8 they change only 0.4 % of speech units (docs/training-log.md).
    """
    if isinstance(part, Codec):
        return part.coder()
    return [each for each in part.state_dict() if not each.startswith("encoder.blocks.")] if name in ("encoder", "units") else ()


def packed(part: nn.Module, dtype: torch.dtype, exact: Collection[str] = ()) -> dict[str, Tensor]:
    """A network's weights as saved in a bundle; for int8, matrices named in `exact` are bfloat16."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in part.state_dict().items():
        if name.endswith(TRAINING_ONLY):
            continue
        if dtype is torch.int8 and name not in exact and tensor.is_floating_point() and tensor.ndim > 1:
            scale = tensor.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            tensors[name], tensors[name + SCALE] = (tensor / scale).round().to(torch.int8), scale
        elif tensor.is_floating_point():
            tensors[name] = tensor.to(torch.bfloat16 if dtype is torch.int8 else dtype)
        else:
            tensors[name] = tensor
    return tensors


def unpack(part: nn.Module, path: Path) -> None:
    """Load a network's weights from a file. InputError if they do not fit."""
    tensors, _ = load_tensors(path)
    scales = {name: tensors.pop(name + SCALE) for name in list(tensors) if name + SCALE in tensors}
    own = part.state_dict()
    wrong = [name for name in tensors if name not in own or own[name].shape != tensors[name].shape]
    wrong += [name for name in own if name not in tensors and not name.endswith(TRAINING_ONLY)]
    if wrong:
        raise InputError(f"{path}: weights do not fit config.json ({wrong[0]}); copy the bundle again")
    full = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    full |= {name: full[name] * scale for name, scale in scales.items()}
    part.load_state_dict(full, strict=False, assign=True)  # replaces the network's tensors, which saves a copy


def language_model(stage: Stage, config: TransformerConfig) -> LanguageModel:
    """The network for a stage."""
    sizes = (config, stage.vocabulary, stage.predict.levels, stage.predict.spec.codebook_size)
    if stage.parallel:  # positions are frames, hence already in time
        return ParallelModel(*sizes)
    return LanguageModel(*sizes, places=stage.places if config.positions == "time" else None)


def read_config(folder: Path) -> dict[str, Any]:
    """A bundle's config.json. InputError if it is missing or this version cannot read it."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: not a model (config.json is missing); name a bundle's folder, or one of {_known()}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the bundle again") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise InputError(f"{path}: not a bundle's configuration; copy the bundle again")
    if config["format"] > FORMAT:
        raise InputError(f"{path}: format {config['format']} is newer than this audiolm can read ({FORMAT}); update audiolm")
    for name in ("about", "codec", "semantic", "stages", "weights"):
        if not isinstance(config.get(name), dict):
            raise InputError(f"{path}: not a bundle's configuration ({name!r} is missing); copy the bundle again")
    return config


def packaged() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def _known() -> str:
    return ", ".join(packaged()) or "(none is packaged)"


def from_hub(name: str) -> Path:
    """The folder of what a hub id names, fetched unless it has been before: configurations, weights as safetensors, cards."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: no such folder, and the hub could not provide it ({reason}); check the name") from error
