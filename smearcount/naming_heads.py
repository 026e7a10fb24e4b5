"""What a network that names a cell is in plain data, and its heads: from a feature map to features and logits."""

from __future__ import annotations

from typing import Literal, Self, cast, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from smearcount.config import Strict

__all__ = ["BACKBONES", "SMALL_NETS", "AverageAndMax", "Backbone", "Head", "NetSpec", "head_of"]

Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "alexnet",
    "vgg16",
    "vgg19",
    "densenet121",
    "densenet169",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "lenet5",
    "stack150",
]

BACKBONES: tuple[str, ...] = get_args(Backbone)

SMALL_NETS: tuple[str, ...] = ("lenet5", "stack150")
"""Nets of earlier work, of which there are no published weights."""

_PLAIN_DROPOUT = 0.2


class NetSpec(Strict):
    """A network in plain data: what `architecture.yaml` of a classifier holds.

    Attributes:
        backbone: one of `BACKBONES`.
        head: `plain` is average pooling, dropout and one linear layer; `thesis` is average and maximal pooling and
            two layers. `lenet5` and `stack150` have their own dense layers under `plain`.
        codes: number of codes K.
        input_px: side of the input. The dense layers of `lenet5` and `stack150` are made for it; the other
            networks, and any under the `thesis` head, hold the same weights at every size.
        dropout: of the plain head. The `thesis` head, `lenet5` and `stack150` have theirs fixed.
    """

    backbone: Backbone
    head: Literal["plain", "thesis"] = "plain"
    codes: int = Field(ge=2)
    input_px: int = Field(ge=32, le=1024)
    dropout: float = Field(default=_PLAIN_DROPOUT, ge=0, lt=1)

    @model_validator(mode="after")
    def _dropout_is_used(self) -> Self:
        if self.dropout != _PLAIN_DROPOUT and (self.head == "thesis" or self.has_dense_layers):
            owner = "the thesis head" if self.head == "thesis" else self.backbone
            raise ValueError(f"dropout: {owner} has its own; leave {self.dropout} out")
        return self

    @property
    def has_dense_layers(self) -> bool:
        """Whether the head is the dense layers of a small net, which fit one input size only."""
        return self.head == "plain" and self.backbone in SMALL_NETS


class AverageAndMax(nn.Module):
    """Average and maximum over all places, one after the other: `(N, C, h, w) -> (N, 2C, 1, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.AdaptiveAvgPool2d(1)
        self.maximum = nn.AdaptiveMaxPool2d(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool."""
        return torch.cat([self.average(maps), self.maximum(maps)], dim=1)


class Head(nn.Module):
    """From the feature map to the names.

    Args:
        reduce: feature map `(N, C, h, w)` to features `(N, D)`.
        decide: features to logits `(N, K)`; its last layer is linear.
    """

    def __init__(self, reduce: nn.Sequential, decide: nn.Sequential) -> None:
        super().__init__()
        self.reduce = reduce
        self.decide = decide

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features."""
        features = self.reduce(maps)
        return self.decide(features), features

    @property
    def embedding(self) -> int:
        """Length D of the features."""
        return cast(nn.Linear, self.decide[-1]).in_features


def head_of(spec: NetSpec, channels: int) -> Head:
    """The untrained head of a network whose body gives so many channels."""
    if spec.head == "thesis":
        return _thesis_head(channels, spec.codes)
    if spec.backbone == "lenet5":
        return _lenet_head(channels * _side_after(spec.input_px, kernel=5, stages=2) ** 2, spec.codes)
    if spec.backbone == "stack150":
        return _stack_head(channels * _side_after(spec.input_px, kernel=3, stages=3) ** 2, spec.codes)
    return _plain_head(channels, spec.codes, spec.dropout)


def _side_after(side: int, kernel: int, stages: int) -> int:
    """Side of the feature map after stages of one convolution without padding and one pooling by two."""
    for _ in range(stages):
        side = (side - kernel + 1) // 2
    return side


def _plain_head(channels: int, codes: int, dropout: float) -> Head:
    """One linear layer on the average over all places; the features are the averages, one a channel."""
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Head(pooled, nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, codes)))


def _thesis_head(channels: int, codes: int) -> Head:
    """The head of J. T. Justel Pizarro's thesis (UPC Barcelona, 2019); the features are the 512 after the ReLU."""
    reduce = nn.Sequential(
        AverageAndMax(),
        nn.Flatten(),
        nn.BatchNorm1d(2 * channels),
        nn.Dropout(0.25),
        nn.Linear(2 * channels, 512),
        nn.ReLU(),
    )
    return Head(reduce, nn.Sequential(nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, codes)))


def _lenet_head(values: int, codes: int) -> Head:
    """Dense layers of LeNet-5 on a map of so many values; the features are the 84 after the last tanh."""
    dense = nn.Sequential(nn.Flatten(), nn.Linear(values, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh())
    return Head(dense, nn.Sequential(nn.Linear(84, codes)))


def _stack_head(values: int, codes: int) -> Head:
    """Dense 512 and dropout 0.4 on a map of so many values; the features are the 512 after the ReLU."""
    dense = nn.Sequential(nn.Flatten(), nn.Linear(values, 512), nn.ReLU())
    return Head(dense, nn.Sequential(nn.Dropout(0.4), nn.Linear(512, codes)))
