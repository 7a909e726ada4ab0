"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.loader import LoadedSettings, load
from poise.config.policy import to_policy
from poise.config.serving import ServerSettings
from poise.config.settings import ClassSettings, LevelsSettings, Settings, engine_settings
from poise.config.sources import ConfigError

__all__ = [
    "ClassSettings",
    "ConfigError",
    "LevelsSettings",
    "LoadedSettings",
    "ServerSettings",
    "Settings",
    "engine_settings",
    "load",
    "to_policy",
]
