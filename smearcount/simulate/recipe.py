"""What a simulated smear shall look like, and the set of samples that ships with smearcount."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from smearcount.config import Strict

__all__ = ["RED_CODES", "WHITE_CODES", "SmearRecipe", "random_set", "sample_set"]

RED_CODES = (
    "normocyte",
    "macrocyte",
    "microcyte",
    "hypochromic_cell",
    "spherocyte",
    "target_cell",
    "stomatocyte",
    "ovalocyte",
    "elliptocyte",
    "teardrop_cell",
    "burr_cell",
    "schistocyte",
    "sickle_cell",
)
"""Shapes of red cells that can be drawn, codes of the taxonomy."""

WHITE_CODES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
"""White cells that can be drawn, codes of the taxonomy."""

_DIFFERENTIAL = {"neutrophil": 0.60, "lymphocyte": 0.28, "monocyte": 0.06, "eosinophil": 0.04, "basophil": 0.02}

Channel = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]


class SmearRecipe(Strict):
    """One field of view: what lies in it, how it is stained, and through what it is photographed.

    The scene depends on the field of view in micrometres and on the seed only: halving `um_per_px` while doubling
    `width` and `height` photographs the same cells at twice the magnification.

    Attributes:
        width: of the picture in pixels.
        height: of the picture in pixels.
        um_per_px: micrometres a pixel.
        red_cells: number of red cells; None takes `red_cells_per_mm2`.
        red_cells_per_mm2: density of red cells, used where `red_cells` is None.
        clumped: share of the red cells that are laid onto another red cell; the others touch nothing.
        overlap: largest share of a red cell's area that lies under or over one neighbour.
        red_mix: relative frequency of the shapes of red cells.
        white_cells: number of white cells drawn from `white_mix`, or the number of each code.
        white_mix: relative frequency of white cells; the default is a normal adult differential.
        platelets: number of platelets.
        platelet_clumps: share of the platelets that lie beside another platelet.
        stain_strength: factor on all optical densities; 1 is a usual May-Gruenwald-Giemsa stain.
        hue: -1 is pink (acid buffer), 0 neutral, 1 blue-grey (alkaline buffer).
        background: RGB of the empty slide under full light.
        pallor: factor on the depth of the central pallor of red cells.
        refraction: strength of the dark rim and bright halo at edges.
        light_unevenness: loss of light at the darkest corner, as a share.
        blur_um: standard deviation of the defocus in micrometres.
        noise: standard deviation of the sensor noise at full light, in grey levels.
        debris: number of small specks of stain, which are no cells and not in the truth.
        seed: of everything random.
    """

    width: int = Field(default=1280, ge=64, le=40000)
    height: int = Field(default=960, ge=64, le=40000)
    um_per_px: float = Field(default=0.12, ge=0.04, le=0.5)
    red_cells: int | None = Field(default=None, ge=0)
    red_cells_per_mm2: float = Field(default=6500.0, ge=0, le=1e6)
    clumped: Share = 0.15
    overlap: float = Field(default=0.25, ge=0, le=0.4)
    red_mix: dict[str, Positive] = Field(default={"normocyte": 1.0}, min_length=1)
    white_cells: int | dict[str, int] = 3
    white_mix: dict[str, Positive] = Field(default=_DIFFERENTIAL, min_length=1)
    platelets: int = Field(default=12, ge=0)
    platelet_clumps: Share = 0.2
    stain_strength: float = Field(default=1.0, gt=0, le=3)
    hue: float = Field(default=0.0, ge=-1, le=1)
    background: tuple[Channel, Channel, Channel] = (246, 230, 216)
    pallor: float = Field(default=1.0, ge=0, le=1.3)
    refraction: float = Field(default=0.35, ge=0, le=2)
    light_unevenness: Share = 0.06
    blur_um: float = Field(default=0.08, ge=0, le=3)
    noise: float = Field(default=1.6, ge=0, le=30)
    debris: int = Field(default=6, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("red_mix")
    @classmethod
    def _known_shapes(cls, mix: dict[str, float]) -> dict[str, float]:
        _check_codes(mix, RED_CODES)
        return mix

    @field_validator("white_mix")
    @classmethod
    def _known_white_cells(cls, mix: dict[str, float]) -> dict[str, float]:
        _check_codes(mix, WHITE_CODES)
        return mix

    @model_validator(mode="after")
    def _countable(self) -> SmearRecipe:
        if isinstance(self.white_cells, dict):
            _check_codes(self.white_cells, WHITE_CODES)
        numbers = self.white_cells.values() if isinstance(self.white_cells, dict) else [self.white_cells]
        if any(n < 0 for n in numbers):
            raise ValueError(f"white_cells: expected zero or more, got {self.white_cells}")
        return self

    @property
    def field_um(self) -> tuple[float, float]:
        """Width and height of the field of view in micrometres."""
        return self.width * self.um_per_px, self.height * self.um_per_px

    @property
    def red_cell_number(self) -> int:
        """Red cells to place: the given number, else the density times the area."""
        if self.red_cells is not None:
            return self.red_cells
        width_um, height_um = self.field_um
        return round(self.red_cells_per_mm2 * width_um * height_um / 1e6)

    def at_magnification(self, factor: float) -> SmearRecipe:
        """The same scene photographed with `factor` times as many pixels a micrometre."""
        size = {"width": round(self.width * factor), "height": round(self.height * factor)}
        return self.vary(**size, um_per_px=self.um_per_px / factor)

    def vary(self, **changes: Any) -> SmearRecipe:
        """The recipe with some settings changed, checked again."""
        return SmearRecipe.model_validate({**self.model_dump(), **changes})


def _check_codes(given: Iterable[str], codes: tuple[str, ...]) -> None:
    if unknown := sorted(set(given) - set(codes)):
        raise ValueError(f"expected some of {codes}, got {unknown}")


def random_set(number: int, seed: int) -> dict[str, SmearRecipe]:
    """Recipes of very different smears by file stem, for training: stain, light, focus, density, shapes at random."""
    rng = np.random.default_rng(seed)
    recipes = {}
    for index in range(number):
        shapes = rng.dirichlet(np.full(len(RED_CODES), 0.3)) + 1e-3
        mix = dict(zip(RED_CODES, shapes.tolist(), strict=True)) | {"normocyte": float(rng.uniform(0.3, 4))}
        um_per_px = float(rng.uniform(0.07, 0.2))
        crowd = float(rng.uniform(0.15, 1))
        red, green, blue = np.clip(rng.uniform(185, 250) + rng.normal(0, 10, 3), 0, 255).astype(int).tolist()
        recipes[f"random_{seed}_{index:04d}"] = SmearRecipe(
            width=round(84 / um_per_px),
            height=round(63 / um_per_px),
            um_per_px=um_per_px,
            red_cells_per_mm2=crowd * 11000,
            clumped=float(rng.uniform(0, 0.2)) + 0.6 * crowd,
            overlap=float(rng.uniform(0.1, 0.38)),
            red_mix=mix,
            white_cells=int(rng.integers(0, 5)),
            white_mix=dict.fromkeys(WHITE_CODES, 1.0),
            platelets=int(rng.integers(0, 14)),
            platelet_clumps=float(rng.uniform(0, 0.5)),
            stain_strength=float(rng.uniform(0.5, 1.7)),
            hue=float(rng.uniform(-0.7, 0.7)),
            background=(red, green, blue),
            pallor=float(rng.uniform(0.1, 1.2)),
            refraction=float(rng.uniform(0, 1)),
            light_unevenness=float(rng.uniform(0, 0.3)),
            blur_um=float(rng.uniform(0.03, 0.35)),
            noise=float(rng.uniform(0.5, 5)),
            debris=int(rng.integers(0, 12)),
            seed=int(rng.integers(1 << 30)),
        )
    return recipes


def sample_set() -> dict[str, SmearRecipe]:
    """The recipes of the shipped samples by file stem; `half_magnification`, `double_magnification` repeat `normal`."""
    grey, green, tan = (226, 226, 230), (214, 226, 206), (228, 204, 186)
    normal = SmearRecipe(
        white_cells={"neutrophil": 2, "lymphocyte": 1, "eosinophil": 1, "monocyte": 1},
        platelets=14,
        red_mix={"normocyte": 0.9, "ovalocyte": 0.04, "microcyte": 0.03, "macrocyte": 0.03},
        seed=11,
    )
    vary = normal.vary
    mixed = dict.fromkeys(RED_CODES, 1.0) | {"normocyte": 3.0}
    return {
        "normal": normal,
        "half_magnification": normal.at_magnification(0.5),
        "double_magnification": normal.at_magnification(2),
        "dense_overlaps": vary(
            red_cells_per_mm2=13000,
            clumped=0.65,
            overlap=0.35,
            background=grey,
            hue=0.3,
            white_cells={"neutrophil": 1, "lymphocyte": 1},
            platelets=8,
            seed=12,
        ),
        "sparse": vary(red_cells=40, clumped=0.05, white_cells={"lymphocyte": 1, "basophil": 1}, platelets=5, seed=13),
        "pale_stain": vary(stain_strength=0.6, background=grey, hue=-0.4, seed=14),
        "dark_stain": vary(stain_strength=1.6, background=tan, hue=0.4, seed=15),
        "uneven_light_defocus": vary(light_unevenness=0.35, blur_um=0.35, background=green, hue=0.1, seed=16),
        "morphology_mix": vary(red_mix=mixed, red_cells=130, clumped=0, hue=-0.3, um_per_px=0.13, seed=17),
        "large_field": vary(
            width=3000,
            height=2000,
            um_per_px=0.15,
            red_cells=1150,
            white_cells={"neutrophil": 7, "lymphocyte": 4, "monocyte": 1, "eosinophil": 1, "basophil": 1},
            platelets=70,
            debris=30,
            seed=18,
        ),
    }
