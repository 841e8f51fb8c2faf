"""One engine for a CPU, a GPU, many GPUs or many nodes: Lightning Fabric, configured from torchrun's environment.

    fabric = engine("auto", "auto")                 # one process, or data parallel under torchrun
    fabric = engine("auto", "auto", shard=True)     # FSDP2: parameters, gradients and optimiser sharded over the processes

The training loops are written out: Fabric moves and casts tensors, reduces and clips gradients, and decides nothing.
"""

import os
from collections.abc import Iterator
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

# How long a process waits for the others, for instance while the first alone prepares or tokenises; torchrun notices deaths.
PATIENCE = timedelta(days=2)
# Not float16, for which Fabric cannot clip the gradients of a fused optimiser; and not weights in bfloat16: spectra need float32.
Precision = Literal["auto", "32-true", "bf16-mixed"]


def engine(device: str = "auto", precision: Precision = "32-true", shard: bool = False) -> Fabric:
    """A launched Fabric. `shard`: the networks it sets up are sharded if there is more than one process.

    precision "auto": bf16-mixed if the hardware multiplies bfloat16, else 32-true.
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
            # Without torchrun a single process trains, even if a cluster's own variables (SLURM, MPI) announce more.
            plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
        )
    except (RuntimeError, ValueError) as error:  # from Lightning, if there is no such accelerator
        raise InputError(f"device={device}: not on this machine ({str(error).splitlines()[0]}); run `audiolm doctor`") from error
    fabric.launch()
    return fabric


def best_precision(device: str) -> Literal["32-true", "bf16-mixed"]:
    """bf16-mixed if the hardware multiplies bfloat16, else 32-true."""
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = device == "cpu" or (device == "auto" and not torch.backends.mps.is_available())
        fast = on_cpu and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"


def sharded(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2, in place: each block of a module list is gathered when it runs, all other parameters with the whole module."""
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as data parallel does: all start with the first process's values
    for blocks in [each for each in module.modules() if isinstance(each, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def placed(module: nn.Module, fabric: Fabric) -> Any:
    """A module that is not trained (an average of weights), on the device and sharded as Fabric shards trained modules."""
    module = module.to(fabric.device)
    return sharded(module, fabric.strategy.device_mesh) if isinstance(fabric.strategy, ModelParallelStrategy) else module


def batches_of(step: int, accumulate: int, seed: int, fabric: Fabric, model: Any) -> Iterator[tuple[int, int]]:
    """The index of each batch that this process has in a step, and the seed of the batch's own randomness, which is set.

    Every process has its own batches, and a batch's randomness (dropout, augmentation) depends only on its index. Gradients are
    exchanged after the last.
    """
    for part in range(accumulate):
        index = (step * accumulate + part) * fabric.world_size + fabric.global_rank
        own = seed * 1_000_003 + index
        torch.manual_seed(own)
        with fabric.no_backward_sync(model, enabled=part + 1 < accumulate):
            yield index, own


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the moving average of the parameters; buffers are copied: a codec's codebooks are averages already."""
    for mean, newest in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(newest, 1 - decay)
    for kept, newest in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(newest)


def clip(fabric: Fabric, model: Any, optimizer: Any, most: float) -> Tensor:
    """Clip the gradients to a norm of `most`; returns the norm before clipping, () on every process."""
    norm: Any = fabric.clip_gradients(model, optimizer, max_norm=most, error_if_nonfinite=False)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
