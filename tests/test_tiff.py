"""TIFFs as other programs write them, made here: pages, levels, sparse tiles and odd samples of known pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from conftest import whole

from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images import ReadLimits, open_image, tiff
from smearcount.images.pixels import orient


def scene(height: int = 96, width: int = 64, seed: int = 0) -> Pixels:
    """Soft coloured noise, `(height, width, 3) uint8 RGB`, from 60 to 230."""
    coarse = np.random.default_rng(seed).integers(60, 231, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


# Samples


def test_signed_8_bit_samples_are_read(tmp_path: Path) -> None:
    signed = (scene().astype(np.int16) - 128).astype(np.int8)
    tifffile.imwrite(tmp_path / "a.tif", signed, photometric="rgb", metadata=None)
    source = open_image(tmp_path / "a.tif")
    assert "8 bit range scaled from" in source.notes[-1]
    assert np.abs(whole(source)[..., 0].astype(int) - cv2.normalize(scene()[..., 0], None, 0, 255, 32)).max() < 16


@pytest.mark.parametrize("darkest", [200, 30_000, 65_000])
def test_16_bits_with_white_as_zero_are_as_bright_as_with_black_as_zero(tmp_path: Path, darkest: int) -> None:
    ink = np.rint(np.linspace(0, darkest, 64 * 96)).astype(np.uint16).reshape(96, 64)
    tifffile.imwrite(tmp_path / "white.tif", ink, photometric="miniswhite", metadata=None)
    tifffile.imwrite(tmp_path / "black.tif", 65_535 - ink, photometric="minisblack", metadata=None)
    white, black = (open_image(tmp_path / f"{name}.tif") for name in ("white", "black"))
    assert white.notes == black.notes == ("16 bit range scaled from 0 to 65535",)
    assert np.array_equal(whole(white), whole(black))


def test_a_header_with_two_predictors_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scene(), photometric="rgb", metadata=None, extratags=[(65000, "H", 2, (1, 1), True)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<HHI", 65000, 3, 2), struct.pack("<HHI", 317, 3, 2)))
    with pytest.raises(ImageError, match="is corrupt or no TIFF"):
        open_image(path)


def test_a_header_of_many_tile_widths_is_no_fault_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    said = "Aperio Image Library v11\r\n64x96 (32x32) JPEG/RGB Q=70|MPP = 0.1"
    tifffile.imwrite(path, scene(), photometric="rgb", tile=(32, 32), metadata=None, description=said)
    one, many = struct.pack("<HHI", 322, 4, 1), struct.pack("<HHI", 322, 4, 2000)
    path.write_bytes(path.read_bytes().replace(one, many))
    with pytest.raises(ImageError, match=r"a\.svs: "):
        open_image(path)


def test_pages_in_a_circle_are_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for seed in range(2):
            writer.write(scene(seed=seed), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[1].offset + 2 + 12 * len(file.pages[1].tags)
    data = bytearray(path.read_bytes())
    data[last : last + 4] = struct.pack("<I", first)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="is corrupt: one of its pages is followed by an earlier one"):
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


@pytest.mark.parametrize("limits", [ReadLimits(), ReadLimits(max_megapixels=0.002)], ids=["held", "by region"])
@pytest.mark.parametrize("alpha_bits", [12, 16])
def test_alpha_has_as_many_bits_as_it_uses(tmp_path: Path, alpha_bits: int, limits: ReadLimits) -> None:
    pixels = scene()
    cover = np.tile(np.linspace(0, 1, 64), (96, 1))
    samples = np.dstack([np.rint(pixels * (4095 / 255)), np.rint(cover * (2**alpha_bits - 1))]).astype(np.uint16)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    cv2.imwrite(str(tmp_path / "a.png"), samples[..., [2, 1, 0, 3]])
    expected = pixels * cover[..., None] + 255 * (1 - cover[..., None])
    source = open_image(tmp_path / "a.tif", limits)
    assert np.abs(whole(source) - expected).max() <= 2
    assert np.abs(whole(open_image(tmp_path / "a.png")) - expected).max() <= 2
    assert np.array_equal(source.read(10, 20, 30, 40), whole(source)[20:60, 10:40])


def test_a_channel_of_ink_is_not_shown_alone(tmp_path: Path) -> None:
    ink = np.dstack([scene(), scene(seed=1)[..., 0]])
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated", metadata=None)
    assert open_image(tmp_path / "a.tif").notes == ("CMYK converted without a colour profile",)
    with pytest.raises(ImageError, match=r"has channels of ink \(CMYK\), which are not shown alone; leave"):
        open_image(tmp_path / "a.tif", channel=2)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_by_aperio_has_the_colours_of_its_compression(
    tmp_path: Path, compression: int, photometric: str
) -> None:
    pixels = scene(64, 96)
    ycbcr = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    stored = ycbcr if compression == 33003 else pixels
    tile = imagecodecs.jpeg2k_encode(stored.copy(), codecformat="j2k", reversible=True, mct=False, level=0)
    given = {"shape": stored.shape, "dtype": np.uint8, "tile": (64, 96), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", iter([tile]), photometric=photometric, compression=compression, **given)
    assert np.abs(whole(open_image(tmp_path / "a.tif")).astype(int) - pixels).max() <= 2


def test_the_colours_of_a_palette_are_kept(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(32, 8).repeat(4, axis=1)
    for step in (256, 257):
        colours = np.tile(np.arange(256) * step, (3, 1)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", levels, photometric="palette", colormap=colours, metadata=None)
        assert np.array_equal(whole(open_image(tmp_path / "a.tif"))[..., 1], levels)


def test_a_small_limit_is_compared_with_more_than_whole_megapixels(tmp_path: Path) -> None:
    options = {"photometric": "rgb", "compression": "deflate", "rowsperstrip": 700, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", scene(700, 900), **options)
    with pytest.raises(ImageError, match=r"are 0\.63 megapixels, more than the limit of 0\.5; allow it with .* 1"):
        open_image(tmp_path / "a.tif", ReadLimits(max_megapixels=0.5))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("rows", "by_region"), [(96, False), (16, True)])
def test_a_picture_in_one_strip_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, rows: int, by_region: bool
) -> None:
    monkeypatch.setattr(tiff, "_HELD_MEGAPIXELS", 0.001)
    turned = {"extratags": [(274, "H", 1, orientation, True)]}
    options = {"photometric": "rgb", "compression": "deflate", "rowsperstrip": rows, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", scene(), **options, **turned)
    assert isinstance(open_image(tmp_path / "a.tif"), tiff.TiffSource) == by_region


# Pages, levels and planes


def half(pixels: Pixels, step: int = 2) -> Pixels:
    return pixels[::step, ::step].copy()


def write_pages(path: Path, *pages: tuple[npt.NDArray[np.generic], dict[str, object]]) -> Path:
    """A TIFF of pages in tiles, each with options of its own; grey where it has no colour axis."""
    with tifffile.TiffWriter(path) as writer:
        for pixels, options in pages:
            meant = "rgb" if pixels.ndim == 3 else "minisblack"
            writer.write(pixels, photometric=meant, tile=(32, 32), metadata=None, **options)
    return path


FLAGGED: dict[str, object] = {"subfiletype": 1}


def ome(*pictures: str, head: str = "") -> dict[str, object]:
    """OME-XML of pictures of 256 x 192 px, each given as attributes of `Pixels` and what is inside it."""
    size = 'DimensionOrder="XYCZT" SizeX="256" SizeY="192"'
    bodies = [f"<Image><Pixels {size} {each.replace('|', '>', 1)}</Pixels></Image>" for each in pictures]
    return {"description": f'<?xml version="1.0"?><OME xmlns="x" {head}>{"".join(bodies)}</OME>'.encode()}


def um(size: float) -> str:
    return f'PhysicalSizeX="{size}" PhysicalSizeY="{size}"'


ONE = 'SizeC="3" SizeZ="1" SizeT="1"'


def test_each_picture_of_an_ome_tiff_has_its_own_scale(tmp_path: Path) -> None:
    text = ome(
        *(f'{ONE} {um(0.1)} | <TiffData IFD="0"/>', f'{ONE} {um(0.2)} | <TiffData IFD="1" PlaneCount="1"/>'),
        f'{ONE} | <TiffData IFD="2"/>',
    )
    pages = [scene(192, 256, seed) for seed in range(3)]
    path = write_pages(tmp_path / "a.ome.tif", (pages[0], text), (pages[1], {}), (pages[2], {}))
    assert [open_image(path, page=n).um_per_px for n in (1, 2, 3)] == [0.1, 0.2, None]
    assert open_image(path).um_per_px == 0.1


def test_of_several_pictures_of_an_ome_tiff_the_largest_is_read(tmp_path: Path) -> None:
    text = ome(f'{ONE} {um(0.1)} | <TiffData IFD="0"/>', f'{ONE} {um(0.2)} | <TiffData IFD="1"/>')
    label_first = cast(bytes, text["description"]).replace(b'"256" SizeY="192"', b'"96" SizeY="64"', 1)
    label, slide = scene(64, 96), scene(192, 256, seed=1)
    read = open_image(write_pages(tmp_path / "a.ome.tif", (label, {"description": label_first}), (slide, {})))
    assert (read.size_wh, read.um_per_px) == ((256, 192), 0.2)
    assert "picture 2 of 2 read, the largest" in read.notes


def test_ome_attributes_in_single_quotes_are_read(tmp_path: Path) -> None:
    text = str(ome(f"{ONE} {um(0.1)} | <TiffData/>")["description"], "ascii").replace('"', "'")
    path = write_pages(tmp_path / "a.ome.tif", (scene(192, 256), {"description": text}))
    assert (open_image(path).um_per_px, open_image(path).scale_origin) == (0.1, "OME")


@pytest.mark.parametrize(
    ("told", "note"),
    [
        (um(2.5), "OME 2.5 um a pixel not believed"),
        (um(0.01), "OME 0.01 um a pixel not believed"),
        (um(0.1) + ' PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"', "OME 0.0001 um a pixel not believed"),
        (um(0.1) + ' PhysicalSizeXUnit="parsec" PhysicalSizeYUnit="parsec"', "OME ignored: unknown unit 'parsec'"),
        ('PhysicalSizeX="0.1"', "OME ignored: it tells only one side of a pixel"),
        (um(0.1) + ' PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"', ""),
        ("", ""),
    ],
)
def test_a_size_in_ome_that_is_not_believed_is_noted(tmp_path: Path, told: str, note: str) -> None:
    source = open_image(write_pages(tmp_path / "a.tif", (scene(192, 256), ome(f"{ONE} {told} | <TiffData/>"))))
    assert (source.um_per_px, source.notes) == (None, (note,) if note else ())


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected", "note"),
    [
        *((name, 5.0, 0.2, "") for name in ("micrometers", "micrometre", "Micrometres", "micrometer")),
        ("cubits", 5.0, None, "ImageJ ignored: unknown unit 'cubits'"),
        ("micron", 0.2, None, "ImageJ 5 um a pixel not believed"),
        *((name, 72.0, None, "") for name in ("pixel", "inch", "")),
    ],
)
def test_units_of_imagej(tmp_path: Path, unit: str, per_unit: float, expected: float | None, note: str) -> None:
    told = {"resolution": (per_unit, per_unit), "metadata": {"unit": unit}}
    tifffile.imwrite(tmp_path / "a.tif", scene(), imagej=True, **told)
    source = open_image(tmp_path / "a.tif")
    assert (source.um_per_px, source.notes) == (pytest.approx(expected), (note,) if note else ())


def test_all_planes_of_an_imagej_stack_have_the_scale_of_the_first(tmp_path: Path) -> None:
    told = {"description": "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\n", "resolution": (5.0, 5.0)}
    path = write_pages(tmp_path / "a.tif", *((scene(seed=n), {} if n else told) for n in range(3)))
    assert [open_image(path, page=n).um_per_px for n in (None, 1, 2, 3)] == pytest.approx([0.2] * 4)


def test_a_smaller_page_of_a_slide_has_the_scale_times_the_reduction(tmp_path: Path) -> None:
    full, said = scene(256, 384), "Aperio Image Library v11\r\n384x256 (32x32) {}JPEG/RGB Q=70|AppMag = 40|MPP = 0.1"
    path = write_pages(
        tmp_path / "a.svs",
        (full, {"description": said.format("")}),
        (half(full, 3), {"description": said.format("-> 128x86 ")}),
        (half(full), {"description": "Aperio Image Library v11\r\n384x256 -> 192x128 "}),
        (half(full, 4), {}),
        (scene(100, 120), {}),
    )
    assert [open_image(path, page=n).um_per_px for n in range(1, 6)] == pytest.approx([0.1, 0.3, 0.2, 0.4, None])


def test_another_page_does_not_take_the_scale_of_the_first(tmp_path: Path) -> None:
    told = {"resolution": (50_000, 50_000), "resolutionunit": "CENTIMETER"}
    path = write_pages(tmp_path / "a.tif", (scene(), told), (scene(seed=1), {}), (scene(100, 200), {}))
    assert [open_image(path, page=n).um_per_px for n in (1, 2, 3)] == [pytest.approx(0.2), None, None]


def test_what_is_too_coarse_to_count_is_refused(tmp_path: Path) -> None:
    full = scene(512, 768)
    told = {"resolution": (12_500, 12_500), "resolutionunit": "CENTIMETER"}
    path = write_pages(tmp_path / "a.tif", (full, told), *((half(full, step), FLAGGED) for step in (2, 4)))
    assert open_image(path, level=1).um_per_px == pytest.approx(1.6)
    assert open_image(path, page=2).um_per_px == pytest.approx(1.6)
    with pytest.raises(ImageError, match=r"level 2 is 3\.2 um a pixel, too coarse to count; give a finer --level"):
        open_image(path, level=2)
    with pytest.raises(ImageError, match=r"page 3 is 3\.2 um a pixel, too coarse to count; give a finer --page"):
        open_image(path, page=3)
    for choice in ({"level": 2}, {"page": 3}):
        given = open_image(path, ReadLimits(scale_given=True), **choice)
        assert given.um_per_px is None
        assert "TIFF resolution 3.2 um a pixel not believed" in given.notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_level_is_turned_as_the_full_resolution(tmp_path: Path, orientation: int) -> None:
    turned = {"extratags": [(274, "H", 1, orientation, True)]}
    upright = scene(192, 256)
    stored = [orient(each, orientation) for each in (upright, half(upright), half(upright, 4))]
    if orientation in (6, 8):  # a quarter turn is undone by the one the other way
        stored = [orient(each, 14 - orientation) for each in (upright, half(upright), half(upright, 4))]
    pages = zip(stored, (turned, FLAGGED, {**FLAGGED, "extratags": [(274, "H", 1, 1, True)]}), strict=True)
    path = write_pages(tmp_path / "a.tif", *((pixels.copy(), options) for pixels, options in pages))
    assert np.array_equal(whole(open_image(path)), upright)
    assert np.array_equal(whole(open_image(path, level=1)), half(upright))
    assert np.array_equal(whole(open_image(path, level=2)), stored[2])


def test_the_levels_of_two_pictures_are_told_apart(tmp_path: Path) -> None:
    a, b = scene(192, 256, 0), scene(192, 256, 1)
    path = write_pages(tmp_path / "a.tif", (a, {}), (half(a), FLAGGED), (b, {}), (half(b), FLAGGED))
    for page, pixels in ((None, a), (1, a), (3, b)):
        assert np.array_equal(whole(open_image(path, page=page, level=1)), half(pixels))
        with pytest.raises(ImageError, match="level 2 was asked for, it has 2"):
            open_image(path, page=page, level=2)
    together = write_pages(tmp_path / "b.tif", (a, {}), (b, {}), (half(a), FLAGGED), (half(b), FLAGGED))
    assert np.array_equal(whole(open_image(together, page=2, level=1)), half(b))
    for rest in ([(b, {}), (half(b), FLAGGED)], [(half(a), FLAGGED), (half(b), FLAGGED)]):
        path = write_pages(tmp_path / "c.tif", (a, {}), *rest)
        assert np.array_equal(whole(open_image(path)), a)
        with pytest.raises(ImageError, match="can't be told which page of its size it is; name that with --page N"):
            open_image(path, level=1)


def test_the_levels_of_channels_on_pages_are_told_apart(tmp_path: Path) -> None:
    planes = [scene(192, 256, seed)[..., 0] for seed in range(3)]
    text = ome(f'SizeC="3" SizeZ="1" SizeT="1" {um(0.1)} | <TiffData/>')
    options = [{**text}, {}, {}]
    path = write_pages(
        tmp_path / "a.ome.tif",
        *zip(planes, options, strict=True),
        *((half(each), FLAGGED) for each in planes),
        *((half(each, 4), FLAGGED) for each in planes),
    )
    for channel in (1, 2, 3):
        for level in (0, 1, 2):
            source = open_image(path, channel=channel, level=level)
            assert np.array_equal(whole(source)[..., 0], half(planes[channel - 1], 2**level))
            assert source.um_per_px == pytest.approx(0.1 * 2**level)


def test_planes_are_where_ome_says(tmp_path: Path) -> None:
    planes = [scene(192, 256, seed)[..., 0] for seed in range(3)]
    at = "".join(f'<TiffData FirstC="{c}" IFD="{2 - c}" PlaneCount="1"/>' for c in range(3))
    channels = ome(f'SizeC="3" SizeZ="1" SizeT="1" | {at}')
    path = write_pages(tmp_path / "a.ome.tif", (planes[0], channels), (planes[1], {}), (planes[2], {}))
    for channel in (1, 2, 3):
        assert np.array_equal(whole(open_image(path, channel=channel))[..., 0], planes[3 - channel])
    at = '<TiffData FirstZ="1" IFD="0" PlaneCount="2"/><TiffData FirstZ="0" IFD="2"/>'
    focus = ome(f'SizeC="1" SizeZ="3" SizeT="1" | {at}')
    path = write_pages(tmp_path / "b.ome.tif", (planes[0], focus), (planes[1], {}), (planes[2], {}))
    assert np.array_equal(whole(open_image(path))[..., 0], planes[0])
    assert open_image(path).notes == ("middle focus plane, 2 of 3, read",)
    last = ome('SizeC="1" SizeZ="1" SizeT="1" | <TiffData IFD="1"/>')
    path = write_pages(tmp_path / "c.ome.tif", (planes[0], last), (planes[1], {}))
    assert np.array_equal(whole(open_image(path))[..., 0], planes[1])


@pytest.mark.parametrize("known_by", ["name", "uuid"])
def test_planes_in_other_files_are_named(tmp_path: Path, known_by: str) -> None:
    at = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="c{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(3)
    )
    name = {"name": "c1.ome.tif", "uuid": "renamed.ome.tif"}[known_by]
    head = {"name": "", "uuid": 'UUID="urn:uuid:1"'}[known_by]
    grey = scene(192, 256)[..., 0]
    path = write_pages(tmp_path / name, (grey, ome(f'SizeC="3" SizeZ="1" SizeT="1" {um(0.1)} | {at}', head=head)))
    with pytest.raises(ImageError, match="3 channels on separate pages"):
        open_image(path)
    source = open_image(path, channel=2)
    assert (source.um_per_px, source.notes) == (0.1, ("channel 2 of 3 read",))
    assert np.array_equal(whole(source)[..., 0], grey)
    with pytest.raises(ImageError, match=r"channel 3 of 3 is in the file c2\.ome\.tif; give that one"):
        open_image(path, channel=3)
    assert open_image(path, page=1).um_per_px == 0.1


def test_the_one_file_that_ome_names_is_this_one(tmp_path: Path) -> None:
    at = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="before.ome.tif">urn:uuid:1</UUID></TiffData>'
    path = write_pages(tmp_path / "after.ome.tif", (scene(192, 256), ome(f"{ONE} {um(0.1)} | {at}")))
    assert (open_image(path).um_per_px, open_image(path).notes) == (0.1, ())


def test_a_stack_with_one_page_says_so(tmp_path: Path) -> None:
    planes = np.stack([scene(seed=seed)[..., 0] for seed in range(3)])
    tifffile.imwrite(tmp_path / "z.tif", planes, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    source = open_image(tmp_path / "z.tif")
    assert source.notes == ("page 1 of 1 read: the middle one of 3 planes is no page of this file",)
    assert np.array_equal(whole(source)[..., 0], planes[0])
    tifffile.imwrite(tmp_path / "c.tif", planes, imagej=True, metadata={"axes": "CYX"}, truncate=True)
    with pytest.raises(ImageError, match="3 channels on separate pages"):
        open_image(tmp_path / "c.tif")
    assert np.array_equal(whole(open_image(tmp_path / "c.tif", channel=1))[..., 0], planes[0])
    with pytest.raises(ImageError, match="channel 2 of 3 is on no page of its own; save"):
        open_image(tmp_path / "c.tif", channel=2)


def test_an_ome_text_of_nonsense_is_only_text(tmp_path: Path) -> None:
    for nonsense in (
        'SizeT="99999999999" SizeZ="99999999999" | <TiffData PlaneCount="99999999999"/>',
        'SizeC="-1" SizeZ="x" SizeT="" | <TiffData IFD="-3" FirstC="9"/>',
        'SizeZ="2" | <TiffData IFD="99999999999" PlaneCount="2"/>',
    ):
        path = write_pages(tmp_path / "a.ome.tif", (scene(192, 256), ome(nonsense)))
        assert np.array_equal(whole(open_image(path)), scene(192, 256))


@pytest.mark.parametrize(("layout", "left"), [({}, 1), ({"compression": "zlib"}, 3), ({"tile": (32, 32)}, 3)])
def test_pages_lost_with_the_end_of_a_file_are_told(tmp_path: Path, layout: dict[str, Any], left: int) -> None:
    pages = np.stack([scene(64, 96, seed) for seed in range(5)])
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pages, photometric="rgb", **layout)
    assert open_image(path).notes == ("page 1 of 5 read",)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 45 // 100])
    source = open_image(path)
    told = f"the file is truncated or corrupt behind page {left}: further pages can't be read"
    assert source.notes == (*[f"page 1 of {left} read"] * (left > 1), told)
    assert np.array_equal(whole(source), pages[0])


# Threads


def without_tag(path: Path, number: int, **more: Any) -> Path:
    """A TIFF of which the values of a tag lie beyond the end of the file."""
    tifffile.imwrite(path, scene(), photometric="rgb", metadata=None, **more)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[number].offset
    data[at + 8 : at + 12] = struct.pack("<I", len(data) + 1000)
    path.write_bytes(data)
    return path


def test_what_tifffile_says_of_a_file_is_told_of_no_other_that_is_opened_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "good.tif"
    tifffile.imwrite(good, scene(), photometric="rgb", metadata=None)
    broken = without_tag(tmp_path / "broken.tif", 258)
    noted = without_tag(tmp_path / "noted.tif", 306, datetime="2020:01:01 10:00:00")
    pages_of, others = tiff._pages_of, []

    def pages_while_others_are_read(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
        pages = pages_of(file)
        monkeypatch.setattr(tiff, "_pages_of", pages_of)
        with ThreadPoolExecutor(1) as other:
            others.extend([other.submit(open_image, path) for path in (broken, noted)])
            other.submit(tifffile.tifffile.logger().warning, "a word to somebody else")
        return pages

    monkeypatch.setattr(tiff, "_pages_of", pages_while_others_are_read)
    assert open_image(good).notes == ()
    with pytest.raises(ImageError, match=r"broken\.tif: is truncated or corrupt: its tag 258 can't be read"):
        others[0].result()
    assert others[1].result().notes == ("TIFF tag 306 can't be read and was left out",)
    assert caplog.messages == ["a word to somebody else"]


def test_files_that_threads_open_at_once_are_told_apart(tmp_path: Path) -> None:
    good = tmp_path / "good.tif"
    tifffile.imwrite(good, scene(), photometric="rgb", metadata=None)
    broken = without_tag(tmp_path / "broken.tif", 258)

    def is_read(path: Path) -> bool:
        try:
            return bool(open_image(path).size_wh)
        except ImageError:
            return False

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(is_read, [good, broken] * 100)) == [True, False] * 100
