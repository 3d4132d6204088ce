"""The tokenizer files of a checkpoint, and the added tokens from every place where they hide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from refusal_edge.errors import ConversionError, FormatError

from ..jsonfile import read_object, shown
from .model import AddedToken

MAX_TOKENIZER_BYTES = 256 << 20  # Gemma 3: 33 MB
MAX_TOKEN_ID = 2**31 - 1
FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class TokenizerFiles:
    """What was found next to the weights; an absent file is an empty mapping or None."""

    folder: Path
    tokenizer: dict[str, Any]
    proto: bytes | None
    config: dict[str, Any]
    added_json: dict[str, Any]
    special_map: dict[str, Any]
    generation: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Reads them all.

        Raises:
            ConversionError: there is neither tokenizer.json nor tokenizer.model.
            FormatError: a file is too large or not a JSON object.
        """

        def optional(name: str, max_bytes: int = 64 << 20) -> dict[str, Any]:
            path = folder / name
            return read_object(path, max_bytes) if path.is_file() else {}

        tokenizer = optional("tokenizer.json", MAX_TOKENIZER_BYTES)
        proto = _bytes(folder / "tokenizer.model")
        if not tokenizer and proto is None:
            hint = ""
            if (folder / "vocab.json").is_file():
                hint = "; vocab.json alone does not say how text is split: save the tokenizer again with transformers"
            raise ConversionError(f"{folder}: neither tokenizer.json nor tokenizer.model is there{hint}")
        return cls(
            folder,
            tokenizer,
            proto,
            optional("tokenizer_config.json"),
            optional("added_tokens.json"),
            optional("special_tokens_map.json"),
            optional("generation_config.json"),
        )

    def broken(self, file: str, what: str) -> FormatError:
        return FormatError(f"{self.folder / file}: {what}")

    @cached_property
    def base_model(self) -> dict[str, Any]:
        """`model` of tokenizer.json."""
        model = self.tokenizer.get("model")
        if not isinstance(model, dict):
            raise self.broken("tokenizer.json", f"model must be an object, got {shown(model)}")
        return model

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Every added token, by id: tokenizer.json first, then what only the other files know.

        Raises:
            FormatError: an entry without text or id.
        """
        tokens: dict[int, AddedToken] = {}
        for file, token_id, entry in self._entries():
            token = self._added_token(file, token_id, entry)
            if (known := tokens.setdefault(token_id, token)).content != token.content:
                self.warnings.append(
                    f"{file} calls token {token_id} {shown(token.content)}, another file {shown(known.content)}: "
                    "the latter is used"
                )
        special = self._special_texts()
        return {
            token_id: AddedToken(**{**vars(token), "special": True}) if token.content in special else token
            for token_id, token in sorted(tokens.items())
        }

    def _entries(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        file = "tokenizer.json"
        for entry in self._list(file, self.tokenizer.get("added_tokens")):
            yield file, self._id(file, entry.get("id")), entry
        file = "tokenizer_config.json"
        decoder = self.config.get("added_tokens_decoder", {})
        if not isinstance(decoder, dict):
            raise self.broken(file, "added_tokens_decoder must be an object")
        for key, entry in decoder.items():
            if not isinstance(entry, dict):
                raise self.broken(file, f"added token {shown(key)} must be an object")
            yield file, self._id(file, int(key) if key.isascii() and key.isdigit() and len(key) < 11 else key), entry
        file = "added_tokens.json"
        for content, token_id in self.added_json.items():
            yield file, self._id(file, token_id), {"content": content}

    def _list(self, file: str, entries: object) -> list[dict[str, Any]]:
        if not isinstance(entries, list | None) or not all(isinstance(entry, dict) for entry in entries or ()):
            raise self.broken(file, "added_tokens must be a list of objects")
        return entries or []

    def _id(self, file: str, value: object) -> int:
        if type(value) is not int or not 0 <= value <= MAX_TOKEN_ID:
            expected = f"an integer in [0, {MAX_TOKEN_ID}]"
            raise self.broken(file, f"an added token has the id {shown(value)}, expected {expected}")
        return value

    def _added_token(self, file: str, token_id: int, entry: dict[str, Any]) -> AddedToken:
        content = entry.get("content")
        if not isinstance(content, str):
            raise self.broken(file, f"added token {token_id} has no text")
        flags = {name: bool(entry[name]) for name in FLAGS if name in entry}
        return AddedToken(token_id, content, **flags)

    def _special_texts(self) -> set[str]:
        """Texts that tokenizer_config.json or special_tokens_map.json give a special role."""
        texts: set[str] = set()
        for table in (self.config, self.special_map):
            for key, value in table.items():
                if key.endswith("_token") and (text := token_text(value)):
                    texts.add(text)
            for key in ("additional_special_tokens", "extra_special_tokens"):
                extra = table.get(key)
                values = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ()
                texts.update(text for value in values if (text := token_text(value)))
        return texts


def token_text(value: object) -> str | None:
    """The text of a token that is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _bytes(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise FormatError(f"{path}: larger than {MAX_TOKENIZER_BYTES} bytes")
    return path.read_bytes()
