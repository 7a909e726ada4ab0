"""Hugging Face's dialect of Jinja, in which chat templates are written, in a sandbox.

Beyond Jinja's own it has loop controls, `raise_exception`, `strftime_now`, `tojson` with the options of Python's and without HTML
escapes, and `{% generation %}`, which marks the text of assistants for training and means nothing here.

Where a template looks for a text in a content (`in`, `split`, `startswith`, `replace` and so on), it finds the caller's marks,
which stand there in twins (see `hidden`)."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from poise.worker.text.hidden import HIDDEN, Hidden, has_twins, twins

MARKS_MAX = 64
_MARK_CHARS = range(3, 65)
_MARK_SIGNS = frozenset("<>[]|{}/#")
_CUTS = {"split", "rsplit", "partition", "rpartition", "replace", "removeprefix", "removesuffix"}
_LOOKS = _CUTS | {"startswith", "endswith", "find", "rfind", "index", "rindex", "count"}
_STRIPS = frozenset(("strip", "lstrip", "rstrip"))


class TemplateRefusal(Exception):
    """Raised by templates, with their own words, by calling raise_exception."""


class Dialect(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates, one rendering at a time."""

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.hidden = Hidden()
        """Of the rendering that runs."""
        self.filters["tojson"] = self._to_json
        self.filters["replace"] = _replace
        self.tests["in"] = _contains
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda fmt: now().strftime(fmt)

    def compiled(self, source: str) -> tuple[jinja2.Template, tuple[str, ...]]:
        """A template, and its marks: the texts in it that it may look for. Raises TemplateSyntaxError."""
        tree = self.parse(source)
        words = dict.fromkeys(
            word
            for const in tree.find_all(nodes.Const)
            if isinstance(const.value, str)
            for word in const.value.split()
            if len(word) in _MARK_CHARS and _MARK_SIGNS.intersection(word)
        )
        return self.from_string(_Looks().visit(tree)), tuple(words)[:MARKS_MAX]

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if args and isinstance(text, str) and has_twins(text):
            if name in _LOOKS:
                args = (_sought(text, args[0]), *args[1:])
            elif name in _STRIPS and isinstance(args[0], str):
                args = (args[0] + twins(args[0]),)
        return super().call(__context, __obj, *args, **kwargs)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.hidden.in_json(text, ensure_ascii=ensure_ascii)


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja's way)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Looks(NodeTransformer):
    """`a in b` becomes the test of that name, which knows of twins; Python's operator does not."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        if len(node.ops) != 1 or node.ops[0].op not in ("in", "notin"):
            return node
        test = nodes.Test(node.expr, "in", [node.ops[0].expr], [], None, None, lineno=node.lineno)
        return test if node.ops[0].op == "in" else nodes.Not(test, lineno=node.lineno)


def _sought(text: str, wanted: Any) -> Any:
    """What to look for in a text: the wanted one as a caller has written it, where it is there, else as a template has."""
    if isinstance(wanted, tuple):
        return tuple(inner for one in wanted for inner in (one, twins(one)))
    return written if isinstance(wanted, str) and (written := twins(wanted)) in text else wanted


def _contains(value: Any, container: Any) -> bool:
    return value in container or (
        isinstance(value, str) and isinstance(container, str) and has_twins(container) and twins(value) in container
    )


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = str(value)
    sought: str = _sought(text, str(old))
    return text.replace(sought, str(new), -1 if count is None else count)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(HIDDEN.sub("…", str(message))[:500])
