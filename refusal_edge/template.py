"""Splits a rendered chat template into the template's own text and text that came from the request.

The request is rendered twice: plainly, and with random marks around each of its strings. Without its marks the second
rendering must equal the first; then the marks show where each string went. A template that cuts or changes the marks is
found out by that; its prompt is not taken apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from refusal_edge.errors import InvalidRequestError
from refusal_edge.messages import Message

Request = dict[str, Any]  # "messages", and what else a template reads: "tools", "functions"
Render = Callable[[Request], str]
Refuse = Callable[[str], str | None]  # the special token that a text holds, if any

PLAIN_KEYS: Final = ("role", "type")  # templates compare these with words of their own
MAX_SEARCHED: Final = 256
"""Assistant turns whose beginning is looked for by rendering what came before; each costs a rendering."""

_WORD: Final = re.compile(r"[\w.-]{1,64}")
_MARK: Final = re.compile("([\ue001\ue003])([0-9]+)\ue002")  # after \ue000 and the nonce


@dataclass(frozen=True)
class Span:
    """A stretch of the prompt.

    Attributes:
        text: as rendered.
        trusted: the template's own text, in which special tokens stand for themselves.
    """

    text: str
    trusted: bool


Piece = Span | int  # an int is the control token of an earlier turn


def build_request(messages: Sequence[Message], **extra: Any) -> Request:
    """The variables of the template that come from the request."""
    return {"messages": [message.fields for message in messages], **extra}


def segment(render: Render, messages: Sequence[Message], **extra: Any) -> list[Piece] | None:
    """The prompt in pieces; joined, the texts are the rendering. None if this template hides where a string went.

    Raises:
        InvalidRequestError: the template cannot render these messages at all.
    """
    plain = render(build_request(messages, **extra))
    for whole in (True, False):
        marks = _Marks(whole)
        try:
            marked = render(marks.wrap_request(messages, extra))
        except InvalidRequestError:
            continue  # a template that fails on marked text cannot be segmented
        if (stretches := marks.split(marked)) is not None and "".join(s.text for s in stretches) == plain:
            return _with_control_tokens(stretches, render, messages, extra)
    return None


def unsegmented(render: Render, messages: Sequence[Message], **extra: Any) -> list[Piece]:
    """The whole prompt as the template's own text: its strings must have been neutralised, and the result be checked.

    Raises:
        InvalidRequestError: the template cannot render these messages at all.
    """
    text = render(build_request(messages, **extra))
    return _with_control_tokens([_Stretch(text, trusted=True)], render, messages, extra)


def harmless(text: str) -> str:
    """A text of the same length and white space that holds no special token."""
    return re.sub(r"\S", "x", text)


def check_unmarked(request: Request, special_in: Refuse) -> None:
    """Refuses special tokens where no marks can go: keys, roles and types.

    Raises:
        InvalidRequestError: names the token.
    """
    for text in _unmarked(request):
        if (token := special_in(text)) is not None:
            raise InvalidRequestError(f"messages and tools: keys, roles and types may not hold the token {token!r}")


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON-like value with every string changed, but not its keys, nor the words that are `PLAIN_KEYS`.

    Raises:
        InvalidRequestError: something that is not JSON, whose text nobody could vouch for.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequestError(f"messages and tools: expected strings as keys, got {type(key).__name__}")
        return {k: v if _is_plain(k, v) else map_strings(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change) for item in value]
    if value is None or type(value) in (bool, int, float):
        return value
    raise InvalidRequestError(
        f"messages and tools: expected strings, numbers, booleans, null, lists and objects, got {type(value).__name__}"
    )


def _is_plain(key: str, value: object) -> bool:
    return key in PLAIN_KEYS and isinstance(value, str) and _WORD.fullmatch(value) is not None


def _unmarked(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            if _is_plain(key, item):
                yield item
            else:
                yield from _unmarked(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _unmarked(item)


@dataclass(frozen=True)
class _Stretch:
    """Text between two marks; `owner` is the index of the message whose content it is, None if it is none's."""

    text: str
    trusted: bool
    owner: int | None = None


