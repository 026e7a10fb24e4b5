"""Does every runtime give what the network gave when the model was made?"""

from __future__ import annotations

import io

import numpy as np

from smearcount.cards import Model
from smearcount.errors import ModelError
from smearcount.runtimes import RuntimeChoice, make_runtime

__all__ = ["probe_errors"]


def probe_errors(model: Model, runtimes: tuple[str, ...] | None = None) -> dict[str, float]:
    """Largest difference to the expected output of the probe for each runtime, in units of the output.

    Args:
        model: a model folder with `probe.npz`.
        runtimes: which to check; all that the model has files for by default.

    Raises:
        ModelError: a difference exceeds the tolerance on the card.
    """
    probe = np.load(io.BytesIO(model.read("probe.npz")), allow_pickle=False)
    pixels = probe["pixels"].astype(np.float32)
    errors = {}
    for name in runtimes or [name for name in ("openvino", "onnx", "torch") if model.names(name)]:
        run, description = make_runtime(model, RuntimeChoice(name, "cpu", "auto" if name == "openvino" else "f32"))
        worst = float(np.abs(run(pixels)[0] - probe["expected"]).max())
        if not worst <= model.card.probe_tolerance:
            raise ModelError(
                f"{model.folder}: {description} differs from the probe by {worst:.3g}, more than the "
                f"{model.card.probe_tolerance:g} on the card; install smearcount again, or another version of {name}"
            )
        errors[description] = worst
    return errors
