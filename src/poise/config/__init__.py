"""Configuration: defaults, TOML file, environment and command line, with the origin of every value."""

from poise.config.loader import LoadedSettings, load
from poise.config.policy import to_policy
from poise.config.settings import (
    AuditSettings,
    AuthSettings,
    ClassesSettings,
    ClassSettings,
    EngineSettings,
    KvType,
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
    "engine_settings",
    "load",
    "to_policy",
]
