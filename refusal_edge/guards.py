"""Request parameters that could reach a control token: checked before anything is decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from refusal_edge.errors import InvalidRequestError
from refusal_edge.numbers import FLOAT32_MAX, as_integer, as_number, shown

_TEXTS: Final = ("stop", "grammar", "response_format", "tool_choice", "function_call")
_TOKEN_ID: Final = re.compile(r"-?[0-9]{1,20}")
_TOKEN_REFERENCE: Final = re.compile(r"<\[\s*(\d+)\s*\]>")  # GBNF: a token by its id


@dataclass(frozen=True)
class ParameterGuard:
    """Knows the control tokens of a model.

    Attributes:
        control: id -> the text that the token stands for.
        n_vocab: size of the vocabulary.
    """

    control: Mapping[int, str]
    n_vocab: int

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Checks the parameters of a completion or chat completion that are given.

        Raises:
            InvalidRequestError: `logit_bias` names a control token or no token at all; `stop`, a grammar, a response
                format or a tool choice holds the text of a control token, or a grammar its id.
        """
        self._check_logit_bias(parameters.get("logit_bias"))
        for name in _TEXTS:
            try:
                texts = list(_strings(parameters.get(name)))
            except RecursionError:
                raise InvalidRequestError(f"{name}: nested too deeply") from None
            for text in texts:
                self._check_text(name, text)

    def _check_logit_bias(self, bias: object) -> None:
        if bias is None:
            return
        if not isinstance(bias, Mapping):
            raise InvalidRequestError(f"logit_bias: expected an object of token id -> bias, got {type(bias).__name__}")
        for key, value in bias.items():
            token_id = int(key) if isinstance(key, str) and _TOKEN_ID.fullmatch(key) else as_integer(key)
            number = as_number(value)
            if token_id is None or number is None or abs(number) > FLOAT32_MAX:
                raise InvalidRequestError(
                    f"logit_bias: expected token id -> number, finite, got {shown(key)}: {shown(value)}"
                )
            if token_id in self.control:
                raise InvalidRequestError(
                    f"logit_bias: token {token_id} is the control token {self.control[token_id]!r}"
                )
            if not 0 <= token_id < self.n_vocab:
                raise InvalidRequestError(f"logit_bias: expected token ids in [0, {self.n_vocab}), got {shown(key)}")

    def _check_text(self, name: str, text: str) -> None:
        for control in self.control.values():
            if control.strip() and control.strip() in text:
                raise InvalidRequestError(f"{name}: may not hold the control token {control.strip()!r}")
        if name == "grammar":
            for match in _TOKEN_REFERENCE.finditer(text):
                if len(match[1]) < 20 and int(match[1]) in self.control:
                    raise InvalidRequestError(
                        f"grammar: {match[0]} is the control token {self.control[int(match[1])]!r}"
                    )


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON-like value, keys too; the source of a LlamaGrammar."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
    elif isinstance(source := getattr(value, "_grammar", None), str):
        yield source
