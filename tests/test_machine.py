"""A fault of the machine is never told as damage of the picture, and the picture is tried again; damage lasts."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from fake_batch import DiscMaker, smears

from smearcount.batch import BatchJob, Failure, run_batch
from smearcount.batch.attempts import attempt
from smearcount.errors import ChangedError, ImageError
from smearcount.images import is_of_machine, machine, open_image, tiff

SVS = "Aperio Image Library v11.2.1\r\n96x96 [0,0 96x96] (48x48) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2498"
NUMBERS = (errno.EIO, errno.EMFILE, errno.ESTALE)


def picture(path: Path, **more: Any) -> Path:
    """A picture of noise that can be read: a tiled TIFF, a slide by Aperio, or what OpenCV writes."""
    pixels = np.random.default_rng(0).integers(90, 200, (96, 96, 3), dtype=np.uint8)
    if path.suffix not in (".tif", ".svs"):
        cv2.imwrite(str(path), pixels)
        return path
    said = {"description": SVS} if path.suffix == ".svs" else {}
    options = {"tile": (48, 48), "compression": "deflate", "metadata": None} | said | more
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    return path


def outcome(path: Path) -> Any:
    """What a batch makes of reading all pixels of a picture."""

    def read(path: Path) -> int:
        source = open_image(path)
        return source.read(0, 0, *source.size_wh).size

    return attempt(path, read, lambda _, size: size)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def no_memory() -> cv2.error:
    error = cv2.error("Failed to allocate 132710400 bytes")
    error.code, error.err = cv2.Error.StsNoMem, "Failed to allocate 132710400 bytes"
    return error


def not_of_the_picture(found: Any, words: str) -> bool:
    assert isinstance(found, Failure)
    return words in found.reason and "corrupt" not in found.reason and not found.lasting


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.svs"])
def test_a_disk_that_fails_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    path, error = picture(tmp_path / name), OSError(number, os.strerror(number))
    owner, method = (Path, "read_bytes") if name == "a.png" else (tiff.tifffile.TiffFile, "__init__")
    assert outcome(path) == 96 * 96 * 3
    monkeypatch.setattr(owner, method, raising(error))
    assert not_of_the_picture(outcome(path), f"{path}: can't be read ({os.strerror(number)}); check the disk")
    monkeypatch.setattr(Path, "open", raising(error))
    assert not_of_the_picture(outcome(path), os.strerror(number))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_full_memory_in_a_decoder_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = picture(tmp_path / name)
    monkeypatch.setattr(cv2, "imdecode", raising(no_memory()))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", raising(ValueError("tj3Decompress8(): Memory allocation failure")))
    assert not_of_the_picture(outcome(path), f"{path}: not enough memory for this picture")


def test_no_memory_for_the_pixels_of_a_jpeg_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.jpg")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", raising(MemoryError()))
    assert not_of_the_picture(outcome(path), f"{path}: not enough memory for this picture")


def test_full_memory_in_a_tile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.tif")
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda _: raising(MemoryError())))
    assert not_of_the_picture(outcome(path), f"{path}: not enough memory for this picture")


def test_full_memory_of_a_graphics_card_is_told_as_such(tmp_path: Path) -> None:
    import torch

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ):
        found = attempt(tmp_path / "a.png", raising(error), lambda *_: None)
        words = "out of memory on the graphics card; give fewer --workers, --batch-size 1, or --device cpu"
        assert found == Failure(f"{tmp_path / 'a.png'}: {words}")
    other = attempt(tmp_path / "a.png", raising(RuntimeError("a fault")), lambda *_: None)
    assert "please report it as a fault" in other.reason


def test_a_decoder_without_a_word_may_have_lacked_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tiled = picture(tmp_path / "a.webp"), picture(tmp_path / "a.tif")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda _: raising(ValueError("returned NULL"))))
    for each in (path, tiled):
        found = outcome(each)
        assert found.lasting
        assert "is corrupt" in found.reason
    monkeypatch.setattr(machine, "_DECODER_BYTES", 2**40)
    assert all(not_of_the_picture(outcome(each), "not enough memory") for each in (path, tiled))


def test_the_memory_that_is_asked_for_is_that_of_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG 2000 needs most: three samples of four bytes a pixel, and three bytes of the picture itself."""
    asked = list[int]()
    monkeypatch.setattr(machine, "np", SimpleNamespace(empty=lambda size, _: asked.append(size), uint8=np.uint8))
    machine.check_memory(1000)
    assert 15_000 <= asked[0] < 20_000


def test_a_slide_is_tried_again_once_the_library_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.svs")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "openslide", None)
        assert not_of_the_picture(outcome(path), "not installed; python -m pip install")
    assert outcome(path) == 96 * 96 * 3
    told = openslide.OpenSlideError(f"Couldn't open {path}: Too many open files")
    for method in ("read_region", "__init__"):
        monkeypatch.setattr(openslide.OpenSlide, method, raising(told))
        assert not_of_the_picture(outcome(path), "Too many open files); check the disk")
    monkeypatch.setattr(openslide.OpenSlide, "detect_format", raising(told))
    assert not_of_the_picture(outcome(path), "Too many open files); check the disk")


def test_damage_lasts(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.tif", "a.svs"):
        path = picture(tmp_path / name)
        data = path.read_bytes()
        for kept in (len(data) // 2, 20):
            path.write_bytes(data[:kept])
            found = outcome(path)
            assert isinstance(found, Failure), name
            assert found.lasting, found.reason
    path = picture(tmp_path / "b.tif")
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.dataoffsets[2]
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 400)
    assert outcome(path).lasting


def test_any_cause_decides() -> None:
    def chain(*errors: Exception) -> Exception:
        for error, cause in zip(errors, errors[1:], strict=False):
            error.__cause__ = cause
        return errors[0]

    assert is_of_machine(chain(ImageError("a"), ValueError("b"), OSError(errno.EIO, "c")))
    assert is_of_machine(chain(ImageError("a"), ImportError("b")))
    assert is_of_machine(chain(ImageError("a"), no_memory()))
    assert is_of_machine(chain(ChangedError("a"), ValueError("b")))
    assert not is_of_machine(chain(ImageError("a: Too many open files"), ValueError("out of memory")))
    assert not is_of_machine(OSError(errno.EINVAL, "a seek to nowhere"))
    assert not is_of_machine(cv2.error("a fault of another kind"))


def test_a_batch_tries_again_what_the_machine_failed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, log = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "log"
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:200])
    job = BatchJob(folder, tmp_path / "r.csv")
    with monkeypatch.context() as full:
        full.setattr(cv2, "imdecode", raising(no_memory()))
        failed = run_batch(DiscMaker(), job).failed
    assert ["not enough memory" in reason for _, reason in failed] == [True, True, False]
    again = run_batch(DiscMaker(log), job)
    assert [name for name, _ in again.failed] == ["c.png"]
    assert log.read_text().split() == ["a.png", "b.png"]
