"""PyTorch modules of models, from safetensors and architecture YAML; no pickle is loaded."""

from __future__ import annotations

from typing import Any

import yaml

from smearcount.cards import Model
from smearcount.errors import ModelError, RuntimeMissingError
from smearcount.offline import ultralytics_module

__all__ = ["network_of"]


def network_of(model: Model, *, fuse: bool = True) -> Any:
    """The PyTorch module of a model in evaluation mode, from safetensors and architecture YAML.

    Raises:
        ModelError: a file is missing or damaged.
        RuntimeMissingError: PyTorch, torchvision or ultralytics is not installed.
    """
    from safetensors.torch import load

    if not model.names("torch"):
        raise ModelError(f"{model.folder}: no float32 weights in it; take the model that it was made from")
    architecture = yaml.safe_load(model.read("architecture.yaml"))
    net = _naming_net(model, architecture) if model.card.task == "classifier" else _finding_net(model, architecture)
    net.load_state_dict({key: value.float() for key, value in load(model.read("model.safetensors")).items()})
    net.eval()
    return net.fuse(verbose=False) if fuse and model.card.task == "detector" else net


def _naming_net(model: Model, architecture: Any) -> Any:
    try:
        from smearcount.naming_heads import NetSpec
        from smearcount.naming_nets import build_net
    except ImportError as error:
        raise RuntimeMissingError("torchvision is not installed: pip install torchvision") from error
    try:
        return build_net(NetSpec.model_validate(architecture))
    except ValueError as error:
        raise ModelError(f"{model.folder / 'architecture.yaml'}: {error}") from error


def _finding_net(model: Model, architecture: Any) -> Any:
    extra = set(architecture) - {"nc", "scale", "scales", "backbone", "head"}
    if extra:  # ultralytics evaluates some of its other keys as code
        raise ModelError(f"{model.folder / 'architecture.yaml'}: keys {sorted(extra)} are not allowed")
    return ultralytics_module("nn.tasks").DetectionModel(architecture, ch=3, nc=len(model.card.codes), verbose=False)
