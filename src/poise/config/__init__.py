"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.kinds import KvType, Section, Toggle
from poise.config.loader import LoadedSettings, load, load_given
from poise.config.policy import to_policy
from poise.config.serving import (
    AuditSettings,
    AuthSettings,
    ReaderSettings,
    ResultsSettings,
    ServerSettings,
    StreamsSettings,
    TemplateSettings,
    TenantSettings,
    TextSettings,
)
from poise.config.settings import (
    ClassesSettings,
    ClassSettings,
    EngineSettings,
    LevelsSettings,
    ModelSettings,
    PoolSettings,
    PoolsSettings,
    SamplingSettings,
    SchedulerSettings,
    Settings,
    StoreSettings,
    engine_settings,
)
from poise.config.sources import ConfigError

__all__ = [
    "AuditSettings",
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
    "TextSettings",
    "Toggle",
    "engine_settings",
    "load",
    "load_given",
    "to_policy",
]
