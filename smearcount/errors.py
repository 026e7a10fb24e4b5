"""The exceptions a caller may want to catch, drawn once.

SmearcountError
|-- ImageError          a picture can't be used: names the file and the remedy
|   `-- ChangedError    it changed while it was read, and may be whole the next time
|-- ModelError          weights, card or probe are missing, damaged or of another kind
|-- RuntimeMissingError a runtime was asked for that is not installed, or that a model has no files for
|-- ConfigError         a configuration or taxonomy file is wrong
|-- DatasetError        a labelled data set can't be read
|-- UsageError          what was asked for contradicts itself, or there is nothing to do
"""

__all__ = [
    "ChangedError",
    "ConfigError",
    "DatasetError",
    "ImageError",
    "ModelError",
    "RuntimeMissingError",
    "SmearcountError",
    "UsageError",
]


class SmearcountError(Exception):
    """Base of every error that smearcount raises on purpose."""


class ImageError(SmearcountError):
    """A picture can't be read or analysed."""


class ChangedError(ImageError):
    """A picture changed while it was read."""


class ModelError(SmearcountError):
    """A shipped or user-made model can't be used."""


class RuntimeMissingError(SmearcountError):
    """The inference runtime asked for is not installed, or a model has no files for it."""


class ConfigError(SmearcountError):
    """A configuration file holds a wrong value."""


class DatasetError(SmearcountError):
    """A labelled data set is missing or inconsistent."""


class UsageError(SmearcountError):
    """What was asked for contradicts itself, or there is nothing to do."""
