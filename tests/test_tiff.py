"""TIFFs as other programs write them, made here: pages, levels, sparse tiles and odd samples of known pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from smearcount.errors import ImageError
from smearcount.images import ImageSource, ReadLimits, open_image

Pixels = npt.NDArray[np.uint8]


def scene(height: int = 96, width: int = 64, seed: int = 0) -> Pixels:
    """Soft coloured noise, `(height, width, 3) uint8 RGB`, from 60 to 230."""
    coarse = np.random.default_rng(seed).integers(60, 231, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def whole(source: ImageSource) -> Pixels:
    return source.read(0, 0, *source.size_wh)


# Samples


def test_signed_8_bit_samples_are_read(tmp_path: Path) -> None:
    signed = (scene().astype(np.int16) - 128).astype(np.int8)
    tifffile.imwrite(tmp_path / "a.tif", signed, photometric="rgb", metadata=None)
    source = open_image(tmp_path / "a.tif")
    assert "8 bit range scaled from" in source.notes[-1]
    assert np.abs(whole(source)[..., 0].astype(int) - cv2.normalize(scene()[..., 0], None, 0, 255, 32)).max() < 16


def test_a_header_with_two_predictors_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scene(), photometric="rgb", metadata=None, extratags=[(65000, "H", 2, (1, 1), True)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<HHI", 65000, 3, 2), struct.pack("<HHI", 317, 3, 2)))
    with pytest.raises(ImageError, match="is corrupt or no TIFF"):
        open_image(path)


def sparse(path: Path, samples: npt.NDArray[np.generic], **options: object) -> Path:
    """A TIFF in tiles of 32 px; the second of them takes no bytes."""
    height, width = samples.shape[:2]

    def tiles() -> Iterator[npt.NDArray[np.generic] | None]:
        for index, (top, left) in enumerate((y, x) for y in range(0, height, 32) for x in range(0, width, 32)):
            yield None if index == 1 else samples[top : top + 32, left : left + 32]

    given = {"shape": samples.shape, "dtype": samples.dtype, "tile": (32, 32), "metadata": None, **options}
    tifffile.imwrite(path, tiles(), **given)
    return path


@pytest.mark.parametrize("limits", [ReadLimits(), ReadLimits(max_megapixels=0.002)], ids=["held", "by region"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "12 of 16 bit", "float32", "miniswhite", "palette", "turned"])
def test_empty_tiles_are_white_whatever_the_samples(tmp_path: Path, kind: str, limits: ReadLimits) -> None:
    pixels, path = scene(), tmp_path / "a.tif"
    grey = np.dstack([pixels[..., 1]] * 3)
    samples, expected, options = {
        "uint8": (pixels, pixels, {"photometric": "rgb"}),
        "uint16": (pixels.astype(np.uint16) * 257, pixels, {"photometric": "rgb"}),
        "12 of 16 bit": (np.rint(pixels * (4095 / 255)).astype(np.uint16), pixels, {"photometric": "rgb"}),
        "float32": (pixels.astype(np.float32) / 255, pixels, {"photometric": "rgb"}),
        "miniswhite": ((255 - grey[..., 0]).astype(np.uint16) * 257, grey, {"photometric": "miniswhite"}),
        "palette": (
            *(255 - grey[..., 0], grey),
            {"photometric": "palette", "colormap": np.tile(np.arange(255, -1, -1, dtype=np.uint16) * 257, (3, 1))},
        ),
        "turned": (pixels[::-1], pixels, {"photometric": "rgb", "extratags": [(274, "H", 1, 4, True)]}),
    }[kind]
    expected = expected.copy()
    rows = slice(64, 96) if kind == "turned" else slice(0, 32)
    expected[rows, 32:] = 255
    source = open_image(sparse(path, samples, **options), limits)
    assert "1 empty tiles shown white" in source.notes
    assert np.abs(whole(source).astype(int) - expected).max() <= 1
    assert np.array_equal(source.read(20, 10, 40, 80), whole(source)[10:90, 20:60])


def test_a_picture_of_empty_tiles_is_white(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", scene().astype(np.uint16), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
    data = bytearray(path.read_bytes())
    data[tag.valueoffset : tag.valueoffset + tag.valuebytecount] = bytes(tag.valuebytecount)
    path.write_bytes(data)
    assert whole(open_image(path)).min() == 255
