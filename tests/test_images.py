"""Pictures in and out, against pictures made here: what was stored is known to the last sample."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import tifffile
from conftest import whole

from smearcount import images
from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images import (
    ArraySource,
    ImageSource,
    PartSource,
    ReadLimits,
    find_images,
    open_image,
    peek,
    through_jpeg,
    write_picture,
)
from smearcount.images.pixels import orient, stored_region
from smearcount.images.tiff import TiffSource
from smearcount.images.tiff_page import StoredPage, _strips_held


@pytest.fixture(autouse=True)
def _nothing_on_stderr(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert capfd.readouterr().err == ""
    assert not caplog.records


def scene(height: int = 96, width: int = 64, seed: int = 0) -> Pixels:
    """Soft coloured blobs on a bright ground, without any symmetry, `(height, width, 3) uint8 RGB`."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), (236, 228, 220), np.uint8)
    for _ in range(6):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(pixels, centre, int(rng.integers(6, 14)), [int(c) for c in rng.integers(60, 200, 3)], -1)
    return cv2.GaussianBlur(pixels, (0, 0), 2).astype(np.uint8)


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encode(suffix: str, pixels: Pixels, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)[1].tobytes()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(samples: npt.NDArray[np.generic], colour: int, before_data: bytes = b"", end: bool = True) -> bytes:
    """A PNG of samples `(H, W, S)`; colour 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1).astype(samples.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, samples.dtype.itemsize * 8, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + before_data + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + parts + (chunk(b"IEND", b"") if end else b"")


def exif(orientation: int, dpi: tuple[int, int] = (72, 72)) -> bytes:
    """A big-endian Exif block with an orientation and a resolution in dots an inch."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack(">HHII", 0x011A, 5, 1, 62) + struct.pack(">HHII", 0x011B, 5, 1, 70)
    entries += struct.pack(">HHIHH", 0x0128, 3, 1, 2, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 4) + entries + b"\0" * 4 + struct.pack(">IIII", dpi[0], 1, dpi[1], 1)


def jpeg_with_exif(data: bytes, block: bytes) -> bytes:
    body = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def stored_as(upright: Pixels, orientation: int) -> Pixels:
    """How a camera held another way stores the same picture: the table of Exif 2.32 turned round."""
    return {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation].copy()


# Formats


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_lossless_formats_give_back_the_stored_pixels(tmp_path: Path, suffix: str) -> None:
    pixels = scene()
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()
    source = open_image(save(tmp_path / f"a{suffix}", encode(suffix, pixels, *options)))
    assert source.size_wh == (64, 96)
    assert np.array_equal(whole(source), pixels)
    assert np.array_equal(source.read(5, 7, 30, 50), pixels[7:57, 5:35])
    assert (source.notes, source.um_per_px, source.scale_origin) == ((), None, "")
    assert source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_is_close_to_what_was_compressed(tmp_path: Path, options: tuple[int, ...]) -> None:
    pixels = scene()
    source = open_image(save(tmp_path / "a.jpg", encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 98, *options)))
    assert np.abs(whole(source).astype(int) - pixels).max() <= 12
    assert source.notes == ()


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    assert np.array_equal(whole(open_image(save(tmp_path / "a.jpg", encode(".png", scene())))), scene())


def test_grey_pictures_have_three_equal_channels(tmp_path: Path) -> None:
    grey = scene()[..., 1].copy()
    for suffix in (".png", ".bmp", ".tif"):
        source = open_image(save(tmp_path / f"a{suffix}", encode(suffix, grey)))
        assert np.array_equal(whole(source), np.dstack([grey] * 3))
    jpeg = whole(open_image(save(tmp_path / "a.jpg", encode(".jpg", grey, cv2.IMWRITE_JPEG_QUALITY, 98))))
    assert np.abs(jpeg.astype(int) - grey[..., None]).max() <= 4
    assert np.ptp(jpeg, axis=2).max() == 0


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_palette(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    index = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        path.write_bytes(png(index[..., None], 3, chunk(b"PLTE", table.tobytes())))
    else:
        tifffile.imwrite(path, index, photometric="palette", colormap=table.T.astype(np.uint16) * 257)
    assert np.array_equal(whole(open_image(path)), table[index])


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_alpha_is_composited_on_white(tmp_path: Path, kind: str) -> None:
    pixels = scene()
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (96, 1))
    rgba = np.dstack([pixels, alpha])
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        path.write_bytes(png(rgba, 6))
    elif kind == "webp":
        path.write_bytes(imagecodecs.webp_encode(rgba, lossless=True))
    else:
        tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"])
    cover = alpha[..., None] / 255
    source = open_image(path)
    slack = 1 if kind == "webp" else 0  # the encoder may drop the colour under full transparency
    assert np.abs(whole(source) - np.rint(pixels * cover + 255 * (1 - cover))).max() <= slack
    assert source.notes == ("alpha composited on white",)


def test_sixteen_bit_alpha_and_grey_alpha(tmp_path: Path) -> None:
    pixels = scene()
    alpha = np.zeros((96, 64), np.uint8)
    alpha[:, :32] = 255
    expected = np.where(alpha[..., None] > 0, pixels, 255)
    wide = np.dstack([pixels, alpha]).astype(np.uint16) * 257
    assert np.array_equal(whole(open_image(save(tmp_path / "a.png", png(wide, 6)))), expected)
    assert open_image(tmp_path / "a.png").notes == ("16 bit range scaled from 0 to 65535", "alpha composited on white")
    two = np.dstack([pixels[..., 0], alpha])
    source = open_image(save(tmp_path / "b.png", png(two, 4)))
    assert np.array_equal(whole(source)[..., 1], np.where(alpha > 0, pixels[..., 0], 255))


def test_the_range_of_a_deep_picture_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    percentile, seen = np.percentile, []
    monkeypatch.setattr(np, "percentile", lambda *asked: seen.append(asked) or percentile(*asked))
    for name, colour in (("grey", 0), ("rgb", 2), ("rgba", 6)):
        samples = np.full((64, 64, {0: 1, 2: 3, 6: 4}[colour]), 40_000, np.uint16).squeeze()
        open_image(save(tmp_path / f"{name}.png", png(samples, colour)))
    assert len(seen) == 3


def test_opaque_alpha_needs_no_note(tmp_path: Path) -> None:
    rgba = np.dstack([scene(), np.full((96, 64), 255, np.uint8)])
    source = open_image(save(tmp_path / "a.png", png(rgba, 6)))
    assert np.array_equal(whole(source), scene())
    assert source.notes == ()


