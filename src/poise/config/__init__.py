"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.loader import LoadedSettings, load
from poise.config.policy import to_policy
from poise.config.settings import (
    AuthSettings,
    ClassesSettings,
    ClassSettings,
    EngineSettings,
    KvType,
    ModelSettings,
    PoolSettings,
    PoolsSettings,
    ReaderSettings,
    ResultsSettings,
    SamplingSettings,
    SchedulerSettings,
    Section,
    ServerSettings,
    Settings,
    StoreSettings,
    StreamsSettings,
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
    "LoadedSettings",
    "ModelSettings",
    "PoolSettings",
    "PoolsSettings",
    "ReaderSettings",
    "ResultsSettings",
    "SamplingSettings",
    "SchedulerSettings",
    "Section",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "StreamsSettings",
    "TemplateSettings",
    "TenantSettings",
    "Toggle",
    "load",
    "to_policy",
]
