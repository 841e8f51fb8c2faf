"""Features -> semantic tokens: normalise each dimension, then take the nearest centroid (AudioLM §III-B, §IV-B)."""

from typing import Any

import torch
from torch import Tensor, nn

from audiolm.errors import InputError


class KMeans(nn.Module):
    """Statistics and centroids together, because units mean nothing without both. D: the features' width; K: number of units.

    The authors report that unit variance per dimension clearly improves the tokens; the statistics are those of the
    frames that the centroids were fitted on.
    """

    def __init__(self, units: int, width: int):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(width))
        self.std = nn.Buffer(torch.ones(width))
        self.centroids = nn.Buffer(torch.zeros(units, width))  # of normalised features

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Units (...) int64 of features (..., D)."""
        with torch.autocast(features.device.type, enabled=False):
            normal = (features.float() - self.mean) / self.std
            # |x - c|^2 without |x|^2, which is the same for every centroid
            return (normal @ self.centroids.T - 0.5 * self.centroids.square().sum(-1)).argmax(-1)

    forward = assign

    @staticmethod
    def fit(frames: Tensor, units: int, epochs: int = 5, batch: int = 4096, seed: int = 0) -> "KMeans":
        """Fit `units` centroids to frames (N, D) by mini-batch k-means with k-means++ starts. Needs the `train` extra."""
        if len(frames) < units:
            raise InputError(f"k-means: {len(frames)} frames cannot make {units} units; give more audio or fewer units")
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        kmeans = KMeans(units, frames.shape[-1])
        frames = frames.float()
        kmeans.mean.copy_(frames.mean(0))
        kmeans.std.copy_(frames.std(0).clamp_min(1e-5))
        normal = ((frames - kmeans.mean) / kmeans.std).numpy()
        # scikit-learn's type hints leave out the None and the 1 that its documentation allows.
        settings: dict[str, Any] = {"n_init": 1, "max_iter": epochs, "max_no_improvement": None, "random_state": seed}
        with threadpool_limits(torch.get_num_threads()):  # numpy ignores torch's setting
            fitted = MiniBatchKMeans(units, batch_size=max(batch, units), **settings).fit(normal)
        kmeans.centroids.copy_(torch.from_numpy(fitted.cluster_centers_))
        return kmeans
