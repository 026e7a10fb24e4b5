from typing import Any

import numpy as np
import pytest
import torch

from smearcount.arrays import FloatArray
from smearcount.judging import heat_maps, overlay_heat


class Evidence(torch.nn.Module):
    """Code 0 stands for red, code 1 for green, code 2 for no red, code 3 for more red than green."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.nn.Dropout(0.9)
        self.layer = torch.nn.Conv2d(3, 3, 4, stride=4, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)

    @property
    def spatial_layers(self) -> list[torch.nn.Module]:
        return [self.layer]

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.layer(self.noise(pictures)).mean(dim=(2, 3))
        red, green = features[:, 0], features[:, 1]
        return torch.stack([red, green, -red, red - green], dim=1), features


def quadrants(n: int = 1) -> FloatArray:
    """Red in the upper left quadrant, green in the lower right one; `(n, 3, 32, 32)`."""
    batch = np.zeros((n, 3, 32, 32), np.float32)
    batch[:, 0, :16, :16] = 1
    batch[:, 1, 16:, 16:] = 1
    return batch


def shares(heat: FloatArray) -> list[float]:
    """Share of the heat in each quadrant, upper left, upper right, lower left, lower right."""
    parts = [heat[rows, columns].sum() for rows in (slice(16), slice(16, 32)) for columns in (slice(16), slice(16, 32))]
    return [float(part / heat.sum()) for part in parts]


@pytest.mark.parametrize(("code", "quadrant"), [(0, 0), (1, 3), (3, 0)])
def test_heat_is_where_the_evidence_is(code: int, quadrant: int) -> None:
    heat = heat_maps(Evidence(), quadrants(), np.array([code]))
    assert heat.shape == (1, 32, 32)
    assert heat.dtype == np.float32
    assert heat.min() == 0
    assert heat.max() == 1
    # The rest is what the enlargement spreads over the borders.
    assert shares(heat[0])[quadrant] > 0.85


class Coarser(Evidence):
    """The same evidence, and a last layer of two places across that adds more of it in the lower right corner."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.AvgPool2d(4)
        self.corner = torch.zeros(1, 3, 2, 2)
        self.corner[..., 1, 1] = 9

    @property
    def spatial_layers(self) -> list[torch.nn.Module]:
        return [self.layer, self.last]

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = (self.last(self.layer(pictures)) + self.corner).mean(dim=(2, 3))
        return features, features


def test_a_layer_too_coarse_to_place_anything_is_not_asked() -> None:
    assert shares(heat_maps(Coarser(), quadrants(), np.array([0]))[0])[0] > 0.85


class Border(Evidence):
    """Sees more red the further to the right it lies, as a layer does that answers to the zeros beyond a border."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = (self.layer(pictures) * torch.linspace(0, 1, 8)).mean(dim=(2, 3))
        return features, features


def test_one_border_does_not_outshine_the_cell() -> None:
    even = np.ones((1, 3, 32, 32), np.float32)
    assert heat_maps(Border(), even, np.array([0])) == pytest.approx(1, abs=1e-6)


def test_evidence_against_a_code_is_cold() -> None:
    assert not heat_maps(Evidence(), quadrants(), np.array([2])).any()


def test_heat_turns_with_the_picture() -> None:
    net, batch = Evidence(), quadrants()
    flipped = heat_maps(net, batch[..., ::-1].copy(), np.array([0]))
    assert np.array_equal(flipped, heat_maps(net, batch, np.array([0]))[..., ::-1])


def test_cells_do_not_depend_on_their_batch() -> None:
    net, rng = Evidence(), np.random.default_rng(0)
    batch, codes = rng.random((19, 3, 32, 32)).astype(np.float32), rng.integers(0, 2, 19)
    one_by_one = [heat_maps(net, batch[i : i + 1], codes[i : i + 1])[0] for i in range(19)]
    assert heat_maps(net, batch, codes) == pytest.approx(np.stack(one_by_one), abs=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    net = Evidence().train()
    net.layer.eval()
    net.layer.requires_grad_(False)
    frozen = heat_maps(net, quadrants(), np.array([0]))
    assert net.training
    assert net.noise.training
    assert not net.layer.training
    assert all(weight.grad is None for weight in net.parameters())
    # Through a dropout of 0.9 that was still drawn at random the maps would differ.
    assert np.array_equal(frozen, heat_maps(Evidence().eval(), quadrants(), np.array([0])))


def test_modes_come_back_after_an_error() -> None:
    net = Evidence().train()
    with pytest.raises(Exception, match="channels"):
        heat_maps(net, np.zeros((1, 5, 32, 32), np.float32), np.array([0]))
    assert net.noise.training


@pytest.mark.parametrize("codes", [np.array([0, 1]), np.array(0)])
def test_one_code_a_cell(codes: Any) -> None:
    with pytest.raises(ValueError, match="targets"):
        heat_maps(Evidence(), quadrants(), codes)


def test_no_cells_have_no_maps() -> None:
    assert heat_maps(Evidence(), quadrants(0), np.zeros(0, np.intp)).shape == (0, 32, 32)


def test_overlay_changes_only_what_is_hot() -> None:
    view = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    heat = np.zeros((20, 20), np.float32)
    assert np.array_equal(overlay_heat(view, heat), view)
    heat[5:9, 5:9] = 1
    drawn = overlay_heat(view, heat)
    assert np.array_equal(np.argwhere((drawn != view).any(axis=2)).min(axis=0), [5, 5])
    assert (drawn[:5] == view[:5]).all()
    # The hottest colour is yellow, RGB: red and green far above blue.
    red, green, blue = overlay_heat(np.zeros_like(view), heat)[6, 6].tolist()
    assert min(red, green) > 2 * blue + 50


def test_overlay_stretches_the_heat() -> None:
    view = np.full((40, 60, 3), 120, np.uint8)
    heat = np.zeros((2, 2), np.float32)
    heat[0, 0] = 1
    changed = (overlay_heat(view, heat) != view).any(axis=2)
    assert changed[:10, :15].all()
    assert not changed[30:, 45:].any()


@pytest.mark.parametrize("heat", [np.full((4, 4), 1.5), np.full((4, 4), -0.1), np.full((4, 4), np.nan), np.zeros(4)])
def test_overlay_refuses_what_is_no_heat(heat: Any) -> None:
    with pytest.raises(ValueError, match="heat"):
        overlay_heat(np.zeros((4, 4, 3), np.uint8), heat.astype(np.float32))
