"""Units: nearest centroid of normalised features, the same after a round trip through a file."""

import pytest
import torch

from audiolm.errors import InputError
from audiolm.kmeans import KMeans


def clouds(per: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Three well separated clouds, one dimension a thousand times wider than the others and without meaning."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]])
    labels = torch.arange(3).repeat_interleave(per)
    frames = centres[labels] + torch.randn(3 * per, 3, generator=generator) * torch.tensor([1.0, 1, 1000])
    return frames, labels


def test_finds_clouds_whatever_the_scale_of_a_dimension():
    frames, labels = clouds()
    kmeans = KMeans.fit(frames, 3, seed=1)
    units = kmeans.assign(frames)
    # one dimension is noise of unit variance after normalisation; the clouds lie 2 to 3 deviations apart
    agreement = torch.stack([(units[labels == cloud].bincount(minlength=3)).max() for cloud in range(3)]).sum() / len(labels)
    assert agreement > 0.6
    torch.testing.assert_close(kmeans.mean, frames.mean(0))
    torch.testing.assert_close(kmeans.std, frames.std(0))


def test_assign_is_the_nearest_centroid_for_any_leading_shape():
    frames, _ = clouds()
    kmeans = KMeans.fit(frames, 16)
    features = frames[:120].reshape(2, 5, 12, 3)
    normal = (features - kmeans.mean) / kmeans.std
    nearest = torch.cdist(normal.reshape(-1, 3), kmeans.centroids).argmin(-1).reshape(2, 5, 12)
    assert torch.equal(kmeans.assign(features), nearest)
    assert kmeans.assign(features).dtype == torch.int64


def test_a_centroid_is_its_own_unit():
    kmeans = KMeans.fit(clouds()[0], 8)
    assert torch.equal(kmeans.assign(kmeans.centroids * kmeans.std + kmeans.mean), torch.arange(8))


def test_a_constant_dimension_does_no_harm():
    frames = torch.cat((clouds()[0], torch.ones(600, 1)), 1)
    kmeans = KMeans.fit(frames, 3)
    assert torch.isfinite(kmeans.centroids).all()
    assert len(kmeans.assign(frames).unique()) == 3


def test_the_same_seed_gives_the_same_units():
    frames, _ = clouds()
    assert torch.equal(KMeans.fit(frames, 8, seed=3).centroids, KMeans.fit(frames, 8, seed=3).centroids)


def test_mistakes_are_one_line():
    with pytest.raises(InputError, match="5 frames cannot make 8 units"):
        KMeans.fit(torch.randn(5, 3), 8)
