"""Networks that name a cell: torchvision's backbones and two small nets, under one of two heads.

Every network is `(N, 3, S, S) float32 RGB, normalised -> logits (N, K), features (N, D)`. A network is a body, which
gives a feature map, and a head. The body keeps torchvision's key names, so that its published weights fit.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from smearcount.config import Strict
from smearcount.errors import ModelError
from smearcount.naming_heads import SMALL_NETS, Head, NetSpec, head_of

__all__ = ["CellNet", "Normalisation", "build_net", "load_pretrained", "recalibrate"]

_HEADS = ("classifier.", "fc.", "head.")  # keys of what sits on a body, in torchvision's and in our own files
_ALEXNET_WHOLE_PX = 63
"""Smallest input at which AlexNet's third pooling still has three pixels to look at."""


@dataclass(frozen=True)
class _Body:
    """What torchvision does not tell about a body.

    Attributes:
        channels: of the feature map.
        starts: number of the unit (a child of `features`, or of a ResNet) at which each layer group begins; a group is
            about one resolution.
    """

    channels: int
    starts: tuple[int, ...]


_BODIES: dict[str, _Body] = {
    "resnet18": _Body(512, (0, 4, 5, 6, 7)),
    "resnet34": _Body(512, (0, 4, 5, 6, 7)),
    "resnet50": _Body(2048, (0, 4, 5, 6, 7)),
    "alexnet": _Body(256, (0, 3, 6, 8, 10)),
    "vgg16": _Body(512, (0, 5, 10, 17, 24)),
    "vgg19": _Body(512, (0, 5, 10, 19, 28)),
    "densenet121": _Body(1024, (0, 4, 6, 8, 10)),
    "densenet169": _Body(1664, (0, 4, 6, 8, 10)),
    "mobilenet_v2": _Body(1280, (0, 2, 4, 7, 11, 14, 18)),
    "mobilenet_v3_small": _Body(576, (0, 2, 4, 9, 12)),
    "mobilenet_v3_large": _Body(960, (0, 2, 4, 7, 13, 16)),
    "efficientnet_b0": _Body(1280, (0, 2, 3, 4, 6, 8)),
    "lenet5": _Body(16, (0, 3)),
    "stack150": _Body(128, (0, 3, 6)),
}


class Normalisation(Strict):
    """Mean and standard deviation of each channel, red, green, blue, of pixels scaled to [0, 1].

    The defaults are those of ImageNet, which torchvision's own weights were trained with.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class CellNet(nn.Module):
    """A body and a head; made by `build_net`.

    Attributes:
        spec: what it was made from.
        body: `(N, 3, S, S) float32` to the feature map `(N, C, h, w)`.
        head: feature map to logits and features.
    """

    def __init__(self, spec: NetSpec, body: nn.Sequential, head: Head) -> None:
        super().__init__()
        self.spec = spec
        self.body = body
        self.head = head
        self._frozen = False

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(N, K)` and features `(N, D)` of normalised RGB `pixels (N, 3, S, S) float32`."""
        logits, features = self.head(self.body(pixels))
        return logits, features

    @property
    def embedding(self) -> int:
        """Length D of the features."""
        return self.head.embedding

    @property
    def spatial_layers(self) -> list[nn.Module]:
        """The layers of the body with places, first to last, without poolings: where heat maps are drawn from."""
        flat = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity)
        return [unit for unit in _units(self.body) if not isinstance(unit, flat)]

    def body_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of the body, from the first to the last layers; every parameter is in one group."""
        units = _units(self.body)
        starts = _BODIES[self.spec.backbone].starts
        parts = [units[start:end] for start, end in zip(starts, (*starts[1:], len(units)), strict=True)]
        return [[weight for unit in part for weight in unit.parameters()] for part in parts]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head."""
        return list(self.head.parameters())

    def freeze_body(self, frozen: bool = True) -> None:
        """Hold the body as it is, or let it learn again.

        A frozen body has no gradients and stays in evaluation mode, also under `train()`: the statistics of its
        BatchNorm layers neither move nor come from the batch.
        """
        self._frozen = frozen
        self.body.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, of the head alone while the body is frozen."""
        super().train(mode)
        if self._frozen:
            self.body.eval()
        return self


def build_net(spec: NetSpec) -> CellNet:
    """An untrained network; seed `torch` first where it must be the same again."""
    body = _small_body(spec.backbone) if spec.backbone in SMALL_NETS else _torchvision_body(spec)
    return CellNet(spec, body, head_of(spec, _BODIES[spec.backbone].channels))


def _units(body: nn.Sequential) -> list[nn.Module]:
    """The layers of a body one by one, those inside `features` included."""
    units: list[nn.Module] = []
    for name, child in body.named_children():
        units.extend(child.children() if name == "features" else [child])
    return units


def _torchvision_body(spec: NetSpec) -> nn.Sequential:
    if spec.backbone in ("alexnet", "vgg16", "vgg19"):
        return _body_without_dense(spec)
    net = models.get_model(spec.backbone, weights=None)
    if spec.backbone.startswith("resnet"):
        layers = dict(net.named_children())
        return nn.Sequential(OrderedDict((k, v) for k, v in layers.items() if k not in ("avgpool", "fc")))
    if spec.backbone.startswith("densenet"):
        # torchvision rectifies the map inside its forward, after the last normalisation.
        return nn.Sequential(OrderedDict(features=net.features, relu=nn.ReLU()))
    return nn.Sequential(OrderedDict(features=net.features))


def _body_without_dense(spec: NetSpec) -> nn.Sequential:
    """AlexNet's or VGG's convolutions, with the start values of He et al. 2015 (arXiv 1502.01852)."""
    with torch.device("meta"):  # their dense layers, up to 120 million weights, are never filled
        net = models.get_model(spec.backbone, weights=None)
    features = cast(nn.Sequential, net.features.to_empty(device="cpu"))
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    if spec.backbone == "alexnet" and spec.input_px < _ALEXNET_WHOLE_PX:
        features[-1] = nn.Identity()
    return nn.Sequential(OrderedDict(features=features))


def _small_body(backbone: str) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791) in colour, or the stack of 32, 64 and 128 channels."""
    if backbone == "lenet5":
        layers = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    else:
        layers = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))