def test_premultiplied_alpha(tmp_path: Path) -> None:
    half = np.full((40, 40, 4), (60, 30, 10, 128), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", half, photometric="rgb", extrasamples=["assocalpha"])
    assert whole(open_image(tmp_path / "a.tif"))[0, 0].tolist() == [187, 157, 137]


def test_the_padding_byte_of_a_bitmap_is_no_alpha(tmp_path: Path) -> None:
    rows = np.dstack([scene()[..., ::-1], np.zeros((96, 64), np.uint8)])
    header = struct.pack("<IiiHHIIiiII", 40, 64, -96, 1, 32, 0, 0, 0, 0, 0, 0)  # top row first
    data = b"BM" + struct.pack("<IHHI", 54 + rows.nbytes, 0, 0, 54) + header + rows.tobytes()
    assert np.array_equal(whole(open_image(save(tmp_path / "a.bmp", data))), scene())


def test_cmyk_jpeg_with_and_without_inversion(tmp_path: Path) -> None:
    ink = np.zeros((48, 64, 4), np.uint8)
    ink[:, :32] = (0, 200, 180, 20)
    expected = np.rint((255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255)
    adobe = imagecodecs.jpeg8_encode(255 - ink, level=98, colorspace="CMYK", outcolorspace="CMYK")
    assert b"Adobe" in adobe
    source = open_image(save(tmp_path / "adobe.jpg", adobe))
    inside = np.s_[4:-4, 4:28]
    assert np.abs(whole(source)[inside] - expected[inside]).max() <= 3
    assert source.notes == ("CMYK converted without a colour profile",)
    at = adobe.index(b"\xff\xee")
    plain = adobe[:at] + adobe[at + 16 :]
    assert np.abs(whole(open_image(save(tmp_path / "plain.jpg", plain)))[inside] - (255 - expected[inside])).max() > 50


def test_animations_give_their_first_frame_and_a_note(tmp_path: Path) -> None:
    frames = cv2.Animation()
    frames.frames = [np.ascontiguousarray(scene(seed=n)[..., ::-1]) for n in range(3)]
    frames.durations = np.full(3, 100, np.int32)
    for suffix, options in ((".png", []), (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101])):
        assert cv2.imwriteanimation(str(tmp_path / f"a{suffix}"), frames, options)
        source = open_image(tmp_path / f"a{suffix}")
        assert source.notes == ("first frame of an animation read",)
        assert np.abs(whole(source).astype(int) - scene(seed=0)).max() <= 8


# Orientation


def test_orient_and_stored_region_agree() -> None:
    upright = np.arange(7 * 5).reshape(7, 5)
    for orientation in range(1, 9):
        stored = stored_as(upright[..., None].astype(np.uint8), orientation)
        assert np.array_equal(orient(stored, orientation)[..., 0], upright)
        x, y, w, h = stored_region((1, 2, 3, 4), (5, 7), orientation)
        assert np.array_equal(orient(stored[y : y + h, x : x + w], orientation)[..., 0], upright[2:6, 1:4])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_of_one_picture_read_equal(tmp_path: Path, orientation: int) -> None:
    upright = scene()
    stored = stored_as(upright, orientation)
    note = () if orientation == 1 else (f"EXIF orientation {orientation} applied",)
    save(tmp_path / "a.png", png(stored, 2, chunk(b"eXIf", exif(orientation))))
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "strips.tif", stored, photometric="rgb", extratags=tags, metadata=None)
    tifffile.imwrite(tmp_path / "tiles.tif", stored, photometric="rgb", tile=(32, 16), extratags=tags, metadata=None)
    for name in ("a.png", "strips.tif", "tiles.tif"):
        source = open_image(tmp_path / name)
        assert source.size_wh == (64, 96)
        assert source.notes == note
        assert np.array_equal(whole(source), upright)
        assert np.array_equal(source.read(11, 40, 33, 21), upright[40:61, 11:44])
    jpeg = jpeg_with_exif(encode(".jpg", stored, cv2.IMWRITE_JPEG_QUALITY, 98), exif(orientation))
    source = open_image(save(tmp_path / "a.jpg", jpeg))
    assert source.notes == note
    # OpenCV's own reading of Exif is the reference to the last bit.
    reference = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(whole(source), reference)
    assert np.abs(whole(source).astype(int) - upright).max() <= 12


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_senseless_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    data = jpeg_with_exif(encode(".jpg", scene()), exif(orientation))
    assert open_image(save(tmp_path / "a.jpg", data)).size_wh == (64, 96)


# Ranges


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tif", "tiles"])
def test_a_deep_picture_is_as_bright_as_its_8_bit_copy(tmp_path: Path, bits: int, kind: str) -> None:
    pixels = scene()
    full = 2**bits - 1
    deep = np.rint(pixels.astype(float) * full / 255).astype(np.uint16)
    path = tmp_path / f"a.{kind[:3]}"
    if kind == "png":
        path.write_bytes(png(deep, 2))
    else:
        tifffile.imwrite(path, deep, photometric="rgb", tile=(16, 16) if kind == "tiles" else None)
    source = open_image(path)
    assert np.array_equal(whole(source), pixels)
    assert source.notes == (f"16 bit range scaled from 0 to {full}",)


def test_one_hot_pixel_does_not_darken_the_picture(tmp_path: Path) -> None:
    deep = scene().astype(np.uint16) * 16
    deep[3, 3] = 65535
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    read = whole(open_image(tmp_path / "a.tif"))
    assert read[3, 3].tolist() == [255, 255, 255]
    difference = np.abs(read.astype(int) - scene())
    difference[3, 3] = 0
    assert difference.max() == 1


def test_floating_point_and_signed_data(tmp_path: Path) -> None:
    pixels = scene()
    cases = {
        "floating point range scaled from 0 to 1": (pixels / 255).astype(np.float32),
        "floating point range scaled from 0 to 255": pixels.astype(np.float64),
        "32 bit range scaled from 0 to 255": pixels.astype(np.uint32),
    }
    for note, samples in cases.items():
        tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb")
        source = open_image(tmp_path / "a.tif")
        assert source.notes == (note,)
        assert np.array_equal(whole(source), pixels)
    tifffile.imwrite(tmp_path / "b.tif", pixels.astype(np.int16) - 100, photometric="rgb")
    stretched = whole(open_image(tmp_path / "b.tif")).astype(float)
    order = np.corrcoef(stretched.ravel(), pixels.ravel())[0, 1]
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert order > 0.999


def test_values_that_are_no_numbers_are_noted(tmp_path: Path) -> None:
    samples = (scene() / 255).astype(np.float32)
    samples[0, 0], samples[0, 1] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb")
    source = open_image(tmp_path / "a.tif")
    assert whole(source)[0, :2].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert source.notes == ("floating point range scaled from 0 to 1, 6 values that are no numbers shown dark or full",)


def test_values_beyond_every_range_raise_no_warning(tmp_path: Path) -> None:
    samples = scene().astype(np.float64)
    samples[10:40] = -1e308
    samples[50:] = 1e308
    signalling = np.full((40, 40, 3), 0x7FA00000, np.uint32).view(np.float32)
    for data in (samples, signalling, np.full((40, 40, 3), np.inf, np.float32)):
        tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb")
        assert open_image(tmp_path / "a.tif").notes[0].startswith("floating point range scaled from")


def test_few_bits_and_white_is_zero(tmp_path: Path) -> None:
    mask = scene()[..., 0] > 200
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack")
    assert np.array_equal(whole(open_image(tmp_path / "a.tif"))[..., 0], mask * np.uint8(255))
    grey = scene()[..., 0].copy()
    for tile in (None, (16, 16)):
        tifffile.imwrite(tmp_path / "b.tif", grey, photometric="miniswhite", tile=tile)
        assert np.array_equal(whole(open_image(tmp_path / "b.tif"))[..., 2], 255 - grey)


# TIFF


