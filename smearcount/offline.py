"""Keeps third-party libraries offline and private: every network feature off before they are imported."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smearcount.errors import RuntimeMissingError

__all__ = ["quiet_openvino", "quiet_ultralytics", "ultralytics_module"]


def quiet_openvino() -> None:
    """Stop OpenVINO's usage telemetry; to be called before its first import."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def quiet_ultralytics(folder: Path) -> None:
    """Keep settings, fonts and runs of ultralytics inside `folder`, its downloads and services off.

    Must run before the first import of ultralytics in the process; child processes inherit it.
    """
    fonts = folder / "ultralytics" / "Ultralytics"
    fonts.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="0",
        YOLO_VERBOSE="False",
        ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS="1",
        ULTRALYTICS_SAFE_LOAD="1",
        YOLO_CONFIG_DIR=str(folder / "ultralytics"),
    )
    _place_font(fonts / "Arial.ttf")
    if "ultralytics" in sys.modules:
        return  # its settings file is the user's own by now, and must stay as it is
    from ultralytics.utils import SETTINGS

    services = dict.fromkeys(("sync", "mlflow", "comet", "clearml", "dvc", "raytune", "wandb", "neptune"), False)
    known = {key: value for key, value in services.items() if key in SETTINGS}
    folders = {"weights_dir": str(folder), "runs_dir": str(folder), "datasets_dir": str(folder)}
    SETTINGS.update({**known, **folders})


def ultralytics_module(name: str) -> Any:
    """A module of ultralytics, imported without a trace on the disk.

    Raises:
        RuntimeMissingError: ultralytics, or PyTorch, is not installed.
    """
    if module := sys.modules.get(f"ultralytics.{name}"):
        return module
    with TemporaryDirectory(prefix="smearcount-", ignore_cleanup_errors=True) as scratch:
        try:
            quiet_ultralytics(Path(scratch))
            return import_module(f"ultralytics.{name}")
        except ImportError as error:
            raise RuntimeMissingError("ultralytics is not installed: pip install ultralytics") from error


def _place_font(target: Path) -> None:
    """Any TrueType font under the name that ultralytics would otherwise download."""
    spec = find_spec("matplotlib")
    if not target.is_file() and spec and spec.origin:
        shutil.copyfile(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", target)
