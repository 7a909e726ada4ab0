"""GuideLLM: a synchronous run over prompts of a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, run


@check("a synchronous run")
def benchmark() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "prompts.jsonl")
        data.write_text("".join(json.dumps({"prompt": f"Count to {i}.", "output_tokens_count": 8}) + "\n" for i in range(4)))
        out = Path(folder, "out.json")
        backend = f"kind=openai_http,target={URL},model={MODEL},request_format=/v1/chat/completions"
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--backend", backend, "--profile", "kind=synchronous"]
        command += ["--constraint", "kind=max_requests,count=3", "--data", f"kind=json_file,path={data}"]
        command += ["--output", f"kind=json,path={out}", "--disable-progress"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr[-300:]
        (found,) = json.loads(out.read_text())["benchmarks"]
        assert len(found["requests"]["successful"]) == 3, found["requests"]


run()