SEPARABLE = (None, "lzw", "deflate", "packbits", "zstd")


@pytest.mark.parametrize(
    ("compression", "planar"),
    [(name, "contig") for name in (*SEPARABLE, "webp", "jpeg")] + [(name, "separate") for name in SEPARABLE],
)
@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_tiff_layouts(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None, planar: str) -> None:
    pixels = scene(100, 130)
    data = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    more = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    more = {"compressionargs": {"level": 98}} if compression == "jpeg" else more
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        photometric="rgb",
        planarconfig=planar,
        tile=tile,
        rowsperstrip=None if tile else 32,
        compression=compression,
        **more,
    )
    source = open_image(tmp_path / "a.tif")
    reference = tifffile.imread(tmp_path / "a.tif")
    reference = reference if planar == "contig" else reference.transpose(1, 2, 0)
    assert np.array_equal(whole(source), reference)
    assert np.abs(whole(source).astype(int) - pixels).max() <= (25 if compression == "jpeg" else 0)
    rng = np.random.default_rng(3)
    for _ in range(20):
        x, y = int(rng.integers(130)), int(rng.integers(100))
        w, h = int(rng.integers(1, 131 - x)), int(rng.integers(1, 101 - y))
        assert np.array_equal(source.read(x, y, w, h), reference[y : y + h, x : x + w])


def test_cmyk_tiff(tmp_path: Path) -> None:
    ink = np.random.default_rng(4).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated")
    expected = np.rint((255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255)
    assert np.array_equal(whole(open_image(tmp_path / "a.tif")), expected)


def test_only_the_needed_tiles_are_read_and_held(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128))
    source = open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=1))  # larger, but never decoded whole
    tracemalloc.start()
    region = source.read(700, 900, 256, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(region, pixels[900:1156, 700:956])
    assert peak < 4 * region.nbytes
    with (tmp_path / "a.tif").open("r+b") as file:  # damage far away is no concern of this region
        file.seek(-128 * 128 * 3, os.SEEK_END)
        file.write(b"\0" * 1000)
    assert np.array_equal(source.read(700, 900, 256, 256), region)


def test_giants_whose_parts_cannot_be_read_alone_are_refused(tmp_path: Path) -> None:
    pixels = scene(512, 512)
    tifffile.imwrite(tmp_path / "tile.tif", pixels, photometric="rgb", tile=(512, 512))
    tifffile.imwrite(tmp_path / "strip.tif", pixels, photometric="rgb", rowsperstrip=512, compression="lzw")
    for name in ("tile.tif", "strip.tif"):
        with pytest.raises(ImageError, match="--max-megapixels 1"):
            open_image(tmp_path / name, ReadLimits(max_megapixels=0.1))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 512},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "byteorder": ">"},
        {"rowsperstrip": 7, "bigtiff": True},
        {"rowsperstrip": 32, "compression": "lzw", "predictor": True},
        {"tile": (64, 32), "compression": "deflate"},
        {"tile": (64, 32), "bigtiff": True},
    ],
)
def test_giants_are_the_same_read_by_regions_and_held(
    tmp_path: Path, layout: dict[str, object], planar: str, bits: int
) -> None:
    pixels = scene(512, 400)
    data = pixels if bits == 8 else np.rint(pixels.astype(float) * 4095 / 255).astype(np.uint16)
    data = data if planar == "contig" else data.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar, metadata=None, **layout)
    held, source = open_image(tmp_path / "a.tif"), open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.1))
    assert isinstance(source, TiffSource)
    assert isinstance(held, ArraySource) == (bits == 16 or "tile" not in layout)
    assert (source.notes, source.sha256) == (held.notes, held.sha256)
    assert source.notes == (("16 bit range scaled from 0 to 4095",) if bits == 16 else ())
    assert np.array_equal(whole(held), pixels)
    rng = np.random.default_rng(3)
    for _ in range(20):
        x, y = int(rng.integers(400)), int(rng.integers(512))
        w, h = int(rng.integers(1, 401 - x)), int(rng.integers(1, 513 - y))
        assert np.array_equal(source.read(x, y, w, h), pixels[y : y + h, x : x + w])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_giants_in_strips_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = scene(200, 300)
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", stored_as(upright, orientation), photometric="rgb", extratags=tags, metadata=None
    )
    source = open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.01))
    assert isinstance(source, TiffSource)
    assert np.array_equal(source.read(10, 20, 200, 100), upright[20:120, 10:210])


def test_a_giant_has_one_range_wherever_it_is_read(tmp_path: Path) -> None:
    deep = np.full((1200, 1300, 3), 3000, np.uint16)
    deep[:600, :600] = 100  # alone it would be taken for 8 bits
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", tile=(64, 64))
    source = open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.1))
    assert source.notes == ("16 bit range scaled from 0 to 4095",)
    assert source.read(10, 10, 1, 1).tolist() == [[[6, 6, 6]]]
    assert np.array_equal(whole(source), np.rint(deep * (255 / 4095)).astype(np.uint8))
    assert np.array_equal(whole(source), whole(open_image(tmp_path / "a.tif")))


def test_a_strip_that_is_cut_off_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scene(512, 512), photometric="rgb", metadata=None)
    source = open_image(path, ReadLimits(max_megapixels=0.1))
    with path.open("r+b") as file:
        file.truncate(400_000)
    assert np.array_equal(source.read(0, 0, 512, 250), scene(512, 512)[:250])
    with pytest.raises(ImageError, match=r"a\.tif: is truncated: row 2\d\d is not all there; copy"):
        source.read(0, 200, 512, 100)


def test_strips_of_a_wide_picture_are_decoded_once_for_a_row_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smearcount.images.tiff_page._STRIPS_HELD", 10_000)
    pixels, options = scene(200, 1200), {"compression": "deflate", "rowsperstrip": 8, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    decoded, decode = list[int](), StoredPage._decoded

    def counted(stored: StoredPage, file: BinaryIO, index: int) -> Any:
        decoded.append(index)
        return decode(stored, file, index)

    monkeypatch.setattr(StoredPage, "_decoded", counted)
    source = open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.1))
    decoded.clear()
    for x in range(0, 1200, 150):
        assert np.array_equal(source.read(x, 0, 150, 200), pixels[:, x : x + 150])
    assert sorted(decoded) == list(range(25))
    monkeypatch.setattr("smearcount.images.tiff_page._MOST_HELD", 24 * 8 * 1200 * 3)
    source = open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.1))
    assert isinstance(source, TiffSource)
    whole(source)
    assert len(source.stored.blocks._held) == 24


def test_tiles_are_decoded_once_and_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smearcount.images.tiff_page._TILES_HELD", 4 * 64 * 64 * 3)
    pixels = scene(256, 512)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="deflate")
    source = open_image(tmp_path / "a.tif")
    assert isinstance(source, TiffSource)
    decode, decoded = source.stored.decode, []

    def counting(data: bytes, index: int, **tables: object) -> object:
        decoded.append(index)
        return decode(data, index, **tables)

    source = replace(source, stored=replace(source.stored, decode=counting))
    for x in (0, 64, 128):
        assert np.array_equal(source.read(x, 10, 128, 100), pixels[10:110, x : x + 128])
    assert decoded == [0, 1, 8, 9, 2, 10, 3, 11]
    source.read(0, 10, 128, 100)  # let go of meanwhile
    assert decoded[8:] == [0, 1, 8, 9]
    assert sum(block.samples.nbytes for block in source.stored.blocks._held.values()) <= 4 * 64 * 64 * 3


