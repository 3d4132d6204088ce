"""Pieces of a rendered prompt as token ids: no text of a request ever becomes a special or a control token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from refusal_edge.errors import InvalidRequestError, PromptTooLongError
from refusal_edge.template import Piece

Tokenize = Callable[[bytes, bool], Sequence[int]]  # text, whether special tokens in it stand for themselves
ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True)
class SpecialToken:
    """A token that llama.cpp cuts out of text before it tokenises the rest.

    Attributes:
        text: as it stands in the vocabulary.
        kind: "user" ones are cut out of plain text too, the others only where special tokens are asked for.
        lstrip, rstrip: it swallows the white space before, after it.
    """

    id: int
    text: bytes
    kind: Literal["control", "unknown", "user"] = "control"
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class PromptTokenizer:
    """Tokenises prompts so that special tokens come from the template alone, and control tokens from nobody's text.

    Attributes:
        tokenize: llama.cpp's tokeniser, without beginning-of-sequence.
        special: special tokens of the vocabulary, control tokens among them where the file types them so.
        control: id -> the text that the token stands for.
    """

    tokenize: Tokenize
    special: Sequence[SpecialToken]
    control: Mapping[int, bytes]

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a segmented prompt; the same as stock llama.cpp's for text without special tokens in messages.

        Raises:
            InvalidRequestError: text of a message would become a special token whatever is done (fails closed).
        """
        parts = self._stripped(list(_merged(self._cut(pieces))))
        written = {part for part in parts if isinstance(part, int)}
        markers = {t.id for t in self.special if t.kind == "user" and t.id in written and t.text.strip()}
        forbidden = {t.id for t in self.special if t.kind == "control"} | markers | set(self.control)
        ids: list[int] = []
        for part in parts:
            ids += (part,) if isinstance(part, int) else self._avoiding(part, forbidden, special=False)
        return ids

    def encode_text(self, text: bytes, special: bool) -> list[int]:
        """Ids of a text of the host's own, where special tokens may stand for themselves but control tokens may not."""
        return list(self._avoiding(text, set(self.control), special))

    def special_in(self, text: str) -> str | None:
        """The first special or control token that a text holds."""
        return next((t for t in self._texts if t in text), None)

    def neutralise(self, text: str) -> str:
        """The text with a zero-width space inside each marker: it then spells none, unless a template cuts it."""
        for token in self._marker_texts:
            text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
        return text

    def markers(self, pieces: Iterable[Piece]) -> list[int]:
        """The special tokens that the template itself writes, in order; not its white space."""
        ids = (part for part in self._cut(p for p in pieces if not isinstance(p, int)) if isinstance(part, int))
        return [i for i in ids if i in self._marker_ids]

    @cached_property
    def _markers(self) -> list[SpecialToken]:
        """Special tokens that text can spell and a seam can break: visible, and longer than a character."""
        return [t for t in self.special if len(t.text.decode(errors="replace").strip()) > 1]

    @cached_property
    def _marker_ids(self) -> frozenset[int]:
        return frozenset(t.id for t in self._markers)

    @cached_property
    def _marker_texts(self) -> list[str]:
        texts = {t.text.decode(errors="replace") for t in self._markers}
        return sorted(texts | set(self._texts), key=len, reverse=True)

    @cached_property
    def _texts(self) -> list[str]:
        dangerous = [
            *(t.text for t in self.special if t.kind == "control"),
            *(t.strip() for t in self.control.values()),
        ]
        return sorted({t.decode(errors="replace") for t in dangerous if t.strip()}, key=len, reverse=True)

    @cached_property
    def _by_text(self) -> dict[bytes, SpecialToken]:
        return {t.text: t for t in self.special if t.id not in self.control and t.text}

    @cached_property
    def _special_pattern(self) -> re.Pattern[bytes]:
        return _any_of(self._by_text)

    def _cut(self, pieces: Iterable[Piece]) -> Iterator[int | bytes]:
        """Special tokens out of the template's own text; the rest stays text."""
        for piece in pieces:
            if isinstance(piece, int):
                yield piece
            elif not piece.trusted:
                yield piece.text.encode()
            else:
                yield from self._cut_trusted(piece.text.encode())

    def _cut_trusted(self, text: bytes) -> Iterator[int | bytes]:
        end = 0
        for match in self._special_pattern.finditer(text):
            yield text[end : match.start()]
            yield self._by_text[match[0]].id
            end = match.end()
        yield text[end:]

    def _stripped(self, parts: list[int | bytes]) -> list[int | bytes]:
        """White space taken away beside special tokens that swallow it."""
        tokens = {t.id: t for t in self._by_text.values()}
        for i, part in enumerate(parts):
            token = tokens.get(part) if isinstance(part, int) else None
            if token is not None and token.lstrip and i > 0 and isinstance(left := parts[i - 1], bytes):
                parts[i - 1] = left.rstrip()
            if token is not None and token.rstrip and i + 1 < len(parts) and isinstance(right := parts[i + 1], bytes):
                parts[i + 1] = right.lstrip()
        return [part for part in parts if part != b""]

    def _avoiding(self, text: bytes, forbidden: set[int], special: bool) -> Sequence[int]:
        """Tokenises; if a forbidden id comes out, again with a seam inside each text that a forbidden token has."""
        ids = self.tokenize(text, special)
        if forbidden.isdisjoint(ids):
            return ids
        texts = [self.control[i] for i in forbidden if i in self.control]
        texts += [t.text for t in self.special if t.id in forbidden]
        seams = [_seam(match) for match in _any_of(texts).finditer(text)]
        ids = [
            i for start, end in zip([0, *seams], [*seams, len(text)]) for i in self.tokenize(text[start:end], special)
        ]
        if not forbidden.isdisjoint(ids):
            found = self._name((set(ids) & forbidden).pop())
            raise InvalidRequestError(
                f"prompt: its text would become the token {found}: this vocabulary cannot spell it"
            )
        return ids

    def _name(self, token_id: int) -> str:
        texts = {**{t.id: t.text for t in self.special}, **self.control}
        return repr(texts[token_id].decode(errors="replace"))


def check_length(n_prompt: int, n_ctx: int, n_answer: int = 0) -> None:
    """Checks that a prompt fits, and `n_answer` tokens of the answer behind it.

    Raises:
        InvalidRequestError: a prompt without tokens. PromptTooLongError: one beyond the context.
    """
    if n_prompt == 0:
        raise InvalidRequestError("prompt: expected at least one token, got none")
    if n_prompt + n_answer > n_ctx:
        answer = f", with {n_answer} for the beginning of the answer," if n_answer else ""
        raise PromptTooLongError(
            f"prompt: {n_prompt} tokens{answer} do not fit the context of {n_ctx}: "
            "shorten it, or load the model with a larger n_ctx"
        )


def _merged(parts: Iterable[int | bytes]) -> Iterator[int | bytes]:
    """Adjacent texts as one, so that they are tokenised as stock llama.cpp would."""
    run = b""
    for part in parts:
        if isinstance(part, bytes):
            run += part
            continue
        if run:
            yield run
        run = b""
        yield part
    if run:
        yield run


def _any_of(texts: Iterable[bytes]) -> re.Pattern[bytes]:
    """Matches any of the texts, the longest first; matches nothing if there are none."""
    ordered = sorted((t for t in texts if t), key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, ordered)) or rb"(?!)")


def _seam(match: re.Match[bytes]) -> int:
    """A place inside a match, after its first visible character."""
    text = match[0]
    inside = len(text) - len(text.lstrip()) + 1
    while inside < len(text) and 0x80 <= text[inside] < 0xC0:
        inside += 1
    return match.start() + inside
