"""A model on disk: a folder with config.json, one safetensors per part, and README.md, the card.

config.json alone decides the architecture. Nothing is unpickled, and the network is touched only for a hub id.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiolm import detector
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
from audiolm.tokenizers import SemanticTokenizer
from audiolm.transformer import LanguageModel, TransformerConfig

FORMAT = 1  # of config.json; a newer one is refused
PRETRAINED = Path(__file__).parent / "pretrained"
TRAINING_ONLY = (".count", ".total")  # a codebook's moving averages train it; no bundle keeps them
SCALE = ".scale"  # of a matrix in 8 bits, one per row


def save(model: AudioLM, folder: str | Path, card: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a bundle, weights rounded to `dtype`. config.json comes last, so that a folder with one is whole.

    torch.int8: matrices in 8 bits a weight with a scale per row, everything else in bfloat16; and so is what a token is
    chosen among (see `deciding`). A recipe for such a bundle makes its tokens with the encoder as it is kept.
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
    """A packaged model by name, a bundle's folder, or (and only then is the network used) a hub id "owner/name".

    precision: in how many bits the stages work on processors; see audiolm.kernels. None: as they were trained, in 32.
    """
    loaded = load_folder(folder_of(model), device)
    loaded.precision = precision
    return loaded


def folder_of(model: str | Path) -> Path:
    """Where a model lies that is named as in `load`."""
    if str(model) in packaged():
        return PRETRAINED / str(model)
    if Path(model).exists():
        return Path(model)
    here = Path(model).parts[0] if Path(model).parts else ""
    # What begins with a folder that is here, or ends as a sound file does, is a mistyped path and no hub's affair.
    mistyped = Path(here).exists() or Path(model).suffix.lower() in READABLE
    if str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")) and not mistyped:
        return _from_hub(str(model))
    raise InputError(f"{model}: no such model; name one of {_known()}, a folder, or a hub id owner/name")


def load_folder(folder: Path, device: str = "cpu") -> AudioLM:
    """Read a bundle. InputError where it is none, damaged, or of a newer format."""
    model = built(folder)
    for name, part in parts(model).items():
        unpack(part, folder / f"{name}.safetensors")
    return model.to(device)


def built(folder: Path) -> AudioLM:
    """A bundle's networks as config.json describes them, without their weights. InputError where it does not."""
    config = read_config(folder)
    try:
        with _Unfilled():
            codec = Codec(parse_config(CodecConfig, config["codec"], "codec"))
            encoder = Conformer(parse_config(ConformerConfig, config["semantic"]["encoder"], "semantic.encoder"))
            units, layer = KMeans(config["semantic"]["units"], encoder.config.features), config["semantic"]["layer"]
            if layer not in range(encoder.config.layers + 1):
                raise ValueError(f"semantic.layer {layer} is none of 0 to {encoder.config.layers}")
            stages: dict[str, tuple[Stage, LanguageModel]] = {}
            sampling: dict[str, Sampling] = {}
            for name, values in config["stages"].items():
                stage = Stage.from_dict(values["stage"])
                stages[name] = stage, language_model(stage, parse_config(TransformerConfig, values["network"], f"stages.{name}"))
                sampling[name] = parse_config(Sampling, values["sampling"], f"stages.{name}")
            semantic = SemanticTokenizer(encoder, units, layer)
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / 'config.json'}: not a bundle's configuration ({reason}); copy it again") from error
    return AudioLM(semantic, codec, stages, sampling, config["about"])


class _Unfilled(TorchFunctionMode):
    """New networks stay as memory came: drawing random weights took half of the time of loading, which replaces them all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


def detector_of(folder: Path) -> Detector | None:
    """The detector of a bundle's own voice; None where it has none."""
    if not (folder / detector.FILE).is_file():
        return None
    found = detector.load(folder / detector.FILE)
    found.stale = found.about.get("weights") != detector.identity(read_config(folder))
    return found


def describe(model: AudioLM) -> dict[str, Any]:
    """What a model is, JSON-ready."""
    semantic, acoustic = model.semantic.spec, model.codec.spec
    return {
        **model.about,
        "sample_rate": model.sample_rate,
        "watermark": f"{model.payload:04x}",
        "semantic": f"{semantic.codebook_size} units at {semantic.frame_rate:g} Hz",
        "acoustic": f"{acoustic.num_codebooks} x {acoustic.codebook_size} codes at {acoustic.frame_rate:g} Hz, "
        f"{acoustic.bitrate / 1000:g} kbit/s",
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts(model).items()},
        "sampling": {name: sampling.plain() for name, sampling in model.sampling.items()},
    }


def parts(model: AudioLM) -> dict[str, nn.Module]:
    """The networks of a bundle by the names of their files: "codec", "encoder" (with its units), and each stage's."""
    return {"codec": model.codec, "encoder": model.semantic, **{name: network for name, (_, network) in model.stages.items()}}


def deciding(name: str, part: nn.Module) -> Collection[str]:
    """Weights that 8 bits would make other tokens of: codebooks, the codec's way to them, and centroids.

    The semantic encoder's blocks are not among them: in 8 bits they change 0.4 % of speech's units (docs/training-log.md).
    """
    if isinstance(part, Codec):
        return part.coder()
    return [each for each in part.state_dict() if not each.startswith("encoder.blocks.")] if name in ("encoder", "units") else ()


def packed(part: nn.Module, dtype: torch.dtype, exact: Collection[str] = ()) -> dict[str, Tensor]:
    """A network's weights as a bundle keeps them; in 8 bits all but `exact`."""
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
    """Fill a network with the weights of a file; InputError where they are not its own."""
    tensors, _ = load_tensors(path)
    scales = {name: tensors.pop(name + SCALE) for name in list(tensors) if name + SCALE in tensors}
    own = part.state_dict()
    wrong = [name for name in tensors if name not in own or own[name].shape != tensors[name].shape]
    wrong += [name for name in own if name not in tensors and not name.endswith(TRAINING_ONLY)]
    if wrong:
        raise InputError(f"{path}: weights do not fit config.json ({wrong[0]}); copy the bundle again")
    full = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    full |= {name: full[name] * scale for name, scale in scales.items()}
    part.load_state_dict(full, strict=False, assign=True)  # in place of the network's own: nothing is copied twice


def language_model(stage: Stage, config: TransformerConfig) -> LanguageModel:
    """The network for a stage."""
    sizes = (config, stage.vocabulary, stage.predict.levels, stage.predict.spec.codebook_size)
    if stage.parallel:  # frames stand side by side, in time already
        return ParallelModel(*sizes)
    return LanguageModel(*sizes, places=stage.places if config.positions == "time" else None)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle; InputError where there is none that this version reads."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no model there (config.json is missing); name a bundle's folder, or one of {_known()}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the bundle again") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise InputError(f"{path}: not a bundle's configuration; copy the bundle again")
    if config["format"] > FORMAT:
        raise InputError(f"{path}: format {config['format']} is newer than this audiolm reads ({FORMAT}); update audiolm")
    for name in ("about", "codec", "semantic", "stages", "weights"):
        if not isinstance(config.get(name), dict):
            raise InputError(f"{path}: not a bundle's configuration (no table {name!r}); copy the bundle again")
    return config


def packaged() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def _known() -> str:
    return ", ".join(packaged()) or "(none is packaged)"


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: no such folder, and the hub did not give it ({reason}); check the name") from error
