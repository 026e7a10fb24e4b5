"""Settings files: found beside the package or the checkout, read as YAML, checked by pydantic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from smearcount.errors import ConfigError

__all__ = ["Strict", "load_yaml", "read_model", "shipped"]

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Strict(pydantic.BaseModel):
    """A settings record: frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def shipped(name: str) -> Path:
    """The folder `weights` or `configs`: inside an installed wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


def load_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: the file is missing or no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error


def read_model(kind: type[Model], path: Path) -> Model:
    """A YAML file as a checked settings record.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range; names the file and each key.
    """
    try:
        return kind.model_validate(load_yaml(path))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {faults}") from error
