from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans

from datastill.backbones import kmeans
from datastill.backbones.kmeans import k_means, nearest_members


def test_inertia_is_about_scikit_learns() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(200, 3, generator=rng) + 6 * torch.randint(0, 4, (200, 1), generator=rng)
    best = min(
        float(torch.cdist(points, k_means(points, 5, torch.Generator().manual_seed(s))).amin(1).square().sum())
        for s in range(5)
    )
    reference = KMeans(5, n_init=10, random_state=0).fit(points.numpy()).inertia_
    assert best <= 1.05 * reference


def test_centres_are_means_of_their_points() -> None:
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    centres = k_means(points, 4, torch.Generator().manual_seed(0))
    owner = torch.cdist(points, centres).argmin(1)
    for number, centre in enumerate(centres):
        assert torch.allclose(points[owner == number].mean(0), centre, atol=1e-5)


def test_repeated_points_and_as_many_centres_as_points() -> None:
    same = torch.ones(5, 2)
    assert torch.equal(k_means(same, 3, torch.Generator().manual_seed(0)), torch.ones(3, 2))
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    centres = k_means(points, 6, torch.Generator().manual_seed(0))
    assert torch.allclose(centres.sort(0).values, points.sort(0).values)


def test_nearest_members_are_distinct() -> None:
    points = torch.tensor([[0.0], [1.0], [5.0]])
    assert nearest_members(points, torch.tensor([[0.1], [0.0], [0.2]])).tolist() == [0, 1, 2]


def test_many_wide_points_are_clustered_about_as_well_in_a_projection() -> None:
    rng = torch.Generator().manual_seed(0)
    middles = torch.randn(6, 1000, generator=rng)
    points = middles[torch.arange(4200) % 6] + torch.randn(4200, 1000, generator=rng)
    centres = k_means(points, 6, torch.Generator().manual_seed(3))
    found = float(torch.cdist(points, centres).amin(1).square().sum())
    assert found <= 1.1 * KMeans(6, n_init=1, random_state=0).fit(points.numpy()).inertia_
    owner = torch.cdist(points, centres).argmin(1)
    assert torch.allclose(points[owner == 0].mean(0), centres[0], atol=1e-4)


def test_blocks_of_points_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
    centres = k_means(points, 7, torch.Generator().manual_seed(0))
    chosen = nearest_members(points, centres)
    monkeypatch.setattr(kmeans, "_NUMBERS", 40)
    torch.testing.assert_close(k_means(points, 7, torch.Generator().manual_seed(0)), centres)
    assert torch.equal(nearest_members(points, centres), chosen)
