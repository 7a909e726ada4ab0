"""Where poise keeps files of its own on this host."""

from pathlib import Path

import platformdirs

from poise.config.hybrid import EgressSettings
from poise.config.serving import AuditSettings, AuthSettings


def config_dir() -> Path:
    """The user's poise.toml, and keys. Not created here."""
    return Path(platformdirs.user_config_dir("poise", appauthor=False))


def keys_file(auth: AuthSettings) -> Path:
    """Hashes of the keys that `poise keys` has made; the pepper lies beside it."""
    return Path(auth.keys_file) if auth.keys_file else config_dir() / "keys.jsonl"


def audit_dir(audit: AuditSettings) -> Path:
    return Path(audit.path) if audit.path else state_dir() / "audit"


def ledger_file(egress: EgressSettings) -> Path:
    """What was spent at other servers."""
    return Path(egress.ledger) if egress.ledger else state_dir() / "spend.sqlite"


def state_dir() -> Path:
    """Journals of engines that died, the audit log, and what was spent. Not created here."""
    return Path(platformdirs.user_state_dir("poise", appauthor=False))


def cache_dir() -> Path:
    """Measurements and checks that can be made again. Not created here."""
    return Path(platformdirs.user_cache_dir("poise", appauthor=False))
