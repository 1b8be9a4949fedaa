"""The one error by which `lfm` refuses what its caller asked for."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the value, what is accepted and what to do."""
