"""Errors by cause: each is the user's to mend, so the command line prints its message alone and exits with 2."""


class PixvoxError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would be right."""


class DataError(PixvoxError):
    """An image, an annotation or a dataset cannot be used as it is."""


class ConfigError(PixvoxError):
    """A configuration key or value is wrong, or parts do not fit together."""


class WeightsError(PixvoxError):
    """A checkpoint or weights file is missing, damaged, foreign or does not fit the model."""


class TrainingError(PixvoxError):
    """A training cannot go on: its loss is not finite, memory or disk is full, or a process has died."""
