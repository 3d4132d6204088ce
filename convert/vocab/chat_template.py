"""The chat template, from each of the places where transformers has kept it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refusal_edge.errors import FormatError

from ..jsonfile import read_object, shown

MAX_TEMPLATE_BYTES = 4 << 20


def find(folder: Path, tokenizer_config: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Templates by name, "default" being the one in use, and warnings.

    A file of its own wins over tokenizer_config.json, as in transformers.

    Raises:
        FormatError: a template that is neither text nor a list of named texts.
    """
    templates: dict[str, str] = {}
    warnings: list[str] = []
    for source, value in (
        ("tokenizer_config.json", tokenizer_config.get("chat_template")),
        ("chat_template.json", _json(folder / "chat_template.json")),
        ("chat_template.jinja", _text(folder / "chat_template.jinja")),
    ):
        found = _named(value, folder / source)
        if "default" in found and templates.get("default", found["default"]) != found["default"]:
            warnings.append(f"{source} holds another chat template than tokenizer_config.json: the former is used")
        templates.update(found)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[_identifier(path.stem)] = _text(path) or ""
    templates = {name: source for name, source in templates.items() if name and source}
    if "default" not in templates:
        warnings.append("the checkpoint has no chat template: chat messages will be put together by llama.cpp's guess")
    return templates, warnings


def _named(value: object, source: Path) -> dict[str, str]:
    if value is None or value == "":
        return {}
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("template"), str) for e in entries
    ):
        expected = "a string or a list of names and templates"
        raise FormatError(f"{source}: chat_template must be {expected}, got {shown(value)}")
    return {_identifier(entry["name"]): entry["template"] for entry in entries}


def _identifier(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _json(path: Path) -> object:
    return read_object(path, MAX_TEMPLATE_BYTES).get("chat_template") if path.is_file() else None


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise FormatError(f"{path}: larger than {MAX_TEMPLATE_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: {error}") from None