def test_windows_beside_each_other_share_the_tiles_of_a_scanner(tmp_path: Path) -> None:
    """Of 512 px, under windows of the finest usual scale; no more are held than the memory of a worker allows for."""
    pixels = np.zeros((4096, 5120, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(512, 512), compression="deflate")
    source = open_image(tmp_path / "a.tif")
    assert isinstance(source, TiffSource)
    decode, decoded = source.stored.decode, list[int]()

    def counting(data: bytes, index: int, **tables: object) -> object:
        decoded.append(index)
        return decode(data, index, **tables)

    source = replace(source, stored=replace(source.stored, decode=counting))
    for x in (500, 1970, 3440):
        source.read(x, 500, 1632, 1632)
    assert len(decoded) == len(set(decoded))
    whole(source)
    assert sum(block.samples.nbytes for block in source.stored.blocks._held.values()) <= 40e6


@pytest.mark.parametrize(
    ("width", "rows", "most"), [(20_000, 3264, 300e6), (200_000, 1632, 1.1e9), (400_000, 0, 1.1e9), (1000, 0, 300e6)]
)
def test_the_strips_of_a_row_of_windows_are_held(width: int, rows: int, most: float) -> None:
    """Windows are 1088 px at 0.15 um: 3264 rows at 0.05 um a pixel; of ever wider pictures no more than a gigabyte."""
    page: Any = SimpleNamespace(imagewidth=width, samplesperpixel=3, dtype="uint8", rowsperstrip=1, imagelength=50_000)
    assert rows * width * 3 <= _strips_held(page) <= most


@pytest.mark.parametrize("as_subifds", [True, False])
def test_a_pyramid_is_read_at_full_resolution(tmp_path: Path, as_subifds: bool) -> None:
    pixels = scene(256, 256)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, photometric="rgb", tile=(64, 64), subifds=2 if as_subifds else None)
        for step in (2, 4):
            writer.write(pixels[::step, ::step].copy(), photometric="rgb", tile=(64, 64), subfiletype=1)
    source = open_image(tmp_path / "a.tif")
    assert np.array_equal(whole(source), pixels)
    assert source.notes == ("full resolution of 3 pyramid levels read",)


def test_an_unflagged_pyramid_that_starts_small_is_read_at_full_resolution(tmp_path: Path) -> None:
    pixels = scene(200, 260)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for step in (4, 2, 1):
            writer.write(pixels[::step, ::step].copy(), photometric="rgb")
    assert np.array_equal(whole(open_image(tmp_path / "a.tif")), pixels)
    assert np.array_equal(whole(open_image(tmp_path / "a.tif", page=2)), pixels[::2, ::2])


def test_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for seed in range(3):
            writer.write(scene(seed=seed), photometric="rgb")
    first = open_image(tmp_path / "a.tif")
    assert first.notes == ("page 1 of 3 read",)
    assert np.array_equal(whole(first), scene(seed=0))
    third = open_image(tmp_path / "a.tif", page=3)
    assert third.notes == ("page 3 of 3 read",)
    assert np.array_equal(whole(third), scene(seed=2))
    for page in (0, 4, -1):
        with pytest.raises(ImageError, match="it has 3; give 1 to 3"):
            open_image(tmp_path / "a.tif", page=page)
    with pytest.raises(ImageError, match="one page"):
        open_image(save(tmp_path / "a.png", encode(".png", scene())), page=2)


def stack(path: Path, axes: str, sizes: tuple[int, ...], kind: str) -> dict[tuple[int, ...], Pixels]:
    """Write grey planes, each another scene; gives them by their place on the axes."""
    planes = {at: scene(seed=row)[..., 1] for row, at in enumerate(np.ndindex(*sizes))}
    data = np.stack(list(planes.values())).reshape(*sizes, 96, 64)
    options = {"imagej": True} if kind == "imagej" else {"ome": True}
    tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": axes + "YX"}, **options)
    return planes


@pytest.mark.parametrize(
    ("axes", "kind"), [("TZC", "ome"), ("CZT", "ome"), ("ZCT", "ome"), ("TCZ", "ome"), ("TZC", "imagej")]
)
def test_a_stack_gives_the_middle_plane_of_the_channel_at_the_first_time(tmp_path: Path, axes: str, kind: str) -> None:
    sizes = {"T": 2, "Z": 5, "C": 3}
    path = tmp_path / "a.ome.tif"
    planes = stack(path, axes, tuple(sizes[axis] for axis in axes), kind)
    refused(path, "3 channels on separate pages")
    for channel in (1, 2, 3):
        source = open_image(path, channel=channel)
        at = {"T": 0, "Z": 2, "C": channel - 1}
        assert np.array_equal(whole(source)[..., 0], planes[tuple(at[axis] for axis in axes)])
        assert source.notes == (
            *(f"channel {channel} of 3 read", "middle focus plane, 3 of 5, read", "time point 1 of 2 read"),
        )
    for channel in (0, 4):
        with pytest.raises(ImageError, match="it has 3; give 1 to 3"):
            open_image(path, channel=channel)
    index = int(np.ravel_multi_index([{"T": 1, "Z": 4, "C": 2}[a] for a in axes], [sizes[a] for a in axes]))
    assert np.array_equal(whole(open_image(path, page=30))[..., 0], planes[tuple(sizes[a] - 1 for a in axes)])
    assert index == 29


def test_a_stack_of_colour_pictures_gives_its_middle_plane_and_its_levels(tmp_path: Path) -> None:
    planes = [scene(seed=seed) for seed in range(4)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        options = {"photometric": "rgb", "tile": (32, 32)}
        sized = {"axes": "ZYXS", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
        writer.write(np.stack(planes), subifds=1, metadata=sized, **options)
        writer.write(np.stack([plane[::2, ::2] for plane in planes]), subfiletype=1, **options)
    source = open_image(tmp_path / "a.ome.tif")
    assert np.array_equal(whole(source), planes[1])
    assert source.notes == ("full resolution of 2 pyramid levels read", "middle focus plane, 2 of 4, read")
    half = open_image(tmp_path / "a.ome.tif", level=1)
    assert np.array_equal(whole(half), planes[1][::2, ::2])
    assert (source.um_per_px, half.um_per_px) == (pytest.approx(0.2), pytest.approx(0.4))
    assert np.array_equal(whole(open_image(tmp_path / "a.ome.tif", page=4)), planes[3])
    with pytest.raises(ImageError, match="level 2 was asked for, it has 2; give 0 to 1"):
        open_image(tmp_path / "a.ome.tif", level=2)


def test_one_channel_of_several_samples_is_shown_grey(tmp_path: Path) -> None:
    pixels = scene()
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 32))
    for channel in (1, 2, 3):
        source = open_image(tmp_path / "a.tif", channel=channel)
        assert np.array_equal(whole(source), np.dstack([pixels[..., channel - 1]] * 3))
        assert source.notes == (f"channel {channel} of 3 shown grey",)
    five = np.dstack([scene(seed=seed)[..., 0] for seed in range(5)]).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "b.tif", five, photometric="minisblack", planarconfig="contig")
    refused(tmp_path / "b.tif", "5 channels of 16 bits")
    assert np.array_equal(whole(open_image(tmp_path / "b.tif", channel=5))[..., 2], scene(seed=4)[..., 0])
    tifffile.imwrite(tmp_path / "c.tif", pixels[..., 0], photometric="miniswhite")
    assert np.array_equal(whole(open_image(tmp_path / "c.tif", channel=1))[..., 0], 255 - pixels[..., 0])
    with pytest.raises(ImageError, match="channel 2 was asked for, it has 1"):
        open_image(tmp_path / "c.tif", channel=2)
    jpeg = save(tmp_path / "a.jpg", encode(".jpg", pixels))
    with pytest.raises(ImageError, match="channel 2 was asked for, but a JPEG is read in colour; leave"):
        open_image(jpeg, channel=2)
    with pytest.raises(ImageError, match="level 1 was asked for, but a JPEG has one level; leave"):
        open_image(jpeg, level=1)
    assert open_image(jpeg, page=1, level=0).size_wh == (64, 96)


