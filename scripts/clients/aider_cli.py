"""aider: one edit of a file, without questions."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import API, KEY, MODEL, check, run


@check("one message about one file")
def edit() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hello.py").write_text("print('hello')\n")
        command = [str(Path(sys.executable).with_name("aider")), "--model", f"openai/{MODEL}", "--no-git", "--yes-always"]
        command += ["--no-show-model-warnings", "--no-check-update", "--analytics-disable", "--edit-format", "whole"]
        command += ["--map-tokens", "0", "--message", "Print goodbye instead.", "hello.py"]
        environment = {**os.environ, "HOME": folder, "OPENAI_API_BASE": API, "OPENAI_API_KEY": KEY}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-300:] + done.stderr[-300:]
        # It may say that its list of prices cannot be fetched; what goes wrong with an answer is litellm's error.
        assert "litellm." not in done.stdout, done.stdout[-500:]
        assert "Tokens:" in done.stdout, done.stdout[-300:]


run()
