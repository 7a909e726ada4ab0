"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.loader import LoadedSettings, load
from poise.config.policy import to_policy
from poise.config.settings import (
    AuthSettings,
    ClassesSettings,
    ClassSettings,
    EngineSettings,
    KvType,
    LevelsSettings,
    ModelSettings,
    PoolSettings,
    PoolsSettings,
    SamplingSettings,
    SchedulerSettings,
    Section,
    ServerSettings,
    Settings,
    StoreSettings,
    TemplateSettings,
    TenantSettings,
    Toggle,
)
from poise.config.sources import ConfigError

__all__ = [
    "AuthSettings",
    "ClassSettings",
    "ClassesSettings",
    "ConfigError",
    "EngineSettings",
    "KvType",
    "LevelsSettings",
    "LoadedSettings",
    "ModelSettings",
    "PoolSettings",
    "PoolsSettings",
    "SamplingSettings",
    "SchedulerSettings",
    "Section",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TemplateSettings",
    "TenantSettings",
    "Toggle",
    "load",
    "to_policy",
]