def test_a_preview_beside_the_picture_is_no_level_of_it(tmp_path: Path) -> None:
    pixels = scene(256, 256)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, photometric="rgb", tile=(64, 64))
        writer.write(scene(60, 100), photometric="rgb", subfiletype=1)  # a label
        writer.write(cv2.resize(pixels, (85, 85)), photometric="rgb", subfiletype=1)
    assert open_image(tmp_path / "a.tif", level=1).size_wh == (85, 85)
    with pytest.raises(ImageError, match="level 2 was asked for, it has 2"):
        open_image(tmp_path / "a.tif", level=2)


def test_a_damaged_tile_is_an_error_of_its_regions_only(tmp_path: Path) -> None:
    pixels = scene(256, 256)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(128, 128), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].dataoffsets[3]
    with (tmp_path / "a.tif").open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 40)
    source = open_image(tmp_path / "a.tif")
    assert np.array_equal(source.read(0, 0, 128, 256), pixels[:, :128])
    with pytest.raises(ImageError, match=r"a\.tif: is corrupt: tile or strip 3"):
        source.read(100, 100, 60, 60)
    (tmp_path / "a.tif").unlink()
    with pytest.raises(ImageError, match="can't be read"):
        source.read(0, 0, 64, 64)


def test_empty_tiles_are_white_and_noted(tmp_path: Path) -> None:
    pixels = scene(64, 128)

    def tiles() -> Iterator[Pixels | None]:
        yield pixels[:, :64]
        yield None

    tifffile.imwrite(
        tmp_path / "a.tif", tiles(), shape=(64, 128, 3), dtype=np.uint8, photometric="rgb", tile=(64, 64), metadata=None
    )
    source = open_image(tmp_path / "a.tif")
    assert source.notes == ("1 empty tiles shown white",)
    assert np.array_equal(source.read(0, 0, 64, 64), pixels[:, :64])
    assert source.read(64, 0, 64, 64).min() == 255


# Scale


def tiff_with(path: Path, **more: object) -> ImageSource:
    tifffile.imwrite(path, scene(), photometric="rgb", **more)
    return open_image(path)


def test_scale_from_the_tiff_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    per_cm = tiff_with(path, resolution=(40_000, 40_000), resolutionunit="CENTIMETER", metadata=None)
    assert (per_cm.um_per_px, per_cm.scale_origin) == (pytest.approx(0.25), "TIFF resolution")
    per_inch = tiff_with(path, resolution=(254_000, 254_000), resolutionunit="INCH", metadata=None)
    assert per_inch.um_per_px == pytest.approx(0.1)
    assert tiff_with(path, resolution=(40_000, 40_000), resolutionunit="NONE", metadata=None).um_per_px is None
    for dpi in (72, 96, 150, 300, 600):
        printed = tiff_with(path, resolution=(dpi, dpi), resolutionunit="INCH", metadata=None)
        assert (printed.um_per_px, printed.scale_origin, printed.notes) == (None, "", ())


def test_pixels_that_are_not_square_have_no_scale(tmp_path: Path) -> None:
    source = tiff_with(tmp_path / "a.tif", resolution=(40_000, 41_000), resolutionunit="CENTIMETER", metadata=None)
    assert source.um_per_px is None
    assert source.notes == ("TIFF resolution ignored: pixels of 0.25 x 0.2439 um are not square",)
    close = tiff_with(tmp_path / "b.tif", resolution=(40_000, 40_400), resolutionunit="CENTIMETER", metadata=None)
    assert close.um_per_px == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(
    ("size", "unit"), [(0.11, "\u00b5m"), (110, "nm"), (0.00011, "mm"), (0.11, "&#181;m"), (0.11, None)]
)
def test_scale_from_ome(tmp_path: Path, size: float, unit: str | None) -> None:
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}" ' if unit else ""
    text = f'<?xml version="1.0"?><OME><Image><Pixels SizeC="3" PhysicalSizeX="{size}" PhysicalSizeY="{size}" {units}/>'
    source = tiff_with(tmp_path / "a.tif", description=text.encode(), metadata=None)
    assert (source.um_per_px, source.scale_origin) == (pytest.approx(0.11), "OME")


def test_scale_from_files_written_by_others(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", scene(), photometric="rgb", metadata={"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
    )
    assert open_image(tmp_path / "a.ome.tif").um_per_px == pytest.approx(0.2)
    for unit, per_unit in (("micron", 5.0), ("um", 5.0), ("\\u00B5m", 5.0), ("nm", 0.005), ("mm", 5000.0)):
        tifffile.imwrite(
            tmp_path / "b.tif", scene(), imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit}
        )
        source = open_image(tmp_path / "b.tif")
        assert (source.um_per_px, source.scale_origin) == (pytest.approx(0.2), "ImageJ")
    aperio = (
        "Aperio Image Library v10\r\n46000x32914 [0,100 46000x32814] (240x240) JPEG/RGB Q=30|AppMag = 40|MPP = 0.2498"
    )
    source = tiff_with(tmp_path / "c.tif", description=aperio, metadata=None)
    assert (source.um_per_px, source.scale_origin) == (0.2498, "Aperio MPP")


