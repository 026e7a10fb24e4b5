"""PyTorch, on the processor or on a graphics card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray, Pixels
from smearcount.cards import Model
from smearcount.errors import RuntimeMissingError
from smearcount.geometry import FILL, samples_across
from smearcount.runtimes.contract import AT_ONCE_CPU, InferWindows, Levels, Runtime, check_type
from smearcount.runtimes.gathering import Gathering, calls_for
from smearcount.torch_nets import network_of

__all__ = ["TorchRuntime"]

AT_ONCE_CUDA = 256
"""Pictures a call, on a graphics card."""


class TorchRuntime:
    """PyTorch, channels-last; in half precision on CUDA, where the head of a detector stays in float32.

    Places beyond 512 px have steps of half a pixel in half precision. Batches wait for each other: a detector keeps the
    anchors of an input in itself while it decodes. To a graphics card go grey levels, a quarter of the bytes, which are
    normalised there.

    Args:
        model: with weights for PyTorch.
        device: `cpu` or `cuda`.
        threads: CPU threads; 0 leaves the choice to PyTorch.
        levels: the grey levels that the caller hands over.
        half: whether in half precision.
        batch_size: calls of several threads, each of one picture, that are answered together.
    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        threads: int = 0,
        levels: Levels = "",
        *,
        half: bool = False,
        batch_size: int = 1,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise RuntimeMissingError("PyTorch is not installed: pip install torch torchvision ultralytics") from error
        if threads:
            torch.set_num_threads(threads)
        on_card = device == "cuda"
        self._torch, self._levels, self._batch_size = torch, levels, batch_size
        self._dtype = torch.float16 if half else torch.float32
        self.input_dtype = np.dtype(np.uint8 if levels else np.float32)
        self.at_once = AT_ONCE_CUDA if on_card else AT_ONCE_CPU
        card, there = model.card, torch.device(device)
        self._mean, self._std = (torch.tensor(v, device=there).view(1, 3, 1, 1) for v in (card.mean, card.std))
        self._net = network_of(model).to(there, self._dtype, memory_format=torch.channels_last)
        if half and card.task == "detector":
            head = self._net.model[-1].float()
            head.register_forward_pre_hook(lambda _, given: ([each.float() for each in given[0]],))
        self._road, self._alone = _Lanes(torch.cuda, there) if on_card else _Here(), Lock()
        self._one = Gathering(self._answer, batch_size) if batch_size > 1 else self._answer
        self.infer_windows: InferWindows | None = self.sampled if on_card and levels == "views" else None

    @property
    def streams(self) -> tuple[Runtime, int]:
        """This network, and the calls that fill the batches under way."""
        return self, calls_for(self._batch_size)

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """Run `batch` of the type `input_dtype`; the outputs are copies.

        Raises:
            ValueError: the batch is of another type.
        """
        check_type(batch, self.input_dtype)
        return self._one(batch) if len(batch) == 1 else self._answer(batch)

    def sampled(
        self, picture: Pixels, centres_xy: FloatArray, side_px: float, out_px: int, turns: Sequence[int] = (0,)
    ) -> tuple[FloatArray, ...]:
        """See `InferWindows`; the network is given what `patches.sample_window` gives, but for a grey level or two."""
        at_once = max(1, self.at_once // samples_across(side_px / out_px) ** 2)

        def batches(there: Any, places: Any) -> Iterator[Any]:
            for turn in turns:
                for row in range(0, len(places), at_once):
                    yield self._windows(there, places[row : row + at_once], side_px, out_px, turn)

        return self._outputs(batches, picture, centres_xy)

    def _answer(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        return self._outputs(lambda there: [self._planes(there)], batch)

    def _outputs(self, batches: Callable[..., Iterable[Any]], *given: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """What the network says of the batches that are made of some arrays where it is, one below the other."""
        torch, road = self._torch, self._road
        with torch.inference_mode():
            sent = [road.send(torch.from_numpy(np.require(each, requirements=("C", "W")))) for each in given]
            with self._alone:
                road.begin(sent)
                parts = [self._asked(planes) for planes in batches(*sent)]
                outputs = [torch.cat(columns) if len(parts) > 1 else columns[0] for columns in zip(*parts, strict=True)]
                done = road.end()
            return tuple(road.fetch(each, done) for each in outputs)

    def _asked(self, planes: Any) -> list[Any]:
        result = self._net(planes.to(self._dtype, memory_format=self._torch.channels_last))
        outputs = result if isinstance(result, tuple | list) else (result,)
        return [each for each in outputs if isinstance(each, self._torch.Tensor)]

    def _planes(self, given: Any) -> Any:
        """A batch as `(B, 3, H, W)`, normalised."""
        planes = given.permute(0, 3, 1, 2) if self._levels == "views" else given
        return self._normalised(planes.float()) if self._levels else planes

    def _normalised(self, planes: Any) -> Any:
        return (planes * (1 / 255) - self._mean) / self._std

    def _windows(self, picture: Any, centres_xy: Any, side_px: float, out_px: int, turn: int) -> Any:
        """Windows of a picture `(H, W, 3)` as `(N, 3, out_px, out_px)`, normalised."""
        torch, (height, width) = self._torch, picture.shape[:2]
        finer = samples_across(side_px / out_px)
        samples = out_px * finer
        from_middle = (torch.arange(samples, device=picture.device) + 0.5) * (side_px / samples) - side_px / 2
        # From -1 at the left and upper edge of the picture to 1 at the right and lower one.
        x = (centres_xy[:, :1] + from_middle)[:, None, :] * (2 / width) - 1
        y = (centres_xy[:, 1:] + from_middle)[:, :, None] * (2 / height) - 1
        grid = torch.stack(torch.broadcast_tensors(x, y), -1).view(1, -1, samples, 2)
        # Beyond the picture the sampling has zeros, which stand for the fill.
        planes = picture.permute(2, 0, 1)[None].float() - FILL
        views = torch.nn.functional.grid_sample(planes, grid, align_corners=False) + FILL
        views = views.view(3, -1, samples, samples).transpose(0, 1).round()
        if finer > 1:
            views = torch.nn.functional.avg_pool2d(views, finer).round()
        return self._normalised(torch.rot90(views, turn, (2, 3)))


class _Here:
    """The network is on the processor: nothing is moved."""

    def send(self, host: Any) -> Any:
        """The tensor."""
        return host

    def begin(self, sent: Iterable[Any]) -> None:
        """The network may begin."""

    def end(self) -> None:
        """The network is done."""

    def fetch(self, output: Any, _: None) -> FloatArray:
        """An output."""
        return np.asarray(output.float().numpy(), np.float32)


class _Lanes:
    """The way to a graphics card and back, each on a stream of its own, so that both are used while the network works.

    Memory goes back to the stream that a tensor was made on: it is told which other one uses it.
    """

    def __init__(self, cuda: Any, device: Any) -> None:
        self._cuda, self._device = cuda, device
        self._there, self._back = cuda.Stream(device), cuda.Stream(device)

    def send(self, host: Any) -> Any:
        """A tensor on the card, from pinned memory; it may still be on its way."""
        with self._cuda.stream(self._there):
            return host.pin_memory().to(self._device, non_blocking=True)

    def begin(self, sent: Iterable[Any]) -> None:
        """What the thread gives the network from now on waits for what was sent."""
        network = self._cuda.current_stream(self._device)
        network.wait_stream(self._there)
        for each in sent:
            each.record_stream(network)

    def end(self) -> Any:
        """The event after which the network is done with what it was given."""
        return self._cuda.current_stream(self._device).record_event()

    def fetch(self, output: Any, done: Any) -> FloatArray:
        """An output, once the network has made it."""
        with self._cuda.stream(self._back):
            self._back.wait_event(done)
            output.record_stream(self._back)
            return np.asarray(output.float().cpu().numpy(), np.float32)