def load_pretrained(net: CellNet, backbone: str, weights: Path | str | None) -> None:
    """Fill the body with weights of another training; the head stays as it is.

    A file does not say how its inputs were normalised: where that was not by ImageNet's statistics, the recipe has to.

    Args:
        net: changed in place, and only if everything fits.
        backbone: the network the weights are of.
        weights: a safetensors state dict under torchvision's key names, whose classifier is ignored, or one of a
            `CellNet`; `imagenet` for torchvision's own weights, downloaded once into torch's cache; None for none.

    Raises:
        ModelError: the weights can't be had, or are not those of this backbone; names the file and the remedy.
    """
    if weights is None:
        return
    published = str(weights) == "imagenet"
    found = _imagenet_weights(backbone) if published else _read_safetensors(Path(weights), backbone)
    bodily = {_own_key(key): value for key, value in found.items() if not key.startswith(_HEADS)}
    faults = list(_misfits(net.body.state_dict(), bodily))
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(f"{weights}: not weights of {backbone}: {'; '.join(faults[:3])}{more}; {_remedy(backbone)}")
    net.body.load_state_dict(bodily, strict=False)


def _own_key(key: str) -> str:
    """The key inside a body; published DenseNets write `norm.1` for what torchvision now calls `norm1`."""
    return re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key.removeprefix("body."))


def _misfits(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> Iterator[str]:
    """What keeps weights from fitting; the counter of BatchNorm is not needed, older files lack it."""
    for key, value in wanted.items():
        if key not in found:
            if not key.endswith("num_batches_tracked"):
                yield f"{key} is missing"
        elif found[key].shape != value.shape:
            yield f"{key}: expected {tuple(value.shape)}, got {tuple(found[key].shape)}"
    yield from (f"{key} is unknown" for key in found if key not in wanted)


def _remedy(backbone: str) -> str:
    return f"give the safetensors file of a {backbone}, written by safetensors.torch.save_file(net.state_dict(), FILE)"


def _read_safetensors(file: Path, backbone: str) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except OSError as error:
        raise ModelError(f"{file}: can't be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        raise ModelError(f"{file}: not a safetensors file ({error}); {_remedy(backbone)}") from error


def _imagenet_weights(backbone: str) -> dict[str, Tensor]:
    if backbone in SMALL_NETS:
        raise ModelError(f"imagenet: there are no published weights of {backbone}; leave them out, or give a file")
    published = models.get_model_weights(backbone).DEFAULT
    try:
        state = published.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ModelError(
            f"imagenet: the weights of {backbone} can't be had from {published.url} ({error}); without a network "
            f"{_remedy(backbone)}"
        ) from error
    return cast(dict[str, Tensor], state)


@torch.no_grad()
def recalibrate(net: CellNet, batches: Iterable[Tensor]) -> None:
    """Fit the BatchNorm statistics of the body to new pictures without changing what `eval()` answers.

    Pretrained statistics may be far from those of stained cells, or made up where BatchNorm was folded away: the net is
    then another one in training than in evaluation. A layer computes w (x - m) / s + b, with s^2 = variance + eps. With
    m', s' measured on its inputs, w' = w s'/s and b' = b + w (m' - m)/s give the same function of x. The head is left
    alone: its layers are new, and meant to normalise.

    Args:
        net: changed in place; its training mode is kept.
        batches: network inputs `(N, 3, S, S) float32`, normalised, on the device of the net; a few hundred pictures.

    Raises:
        ValueError: there are no batches.
    """
    sums: dict[nn.BatchNorm2d, Tensor] = {}

    def add(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        """Number, sum and sum of squares of each channel, in double precision."""
        values = inputs[0].transpose(0, 1).flatten(1).double()
        number = torch.full_like(values[:, 0], values.shape[1])
        part = torch.stack([number, values.sum(1), values.square().sum(1)])
        sums[norm] = sums[norm] + part if norm in sums else part

    norms = [layer for layer in net.body.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    training = net.training
    net.eval()
    try:
        for batch in batches:
            net.body(batch)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(training)
    if norms and not sums:
        raise ValueError("batches: expected at least one, got none")
    for norm, (number, total, squares) in sums.items():
        mean = total / number
        _exchange_statistics(norm, mean, (squares / number - mean.square()).clamp_min(0))


def _exchange_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Give a layer other statistics `(C,) float64` and the weight and bias that make up for them."""
    old_mean, old_variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gain = norm.weight.double() / (old_variance.double() + norm.eps).sqrt()
    norm.bias.add_(gain * (mean - old_mean.double()))
    norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    old_mean.copy_(mean)
    old_variance.copy_(variance)