def test_an_entity_bomb_is_only_text(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "0.2"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
    bomb += '<OME><Image><Pixels PhysicalSizeX="&a;" PhysicalSizeY="&b;"/></Image></OME>'
    assert tiff_with(tmp_path / "a.tif", description=bomb, metadata=None).um_per_px is None


def test_scale_from_jpeg_png_and_bmp(tmp_path: Path) -> None:
    jpeg = bytearray(encode(".jpg", scene()))
    assert jpeg[6:10] == b"JFIF"
    jpeg[13:18] = struct.pack(">BHH", 2, 50_000, 50_000)
    source = open_image(save(tmp_path / "a.jpg", bytes(jpeg)))
    assert (source.um_per_px, source.scale_origin) == (pytest.approx(0.2), "JFIF density")
    data = jpeg_with_exif(encode(".jpg", scene()), exif(1, (127_000, 127_000)))
    source = open_image(save(tmp_path / "b.jpg", data))
    assert (source.um_per_px, source.scale_origin) == (pytest.approx(0.2), "Exif resolution")
    physical = chunk(b"pHYs", struct.pack(">IIB", 5_000_000, 5_000_000, 1))
    source = open_image(save(tmp_path / "a.png", png(scene(), 2, physical)))
    assert (source.um_per_px, source.scale_origin) == (pytest.approx(0.2), "PNG pHYs")
    ratio_only = chunk(b"pHYs", struct.pack(">IIB", 5_000_000, 5_000_000, 0))
    assert open_image(save(tmp_path / "b.png", png(scene(), 2, ratio_only))).um_per_px is None
    bmp = bytearray(encode(".bmp", scene()))
    bmp[38:46] = struct.pack("<ii", 5_000_000, 5_000_000)
    assert open_image(save(tmp_path / "a.bmp", bytes(bmp))).um_per_px == pytest.approx(0.2)


# Bad pictures


def refused(path: Path, words: str, limits: ReadLimits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path, limits or ReadLimits())
    message = str(caught.value)
    assert path.name in message
    assert words in message
    assert any(mark in message for mark in ("; ", ": export")), "no remedy"
    return message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"Dear colleague,\nhere are the counts", "text"),
        ("\ufeffpatient;count\n1;2\n".encode(), "not a picture"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n<svg/>", "SVG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"RIFF\0\0\1\0AVI LIST", "video"),
        (b"GIF89a\1\0\1\0", "GIF"),
        (b"PK\x03\x04\x14\0", "ZIP"),
        (b"ZISRAWFILE\0\0", "CZI"),
        (b"\x00\x01\x02\x03" * 20, "unknown format"),
        (b"II*\0", "TIFF"),
        (b"II*\0" + b"\xff" * 60, "TIFF"),
        (b"BM" + b"\0" * 60, "corrupt"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "corrupt"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    refused(save(tmp_path / "smear.jpg", data), words)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photograph"),
        ("a.jpg", b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF picture"),
        ("a.dcm", b"\0" * 128 + b"DICM", "a DICOM file"),
        ("a.lif", b"\x70\0\0\0" + b"\1" * 40, "a Leica LIF file, which is not read"),
        ("a.nd2", b"Dear colleague", "a Nikon ND2 file, which is not read"),
        ("a.j2k", b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    ],
)
def test_pictures_of_other_types_are_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    refused(save(tmp_path / name, data), words)


@pytest.mark.parametrize("name", ["a.dng", "a.NEF", "slide.vsi"])
def test_the_preview_in_a_file_is_not_taken_for_the_picture(tmp_path: Path, name: str) -> None:
    refused(save(tmp_path / name, encode(".tiff", scene())), "which is not read")
    assert open_image(save(tmp_path / "a.heic", encode(".jpg", scene()))).size_wh == (64, 96)


def test_missing_folder_special_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "absent.jpg", "no such file")
    refused(tmp_path, "a folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "neither a file nor a folder")
    path = save(tmp_path / "a.png", encode(".png", scene()))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "no permission")


def truncatable() -> dict[str, bytes]:
    pixels = scene()
    jpeg = encode(".jpg", pixels)
    return {
        "a.jpg": jpeg,
        "progressive.jpg": encode(".jpg", pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "thumbnail.jpg": jpeg_with_exif(jpeg, exif(6) + encode(".jpg", scene(32, 32))),
        "a.png": encode(".png", pixels),
        "a.bmp": encode(".bmp", pixels),
        "a.webp": encode(".webp", pixels),
        "a.tif": encode(".tif", pixels),
    }


@pytest.mark.parametrize("name", truncatable())
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    data = truncatable()[name]
    assert open_image(save(tmp_path / name, data)).size_wh in ((64, 96), (96, 64))
    for kept in {*np.linspace(1, len(data) - 1, 60).astype(int).tolist(), len(data) - 1, len(data) - 2}:
        with pytest.raises(ImageError, match=name):
            open_image(save(tmp_path / name, data[:kept]))


def test_truncation_is_called_by_its_name(tmp_path: Path) -> None:
    grey_ink = np.full((64, 64, 4), 90, np.uint8)
    cmyk = imagecodecs.jpeg8_encode(grey_ink, colorspace="CMYK", outcolorspace="CMYK")
    for name, data in (("cmyk.jpg", cmyk), *truncatable().items()):
        refused(save(tmp_path / name, data[:-40]), "truncated")
    bitmap = truncatable()["a.bmp"]
    refused(save(tmp_path / "a.bmp", bitmap[:-40]), f"{len(bitmap) - 40} of {len(bitmap)} bytes")


def test_a_tiled_tiff_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scene(256, 256), photometric="rgb", tile=(64, 64), compression="jpeg")
    data = (tmp_path / "a.tif").read_bytes()
    refused(save(tmp_path / "a.tif", data[:-100]), "truncated")


def test_a_lost_tag_without_meaning_for_the_pixels_is_noted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scene(), photometric="rgb", datetime="2020:01:01 10:00:00", metadata=None)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].tags["DateTime"].offset
    data[at + 8 : at + 12] = struct.pack("<I", len(data) + 1000)
    source = open_image(save(tmp_path / "a.tif", bytes(data)))
    assert source.notes == ("TIFF tag 306 can't be read and was left out",)
    assert np.array_equal(whole(source), scene())


def test_a_jpeg_with_its_middle_lost_is_refused(tmp_path: Path) -> None:
    data = encode(".jpg", scene(256, 256))
    end = len(data) - 2
    start = data.rindex(b"\xff\xda") + 14
    middle = (start + end) // 2
    refused(save(tmp_path / "a.jpg", data[:middle] + data[end:]), "corrupt")
    stray = data[:end] + b"\0" * 500 + data[end:]
    refused(save(tmp_path / "b.jpg", stray), "corrupt")
    padded = open_image(save(tmp_path / "c.jpg", data[:end] + b"\0" * 4 + data[end:] + b"\0" * 2000))
    assert np.array_equal(whole(padded), whole(open_image(save(tmp_path / "d.jpg", data))))