@dataclass
class _Marks:
    """Random marks around strings: private-use characters and digits, which common filters (trim, upper) keep.

    Attributes:
        whole: mark the string from end to end; else without the white space at its ends, which templates may trim.
        owners: number of a mark -> index of the message whose content it stands around.
    """

    whole: bool
    nonce: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "big"))
    count: int = 0
    owners: dict[int, int] = field(default_factory=dict)

    def wrap(self, text: str) -> str:
        core = text if self.whole else text.strip()
        if not core.strip():
            return text  # marks would make an empty string true, and there is nothing to protect
        before, after = text.split(core, 1)
        self.count += 1
        return (
            f"{before}\ue000{self.nonce}\ue001{self.count}\ue002{core}\ue000{self.nonce}\ue003{self.count}\ue002{after}"
        )

    def wrap_request(self, messages: Sequence[Message], extra: Mapping[str, Any]) -> Request:
        return {
            "messages": [self._wrap_message(i, message.fields) for i, message in enumerate(messages)],
            **map_strings(dict(extra), self.wrap),
        }

    def _wrap_message(self, index: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        wrapped: dict[str, Any] = {}
        for key, value in fields.items():
            if key == "content" and isinstance(value, str) and value.strip():
                self.owners[self.count + 1] = index
            wrapped.update(map_strings({key: value}, self.wrap))
        return wrapped

    def split(self, marked: str) -> list[_Stretch] | None:
        """The stretches of a marked rendering; None if a mark is broken or missing its other half."""
        first, *rest = marked.split(f"\ue000{self.nonce}")
        stretches = [_Stretch(first, trusted=True)]
        inside: str | None = None
        for part in rest:
            if (mark := _MARK.match(part)) is None:
                return None
            kind, number, text = mark[1], mark[2], part[mark.end() :]
            opens = kind == "\ue001"
            if inside != (None if opens else number):
                return None
            inside = number if opens else None
            stretches.append(_Stretch(text, not opens, self.owners.get(int(number)) if opens else None))
        return stretches if inside is None else None


def _with_control_tokens(
    stretches: list[_Stretch], render: Render, messages: Sequence[Message], extra: Mapping[str, Any]
) -> list[Piece]:
    """The pieces, with the control token of each assistant turn whose beginning can be found."""
    marked = {stretch.owner for stretch in stretches}
    unmarked = [i for i, m in enumerate(messages) if m.control_token_id is not None and i not in marked]
    if len(unmarked) > MAX_SEARCHED:
        raise InvalidRequestError(
            f"messages: expected at most {MAX_SEARCHED} assistant turns that this chat template hides, "
            f"got {len(unmarked)}; send fewer earlier turns"
        )
    for i in unmarked:
        stretches = _opened(stretches, i, render(build_request(messages[:i], **extra)))
    return list(_place_control_tokens(stretches, messages))


def _opened(stretches: list[_Stretch], turn: int, before: str) -> list[_Stretch]:
    """Cuts where the prompt ended that this turn was the answer to, if that is how the rendering begins."""
    if not "".join(stretch.text for stretch in stretches).startswith(before):
        return stretches
    start = len(before)
    for i, stretch in enumerate(stretches):
        if start <= len(stretch.text):
            left, right = replace(stretch, text=stretch.text[:start]), replace(stretch, text=stretch.text[start:])
            return [*stretches[:i], left, _Stretch("", False, turn), right, *stretches[i + 1 :]]
        start -= len(stretch.text)
    return stretches


def _place_control_tokens(stretches: Sequence[_Stretch], messages: Sequence[Message]) -> Iterator[Piece]:
    """The pieces, with the control token of each assistant message before its content.

    White space at the content's start belongs after the token, whether the template kept it, our marks left it outside,
    or the template trimmed it: that is how the model wrote it.
    """
    placed: set[int] = set()
    for stretch, following in zip(stretches, [*stretches[1:], None]):
        owner = None if following is None or following.owner in placed else following.owner
        token_id = None if owner is None else messages[owner].control_token_id
        if following is None or owner is None or token_id is None:
            yield Span(stretch.text, stretch.trusted)
            continue
        placed.add(owner)
        content: str = messages[owner].fields["content"] if following.text else ""
        space = content[: len(content) - len(content.lstrip())]
        inside = following.text.startswith(space)
        yield Span(stretch.text if inside else stretch.text.removesuffix(space), stretch.trusted)
        yield token_id
        if not inside:
            yield Span(space, trusted=False)
