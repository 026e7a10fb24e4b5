"""What PyTorch does where the network is: streams of a graphics card, and windows sampled there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smearcount.cards import find_model
from smearcount.config import Settings
from smearcount.images import ArraySource, open_image
from smearcount.patches import sample_window
from smearcount.runtimes import TorchRuntime
from smearcount.runtimes.pytorch import _Lanes


class Card:
    """In the place of `torch.cuda`: it notes what is asked of its streams, and by which."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.streams = 0
        self.local = threading.local()

    def note(self, what: str) -> None:
        self.notes.append((getattr(self.local, "stream", "network"), what))

    def Stream(self, device: Any) -> Any:  # noqa: N802
        self.streams += 1
        return self.lane(("there", "back")[self.streams - 1])

    def lane(self, name: str) -> Any:
        def wait(what: Any) -> None:
            self.notes.append((name, f"waits for {what}"))

        def record() -> str:
            self.notes.append((name, "event"))
            return "event"

        return SimpleNamespace(
            name=name, wait_stream=lambda other: wait(other.name), wait_event=wait, record_event=record
        )

    def current_stream(self, device: Any) -> Any:
        return self.lane(getattr(self.local, "stream", "network"))

    @contextmanager
    def stream(self, lane: Any) -> Iterator[None]:
        self.local.stream = lane.name
        try:
            yield
        finally:
            del self.local.stream


def test_what_goes_to_a_graphics_card_and_comes_back_has_a_stream_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which streams wait for each other; the tensors stay on the processor."""
    run, card = TorchRuntime(find_model(Settings().detector), threads=1, levels="planes"), Card()
    for name in ("pin_memory", "record_stream"):
        monkeypatch.setattr(torch.Tensor, name, lambda given, *_, name=name: (card.note(name), given)[1])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96)).astype(np.uint8)
    expected = run(pixels)[0]
    run._road = _Lanes(card, torch.device("cpu"))
    assert np.array_equal(run(pixels)[0], expected)
    sent = [("there", "pin_memory"), ("network", "waits for there"), ("network", "record_stream"), ("network", "event")]
    fetched = [("back", "waits for event"), ("back", "record_stream")]
    assert card.notes == sent + fetched * (len(card.notes) // 2 - 2)
    assert len(card.notes) > len(sent)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("side_px", [30.0, 70.4, 111.3, 300.7])
def test_windows_sampled_by_the_network_are_those_of_the_patches(turn: int, side_px: float) -> None:
    """Enlarged, and shrunk from several samples a pixel; in the middle, at the border, and beyond it."""
    classifier = find_model("red-cells")
    run = TorchRuntime(classifier, threads=1, levels="views")
    source = open_image(Path(__file__).parents[1] / "sample_smears" / "normal.jpg")
    pixels = source.read(0, 0, 400, 320)
    places = np.array([[200.3, 150.8], [5.5, 3.2], [399.0, 316.6], [60.0, 310.1]], np.float32)
    planes = run._windows(torch.from_numpy(pixels), torch.from_numpy(places), side_px, 64, turn)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (classifier.card.mean, classifier.card.std))
    for (x, y), found in zip(places.tolist(), planes.numpy(), strict=True):
        expected = np.rot90(sample_window(ArraySource(pixels), (x, y), side_px, 64)[0], turn)
        apart = np.abs((found * std + mean).transpose(1, 2, 0) * 255 - expected)
        assert apart.max() < 4
        assert apart.mean() < 0.5
