"""The sandbox for Hugging Face chat templates, as in transformers (`transformers/utils/chat_template_utils.py`): values are immutable,
private names do not exist, and Jinja is extended by `{% generation %}`, loop controls, `tojson` without HTML escapes,
`raise_exception` and `strftime_now`. Independent of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Rendered", "compiled"]

Rendered = tuple[str, list[tuple[int, int]]]
"""A text, and the character ranges that `{% generation %}` encloses."""


def compiled(source: str, strftime_now: Callable[[str], str]) -> Callable[[dict[str, Any]], Rendered]:
    """Return a function that renders a template. Raises jinja2's errors."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    generation = _generation()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": _Dict(), "namespace": _namespace()}
    template = environment.from_string(source)
    extension: Any = environment.extensions[generation.identifier]

    def render(values: dict[str, Any]) -> Rendered:
        blocks: list[str] = []
        with extension.noting(blocks) as spans:
            for block in template.generate(**values):
                blocks.append(block)  # one by one: the extension counts the characters written so far
        return "".join(blocks), list(spans)

    return render


def _generation() -> Any:
    """The extension that reads `{% generation %} ... {% endgeneration %}`."""
    import jinja2
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - declared like in jinja2
        blocks: list[str] | None = None
        spans: list[tuple[int, int]]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

        def _note(self, caller: Any) -> str:
            said: str = caller()
            if self.blocks is not None:
                start = sum(map(len, self.blocks))
                self.spans.append((start, start + len(said)))
            return said

        @contextmanager
        def noting(self, blocks: list[str]) -> Iterator[list[tuple[int, int]]]:
            self.blocks, self.spans = blocks, []
            try:
                yield self.spans
            finally:
                self.blocks = None

    return Generation


class _Dict:
    """`dict(...)` without the other class attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _namespace() -> Any:
    """`namespace(...)` without private names."""
    import jinja2

    def refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no private attributes, got {name!r}")

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works
            self, rest = args[0], args[1:]
            values = dict(*rest, **kwargs)
            for name in values:
                refuse_private(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

    return Namespace


def _tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
