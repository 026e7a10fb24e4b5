"""Switches ultralytics to offline, private and reproducible before it is imported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["prepare"]


def prepare(folder: Path) -> None:
    """Keep all settings, fonts and runs of ultralytics inside `folder`, and every network feature off.

    Must run before the first import of ultralytics in the process.
    """
    settings_dir = folder / "ultralytics"
    fonts = settings_dir / "Ultralytics"
    fonts.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="0",
        YOLO_VERBOSE="False",
        ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS="1",
        ULTRALYTICS_SAFE_LOAD="1",
        YOLO_CONFIG_DIR=str(settings_dir),
    )
    _place_font(fonts / "Arial.ttf")
    from ultralytics.utils import SETTINGS

    services = dict.fromkeys(("sync", "mlflow", "comet", "clearml", "dvc", "raytune", "wandb", "neptune"), False)
    known = {key: value for key, value in services.items() if key in SETTINGS}
    folders = {"weights_dir": str(folder), "runs_dir": str(folder), "datasets_dir": str(folder)}
    SETTINGS.update({**known, **folders})


def _place_font(target: Path) -> None:
    """Any TrueType font under the name that ultralytics would otherwise download."""
    if not target.is_file():
        import matplotlib

        shutil.copyfile(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", target)
