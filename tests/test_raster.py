"""What the decoders say is heard with and without files in memory, and nobody else's words are lost."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from smearcount.errors import ImageError
from smearcount.images import open_image
from smearcount.images.raster import _decoders_heard


@pytest.fixture(params=["memory", "disk"])
def _scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "disk":
        monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.mark.usefixtures("_scratch")
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


@pytest.mark.usefixtures("_scratch")
def test_words_of_others_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    open_before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(3):
        with _decoders_heard() as spoken:
            os.write(2, b"a word of somebody else\nCorrupt JPEG data: premature end of data segment\n")
        assert spoken == ["Corrupt JPEG data: premature end of data segment\n"]
    with _decoders_heard() as spoken:
        pass
    assert spoken == []
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a word of somebody else\n" * 3 + "afterwards\n"
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == len(open_before)
