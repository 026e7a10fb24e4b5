"""What the decoders say is heard on every system, nobody else's words are lost, and damage is found.

Of damage the whole data is known: whatever looks like it in whole data is read to the last bit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images import ReadLimits, open_image
from smearcount.images.damage import decoders_heard

Damage = Callable[[bytes], bytes]


@pytest.fixture(params=["as it is", "without files in memory", "as on Windows"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"without files in memory": ("memfd_create",), "as on Windows": ("memfd_create", "pread")}
    for name in lacking.get(request.param, ()):
        monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("_system")
def test_a_damaged_jpeg_is_refused_and_a_whole_one_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(90, 200, (128, 96, 3)).astype(np.uint8)
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    whole, damaged = tmp_path / "whole.jpg", tmp_path / "damaged.jpg"
    whole.write_bytes(data)
    damaged.write_bytes(data[: len(data) // 2] + data[-2:])
    assert open_image(whole).size_wh == (96, 128)
    with pytest.raises(ImageError, match="damaged.jpg: is corrupt"):
        open_image(damaged)
    assert capfd.readouterr().err == ""


def test_a_jpeg_is_decoded_to_the_last_bit_as_opencv_does(tmp_path: Path) -> None:
    """Whole, and with padding after its last block, of which libjpeg warns: some cameras write such."""
    grey = np.random.default_rng(1).integers(60, 220, (45, 67)).astype(np.uint8)
    pixels = cv2.GaussianBlur(np.dstack([grey, grey[::-1], 255 - grey]), (0, 0), 1.5)
    sampling = [0x221111, 0x211111, 0x121111, 0x111111, 0x411111]
    options = [[cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors] for factors in sampling]
    options += [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2], [cv2.IMWRITE_JPEG_QUALITY, 15]]
    files = [cv2.imencode(".jpg", pixels, each)[1].tobytes() for each in options]
    files.append(cv2.imencode(".jpg", grey)[1].tobytes())
    for data in files:
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        for written in (data, data[:-2] + b"\x11" * 9 + data[-2:]):
            path = tmp_path / "a.jpg"
            path.write_bytes(written)
            np.testing.assert_array_equal(open_image(path).read(0, 0, 67, 45), expected)


@pytest.mark.usefixtures("_system")
def test_words_of_others_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    open_before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(3):
        with decoders_heard() as spoken:
            os.write(2, b"a word of somebody else\nCorrupt JPEG data: premature end of data segment\n")
        assert spoken == ["Corrupt JPEG data: premature end of data segment\n"]
    with decoders_heard() as spoken:
        pass
    assert spoken == []
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a word of somebody else\n" * 3 + "afterwards\n"
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == len(open_before)


def field(height: int = 256, width: int = 256, seed: int = 0) -> Pixels:
    """Cells with some grain, so that every block takes a few bytes, `(height, width, 3) uint8 RGB`."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), (228, 216, 222), np.uint8)
    for _ in range(height * width // 2000):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(pixels, centre, 14, [int(c) for c in rng.integers(90, 200, 3)], -1)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def whole(path: Path) -> Pixels:
    source = open_image(path)
    return source.read(0, 0, *source.size_wh)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ImageError, match=rf"{path.name}: is corrupt or truncated: {words}.*; copy or export it again"):
        whole(path)


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tiles_of(path: Path) -> list[tuple[int, int]]:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def zeroed(tile: bytes) -> bytes:
    return tile[: len(tile) // 4] + bytes(len(tile) - len(tile) // 4)


def zeroed_but_for_its_end(tile: bytes) -> bytes:
    return zeroed(tile)[:-2] + tile[-2:]


def holed(tile: bytes) -> bytes:
    at = len(tile) // 2
    return tile[:at] + bytes(512) + tile[at + 512 :]


def ended_early(tile: bytes) -> bytes:
    return tile[: len(tile) // 2] + tile[-2:] + bytes(len(tile) - len(tile) // 2 - 2)


JPEG_DAMAGE = (zeroed, zeroed_but_for_its_end, holed, ended_early)


@pytest.mark.parametrize("damage", JPEG_DAMAGE)
@pytest.mark.parametrize(
    "layout",
    [
        {"photometric": "rgb", "tile": (128, 128)},
        {"photometric": "ycbcr", "tile": (128, 128), "subsampling": (2, 2)},
        {"photometric": "rgb", "rowsperstrip": 128},
        {"photometric": "minisblack", "tile": (128, 128)},
        {"photometric": "separated", "tile": (128, 128)},
    ],
)
def test_a_damaged_jpeg_tile_is_refused_and_its_neighbours_read(
    tmp_path: Path, layout: dict[str, Any], damage: Damage, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels: Pixels = field()
    if layout["photometric"] == "minisblack":
        pixels = pixels[..., 1].copy()
    elif layout["photometric"] == "separated":
        pixels = np.dstack([255 - pixels, np.zeros((256, 256), np.uint8)])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression="jpeg", compressionargs={"level": 90}, **layout)
    before = whole(path)
    at, length = tiles_of(path)[0]
    data = path.read_bytes()
    path.write_bytes(data[:at] + damage(data[at : at + length]) + data[at + length :])
    refused(path, "tile or strip 0: Corrupt JPEG data")
    if "tile" in layout:
        assert np.array_equal(open_image(path).read(0, 128, 256, 128), before[128:])
    assert capfd.readouterr().err == ""


def test_tables_that_stand_once_for_all_tiles(tmp_path: Path) -> None:
    pixels, path = field(), tmp_path / "a.tif"
    tiles = [cv2.imencode(".jpg", part[..., ::-1])[1].tobytes() for part in (pixels[:, :128], pixels[:, 128:])]
    at, end = tiles[0].index(b"\xff\xdb"), tiles[0].index(b"\xff\xda")
    frame = tiles[0].index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", tiles[0], frame + 2)
    header = tiles[0][frame : frame + 2 + length]
    tables = b"\xff\xd8" + tiles[0][at:end].replace(header, b"") + b"\xff\xd9"
    bare = [b"\xff\xd8" + header + tile[end:] for tile in tiles]
    options: dict[str, Any] = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg", "metadata": None}
    for second, expected in ((bare[1], None), (zeroed_but_for_its_end(bare[1]), "tile or strip 1")):
        tifffile.imwrite(
            path,
            iter([bare[0], second]),
            shape=(256, 256, 3),
            dtype=np.uint8,
            tile=(256, 128),
            jpegtables=tables,
            **options,
        )
        if expected:
            refused(path, expected)
        else:
            assert np.abs(whole(path).astype(int) - pixels).mean() < 6


def jpeg_tiff(path: Path, tile: bytes, size: int) -> Path:
    """A TIFF of one JPEG tile as it is given."""
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    shape = (size, size, 3)
    tifffile.imwrite(path, iter([tile]), shape=shape, dtype=np.uint8, tile=(size, size), **options)
    return path


def test_whole_tiles_that_look_damaged_are_read(tmp_path: Path) -> None:
    flat = np.full((1024, 1024, 3), 240, np.uint8)
    flat[:256, :256] = field()
    encode: dict[str, Any] = {"level": 90, "colorspace": "RGB", "outcolorspace": "RGB"}
    short_codes = imagecodecs.jpeg8_encode(flat, optimize=True, **encode)
    assert bytes(1000) in short_codes
    grey = imagecodecs.jpeg8_encode(np.full((256, 256, 3), 128, np.uint8), **encode)
    endless = imagecodecs.jpeg8_encode(field(), **encode)
    for tile, size in ((short_codes, 1024), (grey, 256), (endless[:-2], 256), (endless + bytes(4096), 256)):
        expected = imagecodecs.jpeg8_decode(tile, colorspace="RGB", outcolorspace="RGB")
        assert np.array_equal(whole(jpeg_tiff(tmp_path / "a.tif", tile, size)), expected)
    progressive = cv2.imencode(".jpg", field()[..., ::-1], (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
    assert whole(jpeg_tiff(tmp_path / "a.tif", progressive, 256)).shape == (256, 256, 3)
    refused(jpeg_tiff(tmp_path / "b.tif", progressive[: len(progressive) // 2] + b"\xff\xd9", 256), "tile or strip 0")


def test_a_cmyk_jpeg_that_ends_early_is_refused(tmp_path: Path) -> None:
    ink = np.dstack([255 - field(), np.zeros((256, 256), np.uint8)])
    data = imagecodecs.jpeg8_encode(255 - ink, level=95, colorspace="CMYK", outcolorspace="CMYK")
    expected = 255 - imagecodecs.jpeg8_decode(data, outcolorspace="CMYK")[..., :3]
    assert np.abs(whole(save(tmp_path / "a.jpg", data)).astype(int) - (255 - expected)).max() <= 4
    for damage in JPEG_DAMAGE[1:]:
        refused(save(tmp_path / "b.jpg", damage(data)), "Corrupt JPEG data: premature end of data segment")


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_webp_whose_end_is_zeros_is_refused(tmp_path: Path, lossless: bool, share: float) -> None:
    for seed in range(3):
        pixels = field(200 + seed, 200, seed)
        data = imagecodecs.webp_encode(pixels, level=90, lossless=lossless)
        assert np.array_equal(whole(save(tmp_path / "a.webp", data)), imagecodecs.webp_decode(data))
        kept = int(len(data) * share)
        refused(save(tmp_path / "b.webp", data[:kept] + bytes(len(data) - kept)), "a part of its data is zeros")


def test_a_webp_tile_whose_end_is_zeros_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128), "compression": "webp"}
    tifffile.imwrite(path, field(), compressionargs={"level": 90}, **options)
    before = whole(path)
    at, length = tiles_of(path)[0]
    data = path.read_bytes()
    path.write_bytes(data[:at] + zeroed(data[at : at + length]) + data[at + length :])
    refused(path, "tile or strip 0: a part of its data is zeros")
    assert np.array_equal(open_image(path).read(0, 128, 256, 128), before[128:])


def test_flat_webps_hold_zeros_and_are_read(tmp_path: Path) -> None:
    bright = np.full((3000, 3000, 3), 255, np.uint8)
    bright[:256, :256] = field()
    dark = np.zeros((1000, 1000, 3), np.uint8)
    dark[0, 0] = 9
    for pixels, lossless in ((bright, False), (dark, True)):
        level, method = (90, 4) if not lossless else (0, 0)
        data = imagecodecs.webp_encode(pixels, level=level, lossless=lossless, method=method)
        assert bytes(500) in data
        assert np.array_equal(whole(save(tmp_path / "a.webp", data)), imagecodecs.webp_decode(data))


@pytest.mark.parametrize("size_wh", [(40_000, 40_000), (32, 2**20 + 1)])
def test_what_opencv_does_not_decode_is_no_damage(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    data = cv2.imencode(".bmp", field(32, 32))[1].tobytes()
    # Run-length encoded, so its bytes can't be foretold.
    path = save(tmp_path / "a.bmp", data[:18] + struct.pack("<iiHHI", *size_wh, 1, 8, 1) + data[34:])
    expected = rf"a\.bmp: {size_wh[0]} x {size_wh[1]} px, but a BMP is read up to 1073 .*; save it as a tiled TIFF"
    for limits in (ReadLimits(max_megapixels=2000), ReadLimits()):
        with pytest.raises(ImageError, match=expected):
            open_image(path, limits)
