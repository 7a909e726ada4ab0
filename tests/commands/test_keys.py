"""`poise keys` and `poise audit` as an operator meets them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from poise.audit.chain import audit_key
from poise.audit.files import log_files
from poise.audit.log import AuditLog
from poise.cli import app
from poise.gateway.tenancy.keys import KeyRing, KeysFile
from tests.test_config_problems import RULE_TENANT

DATA_CLASSES = "'public', 'internal', 'confidential' or 'restricted'"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's configuration directory, in which nothing is yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "config" / "poise"


def run(*arguments: str, exit_code: int = 0, stderr: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="poise")
    assert result.exit_code == exit_code, result.output
    if stderr is not None:
        assert result.stderr == f"poise: {stderr}\n"
    return result


def test_the_life_of_a_key(config: Path) -> None:
    """Made, listed, used, revoked. Standard output is the key and nothing else, so that it can be piped."""
    made = run(
        "keys",
        "add",
        "alice",
        "--comment",
        "her laptop",
        "--expires",
        "30d",
        "--classes",
        "background, interactive",
        "--data-class",
        "internal",
    )
    text = made.stdout.strip()
    assert text.startswith("pk-")
    assert "not shown again" in made.stderr
    found = KeyRing(config / "keys.jsonl").find(text)
    assert found is not None
    assert found.classes == ["background", "interactive"]
    assert found.data_class == "internal"
    assert found.expires is not None
    assert (found.expires - datetime.now(UTC)).days in (29, 30)
    listed = run("keys", "list").stdout
    assert "her laptop" in listed
    assert " internal " in listed
    assert text not in listed
    assert [row["state"] for row in json.loads(run("keys", "list", "--json").stdout)] == ["valid"]
    assert run("keys", "revoke", found.id).stdout == f"{found.id} of alice is revoked\n"
    assert KeyRing(config / "keys.jsonl").find(text) is None
    assert "revoked" in run("keys", "list").stdout


@pytest.mark.parametrize(
    ("auth", "first", "second"),
    [
        ("", "from now on every request needs a key", "every request needs a key"),
        ("required = true", "every request needs a key", "every request needs a key"),
        ("required = false", "callers without a key are still answered", "callers without a key are still answered"),
    ],
)
def test_what_a_new_key_changes_is_said(config: Path, tmp_path: Path, auth: str, first: str, second: str) -> None:
    """And how to have it the other way; a key for /admin changes nothing."""
    (tmp_path / "poise.toml").write_text(f"[auth]\n{auth}\n")
    assert len(run("keys", "add", "boss", "--admin").stderr.splitlines()) == 1
    for told in (first, second):
        assert run("keys", "add", "alice").stderr.splitlines()[1].startswith(told)


def test_a_key_can_be_made_where_keys_are_required(config: Path, tmp_path: Path) -> None:
    """The first one, and in a file of one's own."""
    (tmp_path / "poise.toml").write_text('[auth]\nrequired = true\nkeys_file = "own.jsonl"\n')
    run("keys", "add", "boss", "--admin")
    assert [(key.tenant, key.admin) for key in KeysFile(tmp_path / "own.jsonl").read()] == [("boss", True)]
    assert not config.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["add", "local"], f"NAME local: {RULE_TENANT}"),
        (["add", "a", "--data-class", "secret"], "--data-class secret: Input should be " + DATA_CLASSES),
        (["add", "a", "--classes", "batch"], """--classes ['batch']: must be among "interactive" and "background\""""),
        (["add", "a", "--expires", "soon"], "--expires soon: must be as 30d, 12h or 2027-01-31"),
        (["add", "a", "--expires", "2020-01-01"], "--expires 2020-01-01: is over already"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(config: Path, arguments: list[str], problem: str) -> None:
    """And nothing is written."""
    run("keys", *arguments, exit_code=2, stderr=problem)
    assert not config.exists()


def test_unknown_keys_and_damaged_files(config: Path) -> None:
    """The path is named."""
    run("keys", "revoke", "k-1", exit_code=2)
    run("keys", "add", "a")
    (config / "keys.jsonl").chmod(0o644)
    assert "chmod 600" in run("keys", "list", exit_code=2).stderr


def test_the_audit_log_from_outside(config: Path, tmp_path: Path) -> None:
    """Its end, whether it holds, and where it does not."""
    folder = tmp_path / "state" / "poise" / "audit"
    run("audit", "verify", exit_code=2)
    key = audit_key(KeysFile(config / "keys.jsonl").pepper())
    assert "there is no audit log" in run("audit", "verify", exit_code=1).stderr
    log = AuditLog(folder, key, rotate_bytes=1 << 20, keep_days=9)
    for i in range(30):
        log.put("request", {"i": i})
    log.close()
    assert "holds: entries 1 to 30 in 1 files; 0 with content, 0 whose content was erased" in run("audit", "verify").stdout
    assert [json.loads(line)["i"] for line in run("audit", "tail", "-n", "3").stdout.splitlines()] == [27, 28, 29]
    (file,) = log_files(folder)
    file.path.write_bytes(file.path.read_bytes().replace(b'"i":12', b'"i":99'))
    broken = run("audit", "verify", "--path", str(folder), exit_code=1)
    assert broken.stdout == ""
    assert broken.stderr == f"the audit log does not hold: {file.path.name}, line 13 (entry 13): was changed\n"
