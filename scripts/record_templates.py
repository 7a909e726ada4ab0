"""What `transformers` makes of the tests' chat templates, recorded for them: tests/worker/text/families/recorded.json.

    python -m venv /tmp/reference && /tmp/reference/bin/pip install transformers
    PYTHONPATH=. /tmp/reference/bin/python scripts/record_templates.py

It is run when a family or a conversation is added. The tests need only the record, because the package is a large one.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
import transformers
from tests.worker.text.conversations import BOS, CONVERSATIONS, EOS, FAMILIES, NOW, RECORDED
from transformers.utils import chat_template_utils


class Then(datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return NOW


def rendered(source: str, messages: list[dict[str, Any]], values: dict[str, Any]) -> str | None:
    """None: the template refuses it."""
    given = {"add_generation_prompt": True, "bos_token": BOS, "eos_token": EOS} | values
    try:
        texts, _ = chat_template_utils.render_jinja_template([messages], chat_template=source, **given)
    except jinja2.TemplateError:
        return None
    return str(texts[0])


def main() -> None:
    chat_template_utils.datetime = Then
    families = {
        path.stem: {name: rendered(path.read_text(), *asked) for name, asked in CONVERSATIONS.items()}
        for path in sorted(FAMILIES.glob("*.jinja"))
    }
    record = {"transformers": transformers.__version__, "families": families}
    RECORDED.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(families)} families, {len(CONVERSATIONS)} conversations, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
