"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.loader import LoadedSettings, load
from poise.config.policy import to_policy
from poise.config.serving import ServerSettings, TenantSettings
from poise.config.settings import (
    ClassesSettings,
    ClassSettings,
    EngineSettings,
    LevelsSettings,
    ModelSettings,
    PoolSettings,
    PoolsSettings,
    Settings,
    StoreSettings,
    engine_settings,
)
from poise.config.sources import ConfigError

__all__ = [
    "ClassSettings",
    "ClassesSettings",
    "ConfigError",
    "EngineSettings",
    "LevelsSettings",
    "LoadedSettings",
    "ModelSettings",
    "PoolSettings",
    "PoolsSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TenantSettings",
    "engine_settings",
    "load",
    "to_policy",
]