def test_a_png_with_a_wrong_checksum_or_without_end_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode(".png", scene()))
    data[len(data) // 2] ^= 0x10
    refused(save(tmp_path / "a.png", bytes(data)), "checksum of its part 'IDAT'")
    refused(save(tmp_path / "b.png", png(scene(), 2, end=False)), "IEND")
    short = png(scene(), 2).replace(struct.pack(">II", 64, 96), struct.pack(">II", 64, 97))
    header = short[12:29]
    repaired = short[:29] + struct.pack(">I", zlib.crc32(header)) + short[33:]
    refused(save(tmp_path / "c.png", repaired), "corrupt")


def resized(data: bytes, name: str) -> bytes:
    """The same file whose header claims 30000 x 30000 px (16384 x 16384 for WebP)."""
    if name == "a.jpg":
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", 30_000, 30_000) + data[at + 4 :]
    if name == "a.png":
        header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if name == "a.bmp":  # run-length encoded, so its bytes can't be foretold
        return data[:18] + struct.pack("<iiHHI", 30_000, 30_000, 1, 8, 1) + data[34:]
    extended = b"VP8X" + struct.pack("<IB", 10, 0) + b"\0" * 3 + b"\xff\x3f\0" * 2
    return data[:4] + struct.pack("<I", len(data) - 8 + 18) + b"WEBP" + extended + data[12:]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp"])
def test_a_decompression_bomb_is_refused_before_decoding(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    bomb = save(tmp_path / name, resized(truncatable()[name], name))
    message = refused(bomb, "--max-megapixels", ReadLimits(max_megapixels=200))
    assert "269" in message or "901" in message


def test_a_header_that_lies_about_the_size_is_refused(tmp_path: Path) -> None:
    data = truncatable()["a.jpg"]
    at = data.index(b"\xff\xc0") + 5
    refused(save(tmp_path / "a.jpg", data[:at] + struct.pack(">HH", 400, 400) + data[at + 4 :]), "corrupt")


def test_limits_on_the_side_and_the_bytes(tmp_path: Path) -> None:
    small = save(tmp_path / "a.png", encode(".png", scene(31, 200)))
    refused(small, "at least 32 px")
    assert open_image(small, ReadLimits(min_side_px=31)).size_wh == (200, 31)
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(10**9)  # sparse
    refused(tmp_path / "huge.jpg", "1000 MB", ReadLimits(max_megapixels=10))


def test_unsupported_kinds_say_what_to_do(tmp_path: Path) -> None:
    five = np.zeros((40, 40, 5), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", five, photometric="minisblack", planarconfig="contig")
    assert "export the bright-field picture" in refused(tmp_path / "a.tif", "5 channels of 32 bits")
    stack = np.zeros((3, 40, 40), np.uint16)
    tifffile.imwrite(tmp_path / "b.ome.tif", stack, photometric="minisblack", metadata={"axes": "CYX"})
    refused(tmp_path / "b.ome.tif", "3 channels on separate pages")
    tifffile.imwrite(tmp_path / "c.tif", stack, imagej=True, metadata={"axes": "CYX"})
    refused(tmp_path / "c.tif", "3 channels on separate pages")
    assert open_image(tmp_path / "c.tif", page=2).size_wh == (40, 40)
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((40, 40), np.complex64))
    refused(tmp_path / "d.tif", "expected grey")
    deep = imagecodecs.jpeg_encode(np.zeros((40, 40), np.uint16), bitspersample=12)
    refused(save(tmp_path / "e.jpg", deep), "12-bit JPEG")


@pytest.mark.parametrize("name", truncatable())
def test_random_damage_gives_a_picture_or_an_error_and_nothing_else(tmp_path: Path, name: str) -> None:
    data, rng = truncatable()[name], np.random.default_rng(7)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), int(rng.choice([100, 10**6]))), 4):
            damaged[at] = int(rng.integers(256))
        try:
            outcomes.add(whole(open_image(save(tmp_path / name, bytes(damaged)))).dtype)
        except ImageError as error:
            outcomes.add(str(error)[: len(str(tmp_path))])
    assert outcomes <= {np.dtype(np.uint8), str(tmp_path)}
    assert str(tmp_path) in outcomes


def test_what_others_print_while_a_picture_is_decoded_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decode: Callable[..., Pixels] = cv2.imdecode

    def chatty(*arguments: object) -> Pixels:
        os.write(2, b"progress 50 %\nlibpng warning: iCCP: known incorrect sRGB profile\n")
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", chatty)
    assert np.array_equal(whole(open_image(save(tmp_path / "a.png", encode(".png", scene())))), scene())
    assert capfd.readouterr().err == "progress 50 %\n"


# Sources


def test_array_source() -> None:
    pixels = scene()
    source = ArraySource(pixels, um_per_px=0.2)
    assert (source.size_wh, source.um_per_px, source.sha256, source.notes) == ((64, 96), 0.2, "", ())
    region = source.read(1, 2, 3, 4)
    assert np.array_equal(region, pixels[2:6, 1:4])
    region[:] = 0
    assert np.array_equal(source.read(1, 2, 3, 4), scene()[2:6, 1:4])
    for wrong in (
        pixels[..., 0],
        pixels.astype(np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.dstack([pixels, pixels]),
    ):
        with pytest.raises(ValueError, match="expected"):
            ArraySource(wrong)
    with pytest.raises(ValueError, match="positive"):
        ArraySource(pixels, um_per_px=0)


def test_reading_beyond_the_picture_is_a_value_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scene(), photometric="rgb", tile=(16, 16))
    for source in (ArraySource(scene()), open_image(tmp_path / "a.tif")):
        for region in ((-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 65, 5), (0, 0, 5, 97), (60, 0, 5, 5), (0, 0, 0, 5)):
            with pytest.raises(ValueError, match="region"):
                source.read(*region)


def test_a_turned_jpeg_needs_the_memory_of_two_pictures(tmp_path: Path) -> None:
    pixels = cv2.resize(scene(), (3000, 2000))
    save(tmp_path / "a.jpg", jpeg_with_exif(encode(".jpg", pixels), exif(6)))
    tracemalloc.start()
    open_image(tmp_path / "a.jpg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.nbytes < peak < 2.2 * pixels.nbytes


# Folders


def test_find_images(tmp_path: Path) -> None:
    names = [
        "b.JPG",
        "a.png",
        "sub/c.tif",
        "sub/.hidden.jpg",
        ".cache/d.jpg",
        "notes.txt",
        "e.jpg.part",
        "sub/z/f.webp",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "folder.jpg").mkdir()
    flat = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=False)]
    deep = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=True)]
    assert flat == ["a.png", "b.JPG"]
    assert deep == ["a.png", "b.JPG", "sub/c.tif", "sub/z/f.webp"]
    with pytest.raises(ImageError, match="no such folder"):
        find_images(tmp_path / "absent", recursive=False)


