"""Request parameters of the wrong kind: named here, before llama-cpp-python or llama.cpp trips over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from refusal_edge.errors import InvalidRequestError

OnRefuse = Literal["generate", "message", "raise"]
ON_REFUSE: Final = get_args(OnRefuse)
_NUMBERS: Final = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "tfs_z", "mirostat_tau", "mirostat_eta"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty", "max_tokens"),
)


def check_parameters(parameters: Mapping[str, Any], on_refuse: object) -> None:
    """Checks those parameters of a completion or chat completion that are given.

    Raises:
        InvalidRequestError: names the parameter, what is allowed and what it got.
    """
    if on_refuse not in ON_REFUSE:
        raise InvalidRequestError(f"on_refuse: expected one of {', '.join(ON_REFUSE)}, got {on_refuse!r}")
    for name in _NUMBERS:
        _check_number(name, parameters.get(name))
    if parameters.get("repeat_penalty") == 0:
        raise InvalidRequestError("repeat_penalty: expected a number other than 0, which logits are divided by")
    _check_stop(parameters.get("stop"))
    _check_response_format(parameters.get("response_format"))
    _check_tools(parameters)


def _check_number(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequestError(f"{name}: expected a finite number, got {value!r}")


def _check_stop(stop: object) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is None:
        return
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequestError(f"stop: expected a string or a list of strings, none of them empty, got {stop!r}")


def _check_response_format(value: object) -> None:
    if value is not None and (not isinstance(value, Mapping) or not isinstance(value.get("type"), str)):
        raise InvalidRequestError(f"response_format: expected an object with a type, got {value!r}")


def _check_tools(parameters: Mapping[str, Any]) -> None:
    tools = [_field(f"tools[{i}]", tool, "function") for i, tool in _listed("tools", parameters)]
    names = [_name(f"tools[{i}].function", function) for i, function in enumerate(tools)]
    names += [_name(f"functions[{i}]", function) for i, function in _listed("functions", parameters)]
    chosen = parameters.get("tool_choice")
    if isinstance(chosen, Mapping):
        name = _name("tool_choice.function", _field("tool_choice", chosen, "function"))
        if name not in names:
            raise InvalidRequestError(f"tool_choice: expected one of {names}, got {name!r}")
    elif chosen not in (None, "none", "auto", "required"):
        raise InvalidRequestError(f'tool_choice: expected "none", "auto", "required" or an object, got {chosen!r}')


def _listed(name: str, parameters: Mapping[str, Any]) -> Sequence[tuple[int, Any]]:
    values = parameters.get(name)
    if values is None:
        return ()
    if not isinstance(values, (list, tuple)):
        raise InvalidRequestError(f"{name}: expected a list of objects, got {type(values).__name__}")
    return list(enumerate(values))


def _name(where: str, function: object) -> str:
    name = _field(where, function, "name")
    if not isinstance(name, str) or not isinstance(_field(where, function, "parameters", {}), Mapping):
        raise InvalidRequestError(f"{where}: expected a name (a string) and parameters (an object)")
    return name


def _field(where: str, value: object, key: str, default: object = None) -> Any:
    if not isinstance(value, Mapping) or (key not in value and default is None):
        raise InvalidRequestError(f"{where}: expected an object with {key!r}, got {value!r}")
    return value.get(key, default)
