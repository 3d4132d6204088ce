"""Request parameters of the wrong kind: named here, before llama-cpp-python or llama.cpp trips over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from refusal_edge.errors import InvalidRequestError
from refusal_edge.numbers import FLOAT32_MAX, as_integer, as_number, is_unicode, shown

OnRefuse = Literal["generate", "message", "raise"]
ON_REFUSE: Final = get_args(OnRefuse)
RESPONSE_FORMATS: Final = ("text", "json_object")
_ANY: Final = (-FLOAT32_MAX, FLOAT32_MAX)
_NUMBERS: Final = {
    **dict.fromkeys(("temperature", "tfs_z", "mirostat_tau", "mirostat_eta"), _ANY),
    **dict.fromkeys(("repeat_penalty", "frequency_penalty", "presence_penalty"), _ANY),
    **dict.fromkeys(("top_p", "min_p", "typical_p"), (0.0, 1.0)),
}
_INTEGERS: Final = {
    "seed": (-(2**63), 2**63 - 1),
    "top_k": (-(2**31), 2**31 - 1),
    "max_tokens": (-(2**31), 2**31 - 1),
    "mirostat_mode": (0, 2),
    "top_logprobs": (0, 2**31 - 1),
}


def check_parameters(parameters: Mapping[str, Any], on_refuse: object) -> None:
    """Checks those parameters of a completion or chat completion that are given.

    Raises:
        InvalidRequestError: names the parameter, what is allowed and what it got.
    """
    if on_refuse not in ON_REFUSE:
        raise InvalidRequestError(f"on_refuse: expected one of {', '.join(ON_REFUSE)}, got {on_refuse!r}")
    for name, (low, high) in _NUMBERS.items():
        _check_number(name, parameters.get(name), low, high)
    for name, (lowest, highest) in _INTEGERS.items():
        _check_integer(name, parameters.get(name), lowest, highest)
    if parameters.get("repeat_penalty") == 0:
        raise InvalidRequestError("repeat_penalty: expected a number other than 0, which logits are divided by")
    _check_stop(parameters.get("stop"))
    _check_response_format(parameters.get("response_format"))
    _check_tools(parameters)


def check_logprobs(parameters: Mapping[str, Any], logits_all: bool) -> None:
    """Checks `logprobs`: a boolean in a chat, a number in a completion.

    Raises:
        InvalidRequestError: neither, or the model was loaded without `logits_all`.
    """
    value = parameters.get("logprobs")
    if value is None or value is False:
        return
    if value is not True:
        _check_integer("logprobs", value, 0, 2**31 - 1)
    if not logits_all:
        raise InvalidRequestError(f"logprobs: got {value}, but they need a model loaded with logits_all=True")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    number = as_number(value)
    if number is None or not low <= number <= high:
        allowed = "a finite number" if high == FLOAT32_MAX else f"a number in [{low:g}, {high:g}]"
        raise InvalidRequestError(f"{name}: expected {allowed}, got {shown(value)}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    number = as_integer(value)
    if number is None or not low <= number <= high:
        raise InvalidRequestError(f"{name}: expected an integer in [{low}, {high}], got {shown(value)}")


def _check_stop(stop: object) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is None:
        return
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequestError(
            f"stop: expected a string or a list of strings, none of them empty, got {shown(stop)}"
        )
    if not all(map(is_unicode, texts)):
        raise InvalidRequestError(f"stop: expected Unicode text, got a lone surrogate: {shown(stop)}")


def _check_response_format(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise InvalidRequestError(f"response_format: expected an object with a type, got {shown(value)}")
    if value["type"] not in RESPONSE_FORMATS:
        raise InvalidRequestError(
            f"response_format.type: expected one of {', '.join(RESPONSE_FORMATS)} (with a schema), "
            f"got {shown(value['type'])}"
        )


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
