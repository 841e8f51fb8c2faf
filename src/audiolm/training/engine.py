"""One engine for a processor, a GPU, many GPUs, many nodes: Lightning Fabric, as torchrun's environment says.

    fabric = engine("auto", "auto")                 # one process, or data parallel under torchrun
    fabric = engine("auto", "auto", shard=True)     # FSDP2: parameters, gradients and optimiser spread over the processes

The loops stay visible: Fabric moves, casts, reduces and clips, and decides nothing.
"""

import os
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from audiolm.errors import InputError

# How long a process waits for the others: while the first alone prepares or tokenises. One that has died, torchrun notices.
PATIENCE = timedelta(days=2)
Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"]


def engine(device: str = "auto", precision: Precision = "32-true", shard: bool = False) -> Fabric:
    """A launched Fabric. `shard`: networks that it sets up are sharded where there is more than one process.

    precision "auto": bf16-mixed where the hardware multiplies bfloat16, else 32-true.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    strategy: Any = "auto"
    if world > 1:
        strategy = ModelParallelStrategy(sharded, world, 1, timeout=PATIENCE) if shard else DDPStrategy(timeout=PATIENCE)
    try:
        fabric = Fabric(
            accelerator=device,
            strategy=strategy,
            devices=local,
            num_nodes=world // local,
            precision=best_precision(device) if precision == "auto" else precision,
            # Without torchrun one process trains, also where a cluster's own variables (SLURM, MPI) speak of more.
            plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
        )
    except (RuntimeError, ValueError) as error:  # of Lightning, where the accelerator is not there
        raise InputError(f"device={device}: not on this machine ({str(error).splitlines()[0]}); run `audiolm doctor`") from error
    fabric.launch()
    return fabric


def best_precision(device: str) -> Literal["32-true", "bf16-mixed"]:
    """bf16-mixed where the hardware has bfloat16 products."""
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = device == "cpu" or (device == "auto" and not torch.backends.mps.is_available())
        fast = on_cpu and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"


def sharded(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2, in place: each block of a list is gathered when its turn comes, what is left with the whole."""
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as data parallel does: all begin with the first one's
    for blocks in [each for each in module.modules() if isinstance(each, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def placed(module: nn.Module, fabric: Fabric) -> Any:
    """A module that is not trained (an average of weights), on the device and sharded as Fabric shards what it trains."""
    module = module.to(fabric.device)
    return sharded(module, fabric.strategy.device_mesh) if isinstance(fabric.strategy, ModelParallelStrategy) else module


def clip(fabric: Fabric, model: Any, optimizer: Any, most: float) -> Tensor:
    """Scale the gradients down to a norm of `most`; the norm that they had, () on every process."""
    norm: Any = fabric.clip_gradients(model, optimizer, max_norm=most, error_if_nonfinite=False)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
