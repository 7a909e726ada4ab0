"""Others' clients against a real server with the real model: `make clients`.

Each client has an environment of its own under `.venv/clients`, which is made when it is missing; what is installed there is
pinned here. A script (`scripts/clients`) does the first-week things of its client and prints a line for each. At the end there is
a table; the exit code is 1 when anything failed.

    scripts/run_clients.py [NAME ...] [--url http://127.0.0.1:8000] [--model default] [--markdown]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "clients"
ENVIRONMENTS = ROOT / ".venv" / "clients"
sys.path.insert(0, str(ROOT))

from tests.e2e.server import PoiseServer  # noqa: E402

S_MAX = 900
"""What one client may take; it only ends one that hangs."""


@dataclass(frozen=True)
class Client:
    script: str
    packages: tuple[str, ...]
    """As pip or npm installs them; the first is the client, with its version."""

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")


CLIENTS = {
    "openai": Client("openai_python.py", ("openai==3.57.0",)),
    "openai-node": Client("openai_node.mjs", ("openai@6.49.0",)),
    "litellm": Client("litellm_sdk.py", ("litellm==1.110.2",)),
    "langchain-openai": Client("langchain_openai_sdk.py", ("langchain-openai==1.7.4",)),
    "llama-index": Client("llama_index_sdk.py", ("llama-index-llms-openai-like==0.8.1",)),
    "instructor": Client("instructor_sdk.py", ("instructor==1.17.0",)),
    "pydantic-ai": Client("pydantic_ai_sdk.py", ("pydantic-ai-slim[openai]==2.68.0",)),
    "openai-agents": Client("openai_agents_sdk.py", ("openai-agents==0.24.0",)),
    "smolagents": Client("smolagents_sdk.py", ("smolagents[openai]==1.26.0",)),
    "dspy": Client("dspy_sdk.py", ("dspy==3.4.1",)),
    "llm": Client("llm_cli.py", ("llm==0.36",)),
    "aider": Client("aider_cli.py", ("aider-chat==0.86.2",)),
    "lm-eval": Client("lm_eval_cli.py", ("lm-eval[api]==0.4.13",)),
    "guidellm": Client("guidellm_cli.py", ("guidellm==0.8.1",)),
}


def prepare(name: str, client: Client) -> list[str]:
    """The start of the command that runs its script, in an environment that has its packages."""
    home = ENVIRONMENTS / name
    done = home / "packages"
    if not done.is_file() or done.read_text() != "\n".join(client.packages):
        print(f"installing {' '.join(client.packages)} ...", file=sys.stderr)
        home.mkdir(parents=True, exist_ok=True)
        if client.is_node:
            subprocess.run(["npm", "install", "--silent", "--prefix", home, *client.packages], check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            pip = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            subprocess.run([*pip, *client.packages], check=True)
        done.write_text("\n".join(client.packages))
    if client.is_node:  # node looks for packages beside the script
        script = home / client.script
        script.write_text((SCRIPTS / client.script).read_text())
        return ["node", str(script)]
    return [str(home / "bin" / "python"), str(SCRIPTS / client.script)]


def run(name: str, client: Client, url: str, model: str) -> list[tuple[str, str]]:
    """What was checked, each with why it failed; empty where it did not."""
    try:
        command = prepare(name, client)
    except (OSError, subprocess.CalledProcessError) as error:
        return [("installation", str(error))]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                [*command, url, model], stdout=subprocess.PIPE, stderr=errors, text=True, timeout=S_MAX, check=False,
                env={key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [("the script", f"took more than {S_MAX} s")]
        found = []
        for line in done.stdout.splitlines():
            if line.startswith('{"check"'):
                result = json.loads(line)
                found.append((result["check"], result["why"]))
        if not found or (done.returncode and not any(why for _, why in found)):
            errors.seek(0)
            found.append(("the script", f"exit code {done.returncode}: {errors.read()[-300:]}"))
    return found


def version(client: Client) -> str:
    return client.packages[0].replace("==", " ").replace("@", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CLIENTS)}; none: all")
    parser.add_argument("--url", help="a server that runs already; none: one is started")
    parser.add_argument("--model", default="default")
    parser.add_argument("--markdown", action="store_true", help="the table as in docs/clients.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(CLIENTS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    server = None if arguments.url else PoiseServer.start()
    rows: list[tuple[str, str, str]] = []
    try:
        for name in arguments.names or CLIENTS:
            client = CLIENTS[name]
            for what, why in run(name, client, arguments.url or (server.url if server else ""), arguments.model):
                rows.append((version(client), what, why))
                print(f"{'FAILED' if why else 'ok    '} {name}: {what}{': ' + why if why else ''}", flush=True)
    finally:
        if server:
            server.stop()
    show(rows, markdown=arguments.markdown)
    return 1 if any(why for *_, why in rows) else 0


def show(rows: list[tuple[str, str, str]], *, markdown: bool) -> None:
    if markdown:
        print("| client | what was tried | |\n|---|---|---|")
        for client, what, why in rows:
            print(f"| {client} | {what} | {why or 'works'} |")
        return
    table = Table("client", "what was tried", "")
    for row in rows:
        table.add_row(*row[:2], row[2] or "ok")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
