"""Residual vector quantisation, SoundStream's bottleneck (Zeghidour et al. 2021, section III-C and algorithm 1).

Level q quantises the residual of the levels before it, so any prefix of the levels is a coarser description.
Codebooks are learned without gradients: k-means on the first frames, then moving averages of the frames assigned to
each code; codes that are no longer used are moved to random frames. `groups` > 1 splits the width and runs one cascade
in each part: the group-residual form of HiFi-Codec (Yang et al. 2023).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """One codebook of `size` vectors of `width`, with the moving averages that train it."""

    def __init__(self, size: int, width: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        self.codes = nn.Buffer(torch.randn(size, width) * 0.02)
        self.count = nn.Buffer(torch.ones(size))
        self.total = nn.Buffer(self.codes.clone())

    def nearest(self, frames: Tensor) -> Tensor:
        """Ids (N,) of the codes nearest to frames (N, D)."""
        # |x - c|^2 without the |x|^2 that all codes share; float32 under autocast too: ids must not depend on the precision.
        with torch.autocast(frames.device.type, enabled=False):
            distance = torch.addmm(self.codes.square().sum(1), frames.float(), self.codes.t(), beta=0.5, alpha=-1.0)
        return distance.argmin(1)

    @torch.no_grad()
    def start(self, frames: Tensor, generator: torch.Generator | None = None, iterations: int = 10) -> None:
        """Initialise by k-means: Lloyd's iterations over frames (N, D), from random frames."""
        self.codes.copy_(_random_frames(frames, len(self.codes), generator))
        for _ in range(iterations):
            sums, counts = self._sums(frames, self.nearest(frames))
            used = counts > 0
            self.codes[used] = sums[used] / counts[used, None]
        # The averages start as if every batch so far had been these frames.
        _, counts = self._sums(frames, self.nearest(frames))
        self.count.copy_(counts.clamp_min(self.revive_below))
        self.total.copy_(self.codes * self.count[:, None])

    @torch.no_grad()
    def learn(self, frames: Tensor, ids: Tensor) -> None:
        """One moving-average step, and revival of dead codes."""
        sums, counts = self._sums(frames, ids)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.count.lerp_(counts, 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        self.codes.copy_(self.total / self.count.clamp_min(1e-5)[:, None])
        dead = self.count < self.revive_below
        if dead.any():
            fresh = _random_frames(frames if len(frames) else self.codes, int(dead.sum()))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(fresh, 0)
            self.codes[dead] = fresh
            self.count[dead] = 2 * self.revive_below
            self.total[dead] = fresh * (2 * self.revive_below)

    def _sums(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.zeros_like(self.codes).index_add_(0, ids, frames.to(self.codes.dtype))
        return sums, torch.bincount(ids, minlength=len(self.codes)).to(self.count.dtype)


class ResidualQuantizer(nn.Module):
    """`groups` cascades of codebooks; level q of the codes is level q // groups of group q % groups.

    Shapes: latents (B, D, F), codes (B, Q, F) int64. A code is revived if the moving average of its frames per batch is below
    `revive_below`.
    """

    def __init__(
        self, width: int, num_codebooks: int, codebook_size: int, groups: int = 1, decay: float = 0.99, revive_below: float = 0.05
    ) -> None:
        super().__init__()
        if width % groups or num_codebooks % groups:
            raise ValueError(f"{groups} groups must divide the width {width} and the {num_codebooks} codebooks")
        self.groups = groups
        codebooks = (Codebook(codebook_size, width // groups, decay, revive_below) for _ in range(num_codebooks))
        self.codebooks = cast("Sequence[Codebook]", nn.ModuleList(codebooks))

    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Codes (B, q, F) of latents (B, D, F), with the first `num_codebooks` levels (default: all)."""
        return self._cascade(latents, num_codebooks)[0]

    def decode(self, codes: Tensor) -> Tensor:
        """Latents (B, D, F) of codes (B, q, F), which may be any prefix of the levels."""
        batch, levels, frames = codes.shape
        table = self.codebooks[0].codes
        parts = [table.new_zeros(batch, frames, table.shape[1]) for _ in range(self.groups)]
        for level in range(levels):
            group = level % self.groups
            parts[group] = parts[group] + F.embedding(codes[:, level], self.codebooks[level].codes)
        return torch.cat(parts, -1).transpose(1, 2)

    def vectors(self) -> list[Tensor]:
        """For each level, the vectors (N, D) that its codes add to a latent; zero outside the level's group."""
        found = []
        for level, codebook in enumerate(self.codebooks):
            width, group = codebook.codes.shape[1], level % self.groups
            found.append(F.pad(codebook.codes, (group * width, (self.groups - 1 - group) * width)))
        return found

    @torch.no_grad()
    def start(
        self, latents: Tensor, generator: torch.Generator | None = None, show: Callable[[int], object] = lambda done: None
    ) -> None:
        """Initialise all levels by k-means on latents (B, D, F), each on the residual before it; `show(done)` after each."""
        residuals = list(_frames(latents).chunk(self.groups, -1))
        for level, codebook in enumerate(self.codebooks):
            residual = residuals[level % self.groups]
            codebook.start(residual, generator)
            residuals[level % self.groups] = residual - codebook.codes[codebook.nearest(residual)]
            show(level + 1)

    def forward(self, latents: Tensor, keep: Tensor | None = None, learn: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: quantised latents (B, D, F) with straight-through gradients, codes (B, Q, F), commitment loss.

        `keep` (B,) is the number of levels each example uses (quantizer dropout); `learn`: update the codebooks.
        """
        codes, quantised, commitment = self._cascade(latents, None, keep, learn)
        return latents + (quantised - latents).detach(), codes, commitment

    def _cascade(
        self, latents: Tensor, num_codebooks: int | None, keep: Tensor | None = None, learn: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, frames = latents.shape
        flat = _frames(latents)
        residuals = list(flat.detach().chunk(self.groups, -1))
        codes: list[Tensor] = []
        for level, codebook in enumerate(self.codebooks[:num_codebooks]):
            group = level % self.groups
            ids = codebook.nearest(residuals[group])
            step = codebook.codes[ids]
            if keep is None:
                if learn:
                    codebook.learn(residuals[group], ids)
                residuals[group] = residuals[group] - step
            else:
                used = (keep > level).repeat_interleave(frames)
                if learn:  # on every process, even without frames: `learn` waits for the others
                    codebook.learn(residuals[group][used], ids[used])
                residuals[group] = torch.where(used[:, None], residuals[group] - step, residuals[group])
            codes.append(ids.view(batch, frames))
        quantised = flat.detach() - torch.cat(residuals, -1)
        commitment = F.mse_loss(flat, quantised)
        return torch.stack(codes, 1), quantised.view(batch, frames, -1).transpose(1, 2), commitment


def residual_energy(quantizer: Any, latents: Tensor) -> list[float]:
    """Residual energy of latents (B, D, F) after each level, as a share of their variance: a health check of the cascade."""
    frames = _frames(latents)
    whole = (frames - frames.mean(0)).square().sum().clamp_min(1e-12)
    codes = quantizer.encode(latents)
    return [
        float((frames - _frames(quantizer.decode(codes[:, : level + 1]))).square().sum() / whole)
        for level in range(codes.shape[1])
    ]


def _frames(latents: Tensor) -> Tensor:
    return latents.transpose(1, 2).reshape(-1, latents.shape[1]).float()


def _random_frames(frames: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    pick = torch.randint(len(frames), (count,), generator=generator)
    return frames[pick.to(frames.device)].float()
