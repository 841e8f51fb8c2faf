"""A pretend accelerator for machines without one: `python tests/accelerator.py` trains every network and generates there.

Its tensors compute on the CPU but belong to another device: as on a GPU, an operation on tensors of both devices is an error.
A program of its own, because torch's device names, and what is replaced below, hold for the whole process.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

backend_registration._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put_")  # GPUs take indices that are on the CPU


class There(Tensor):
    """A tensor on the accelerator; `here` is where its numbers really are."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        form = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(cls, here.shape, **form)  # pyright: ignore[reportAttributeAccessIssue]
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:  # checkpoints are read on the CPU
        return self.here.detach().__reduce_ex__(protocol)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("cannot convert a tensor on the accelerator to numpy")


class Accelerator(TorchDispatchMode):
    """Within this context, `DEVICE` exists."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, whose result is where the operation's arguments say."""
    name, tensors = function._schema.name, [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, There)]
    here = [each for each in tensors if not isinstance(each, There) and each.ndim]  # GPUs take single numbers from the CPU
    if there and here and name not in COPIES + INDEXED:
        raise RuntimeError(f"{name}: tensors on two devices")
    result_there = bool(there)
    if kwargs.get("device") is not None:
        result_there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*tree_map(_here, args), **tree_map(_here, kwargs))

    def placed(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        same = next((one for one in there if one.here is each), None)  # an operation in place
        return same if same is not None else There(each) if result_there else each

    return tree_map(placed, result)


def _here(each: Any) -> Any:
    return each.here if isinstance(each, There) else each


# What torch does for such a device without asking us, or not at all.


def stft(
    x: Tensor, size: int, hop: int, win: int | None = None, window: Any = None, center: bool = True, **options: Any
) -> Tensor:
    window = nn.functional.pad(window, ((size - len(window)) // 2, -(-(size - len(window)) // 2)))
    x = nn.functional.pad(x, (size // 2, size // 2)) if center else x
    spectrum = torch.fft.rfft(x.unfold(-1, size, hop) * window).transpose(-1, -2)
    return spectrum / size**0.5 if options.get("normalized") else spectrum


def tensor(values: Any, device: Any = None, **options: Any) -> Tensor:
    made = real_tensor(values, **options)
    return made if device is None else made.to(device)


real_tensor, real_adamw = torch.tensor, torch.optim.AdamW
torch.tensor, torch.stft = tensor, stft  # pyright: ignore
torch.inference_mode = lambda mode=True: torch.no_grad()  # pyright: ignore
torch.autocast = lambda *_, **__: contextlib.nullcontext()  # pyright: ignore
torch.is_autocast_enabled = lambda *_: False
torch.optim.AdamW = lambda *args, **kwargs: real_adamw(*args, **{**kwargs, "fused": False, "foreach": False})  # pyright: ignore

import test_train_codec as of_codec  # noqa: E402
import test_train_encoder as of_encoder  # noqa: E402
import test_train_lm as of_lm  # noqa: E402
from conftest import tiny_model  # noqa: E402

from audiolm import stages  # noqa: E402
from audiolm.audio import Waveform  # noqa: E402
from audiolm.conformer import Conformer  # noqa: E402
from audiolm.training import run as running  # noqa: E402
from audiolm.training.run import Run  # noqa: E402
from audiolm.training.train_codec import train_codec  # noqa: E402
from audiolm.training.train_encoder import UnitsConfig, choose_layer, fit_units, train_encoder  # noqa: E402
from audiolm.training.train_lm import train_lm  # noqa: E402

FABRIC: Any = SimpleNamespace(
    device=DEVICE,
    world_size=1,
    global_rank=0,
    strategy=None,
    setup_module=lambda module: module.to(DEVICE),
    setup_optimizers=lambda optimizer: optimizer,
    to_device=lambda batch: batch.to(DEVICE) if isinstance(batch, Tensor) else type(batch)(*(each.to(DEVICE) for each in batch)),
    no_backward_sync=lambda module, enabled: contextlib.nullcontext(),
    autocast=contextlib.nullcontext,
    backward=lambda loss: loss.backward(),
    clip_gradients=lambda model, _, max_norm, **__: nn.utils.clip_grad_norm_(model.parameters(), max_norm),
    barrier=lambda: None,
)


def no_picture(*_: Any, **__: Any) -> Any:
    raise ImportError("pictures take longer than all training here")


running.picture = no_picture


class Noise:
    """Crops of half a second."""

    def batch(self, step: int) -> Tensor:
        return 0.1 * torch.randn(4, 1, 8_000, generator=torch.Generator().manual_seed(step))


def with_run(config: Any, train: Callable[[Any, Run], Any]) -> Any:
    """Two steps of a training, with validation and samples."""
    config = config.model_copy(update={"steps": 2, "log_every": 2, "valid_every": 2, "save_every": 2})
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder), config, tracker="none", listen_every=2) as run:
        return train(config, run)


def language_model(stage: stages.Stage, **network: Any) -> None:
    config = of_lm.config_of(ema=0.9)
    config = config.model_copy(update={"network": config.network.model_copy(update=network)})
    batches = of_lm.Walks(stage)
    with_run(config, lambda config, run: train_lm(stage, config, batches, run, FABRIC, batches))


def codec(**network: Any) -> None:
    config = of_codec.CONFIG.model_copy(
        update={"network": of_codec.NETWORK.model_copy(update=network), "adversarial_from": 0.0}  # with discriminators
    )
    with_run(config, lambda config, run: train_codec(config, Noise(), run, FABRIC, Noise()))


def encoder(kind: str, previous: Conformer | None = None, objective: dict[str, Any] | None = None) -> Conformer:
    config = of_encoder.config(kind=kind, objective=objective)
    return with_run(config, lambda config, run: train_encoder(config, Noise(), run, FABRIC, Noise(), previous))


def main() -> None:
    sound, config = Waveform(Noise().batch(0).view(1, -1), 16_000), UnitsConfig(layer=1, units=4, batches=2, epochs=1)
    voice = Waveform(sound.samples.repeat(1, 2), 16_000)
    model = tiny_model.__wrapped__(voice, voice)  # pyright: ignore[reportAttributeAccessIssue]
    with Accelerator():
        language_model(stages.coarse(of_lm.S, of_lm.A, 2))
        language_model(stages.fine(of_lm.A, 2), positions="t5", kv_heads=1)
        language_model(stages.parallel(of_lm.S, of_lm.A))
        for network in ({"body": "waveform", "channels": 4}, {"body": "spectral"}, {"body": "vocoder", "phases": "continued"}):
            codec(**network)
        encoder("w2v_bert")
        trained = encoder("clusters")
        second = encoder("clusters", trained, {"layer": 1})
        choose_layer(second, config, Noise(), lambda encode: float(encode(sound.samples[None].to(DEVICE)).float().mean()))
        fit_units(second, config, Noise())
        model.to(DEVICE).generate(sound, seconds=0.1)
        assert sum(block.seconds for block in model.stream(sound, seconds=0.1)) > sound.seconds
        model.reconstruct(sound)


if __name__ == "__main__":
    main()