def test_a_folder_is_listed_with_what_is_left_out(tmp_path: Path) -> None:
    names = ["a.png", "b.HEIC", "c.gif", "slide.mrxs", "notes.txt", "table.csv", "a.png.overlay.jpg", "B.OVERLAY.TIF"]
    names += ["drawn/a.png", "drawn/sub/b.png", "drawn/readme.md", "other/d.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = images.list_folder(tmp_path, recursive=True)
    assert [str(path.relative_to(tmp_path)) for path in listing.pictures] == [
        *("a.png", "b.HEIC", "c.gif", "drawn/a.png", "drawn/sub/b.png", "other/d.jpg", "slide.mrxs")
    ]
    assert (listing.overlays, listing.others) == (2, 3)
    assert [path.name for path in find_images(tmp_path, recursive=False)] == ["a.png", "slide.mrxs"]


# Writing


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".tif", ".tiff"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    pixels = scene()
    path = write_picture(tmp_path / f"a.overlay{suffix}", pixels)
    assert path == tmp_path / f"a.overlay{suffix}"
    read = whole(open_image(path)).astype(int)
    assert np.abs(read - pixels).max() <= (25 if suffix.lower().startswith(".j") else 0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    before = path.read_bytes()
    assert write_picture(path, pixels).read_bytes() == before


def test_quality_has_an_effect(tmp_path: Path) -> None:
    fine = write_picture(tmp_path / "a.jpg", scene(), quality=98).stat().st_size
    assert write_picture(tmp_path / "b.jpg", scene(), quality=40).stat().st_size < fine


def test_a_picture_too_long_for_jpeg_becomes_a_tiled_tiff(tmp_path: Path) -> None:
    pixels = cv2.resize(scene(), (65_600, 32))
    path = write_picture(tmp_path / "a.overlay.jpg", pixels)
    assert path == tmp_path / "a.overlay.tif"
    assert [p.name for p in tmp_path.iterdir()] == ["a.overlay.tif"]
    source = open_image(path)
    assert source.size_wh == (65_600, 32)
    assert np.abs(source.read(60_000, 0, 5_600, 32).astype(int) - pixels[:, 60_000:]).mean() < 3
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled


def test_wrong_pixels_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.gif"):
        write_picture(tmp_path / "a.gif", scene())
    with pytest.raises(ValueError, match="uint8 RGB"):
        write_picture(tmp_path / "a.png", scene()[..., 0])
    assert not list(tmp_path.iterdir())


def test_text_and_bytes_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counts.csv"
    images.write_text_atomic(path, "image,n\r\n\u00b5,1\n")
    assert path.read_bytes() == "image,n\r\n\u00b5,1\n".encode()
    images.write_bytes_atomic(path, b"first")
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write(self, data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ImageError, match=r"counts\.csv: can't be written \(No space left on device\); check"):
        images.write_bytes_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["counts.csv"]


def test_writing_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="make the folder"):
        images.write_text_atomic(tmp_path / "absent" / "a.txt", "x")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ImageError, match="a folder has this name"):
        write_picture(tmp_path / "taken.png", scene())
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


def test_a_folder_that_cannot_be_made_names_the_path_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images.make_folder(tmp_path / "new" / "folder").is_dir()
    assert images.make_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ImageError, match=rf"{path}: no folder that can be written .*a file is in the way"):
            images.make_folder(path)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("smearcount.images.writing.tempfile.TemporaryFile", read_only)
    with pytest.raises(ImageError, match="Read-only file system.*choose another folder"):
        images.make_folder(tmp_path / "new")
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_name_that_is_too_long_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    for name in ("a" * 300 + ".png", "\u00fc" * 140 + ".png"):
        with pytest.raises(ImageError, match="can't be written .*name"):
            write_picture(tmp_path / name, scene())
    assert not list(tmp_path.iterdir())


def test_text_that_is_no_unicode_is_escaped(tmp_path: Path) -> None:
    images.write_text_atomic(tmp_path / "a.csv", "M\udcfcller")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == r"M\udcfcller"
    with images.grow_text(tmp_path / "b.csv") as add:
        add("M\udcfcller")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_growing_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.csv"
    with images.grow_text(target) as add:
        add("M\u00fcller\n")
        add("Meier\n")
        assert not target.exists()
    assert target.read_bytes() == "M\u00fcller\nMeier\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["report.csv"]


def grow_half(target: Path, error: BaseException) -> None:
    with images.grow_text(target) as add:
        add("half")
        raise error


def test_a_broken_run_leaves_the_old_file_and_a_stopped_one_what_it_has(tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    target.write_text("old")
    # An error of the reader must not be reported as one of the report.
    for error in (RuntimeError("power cut"), OSError(errno.EIO, "disk of the pictures")):
        with pytest.raises(type(error), match=str(error.args[-1])):
            grow_half(target, error)
        assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]
    with pytest.raises(KeyboardInterrupt):
        grow_half(target, KeyboardInterrupt())
    assert target.read_text() == "old"
    assert images.partial_path(target).read_text() == "half"
    assert {path.name for path in tmp_path.iterdir()} == {"report.csv", "report.partial.csv"}


def test_a_full_disk_is_found_with_the_row_that_filled_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    part = tmp_path / ".report.part"
    part.symlink_to("/dev/full")
    monkeypatch.setattr("smearcount.images.writing._temporary", lambda path: part)
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(self, mode.replace("x", "w")))
    with (
        pytest.raises(ImageError, match=r"report\.csv: can't be written \(No space left"),
        images.grow_text(tmp_path / "report.csv") as add,
    ):
        add("row\n")
    assert not list(tmp_path.iterdir())


def test_targets_are_checked_before_the_work(tmp_path: Path) -> None:
    assert images.check_target(tmp_path / "new" / "r.csv") == tmp_path / "new" / "r.csv"
    (tmp_path / "taken").mkdir()
    with pytest.raises(ImageError, match="taken: .*a folder has this name"):
        images.check_target(tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "taken"]


def linked(folder: Path, name: str, target: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    return folder / name


@pytest.mark.parametrize("there", [True, False], ids=["old", "new"])
def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path, *, there: bool) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for name, write in (
        ("a.csv", lambda path: images.write_text_atomic(path, "new")),
        ("a.png", lambda path: write_picture(path, scene())),
        ("a.tif", lambda path: write_picture(path, scene())),
    ):
        if there:
            (real / name).write_text("old")
        link = linked(tmp_path / "links", name, real / name)
        write(images.check_target(link))
        assert link.is_symlink()
        assert (real / name).read_bytes() not in (b"", b"old")
    with images.replacing(link, durable=True) as temporary:
        assert temporary.parent == real
        temporary.touch()
    assert {path.name for path in real.iterdir()} == {"a.csv", "a.png", "a.tif"}
    loop = linked(tmp_path, "loop.csv", tmp_path / "loop.csv")
    images.write_text_atomic(loop, "new")
    assert loop.read_text() == "new"


def test_a_growing_file_goes_where_a_link_leads(tmp_path: Path) -> None:
    link = linked(tmp_path, "report.csv", tmp_path / "new" / "real.csv")
    with pytest.raises(KeyboardInterrupt):
        grow_half(link, KeyboardInterrupt())
    assert (tmp_path / "new" / "real.partial.csv").read_text() == "half"
    with images.grow_text(link) as add:
        add("whole")
    assert link.is_symlink()
    assert (tmp_path / "new" / "real.csv").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"report.csv", "new"}


def test_a_jpeg_round_trip_is_that_of_the_file_that_would_be_written(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2, 0], pixels[::2, :, 2] = 255, 128
    written = whole(open_image(write_picture(tmp_path / "a.jpg", pixels, 40)))
    assert np.array_equal(through_jpeg(pixels, 40), written)
    assert not np.array_equal(through_jpeg(pixels[..., ::-1], 40)[..., ::-1], written)


def test_a_look_at_a_picture_in_memory_is_no_copy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    held = ArraySource(pixels)
    part = PartSource(held, (10, 20), (50, 30))
    for source, seen in ((held, pixels[24:29, 13:20]), (part, pixels[44:49, 23:30])):
        assert np.array_equal(peek(source, 13, 24, 7, 5), seen)
        assert np.shares_memory(peek(source, 13, 24, 7, 5), pixels)
        assert not np.shares_memory(source.read(13, 24, 7, 5), pixels)
    with pytest.raises(ValueError, match="inside 80 x 60 px"):
        peek(held, 75, 0, 6, 5)
    tifffile.imwrite(tmp_path / "tiled.tif", pixels, tile=(32, 32), photometric="rgb")
    assert np.array_equal(peek(open_image(tmp_path / "tiled.tif"), 13, 24, 7, 5), pixels[24:29, 13:20])
