"""The control tokens of a checkpoint: found by text and by structure, then written so that no text becomes one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gguf import TokenType

from refusal_edge.byte_level import encode
from refusal_edge.errors import ConversionError, InvalidPolicyError
from refusal_edge.keys import TOKEN_TYPES, Stamp
from refusal_edge.policy import MAX_CATEGORIES, Category

from . import vocab as _vocab
from .jsonfile import shown
from .vocab.model import token_type as plain_type
from .vocab.specials import KNOWN_ENDS, TURN_STARTS

RESPOND: Final = "respond"
DETOKENIZE_BYTES: Final = 32
"""llama-cpp-python's `detokenize` gives each piece so many bytes and drops longer ones without a word."""

_BRACKETED = re.compile(r"\s*\[[^\[\]\n]{2,60}\]\s*")
_FOREIGN = re.compile(  # of prompt formats and trainers
    r"(?i)\s*\[/?(inst|sys|system|pad|cls|sep|mask|unk|bos|eos|eot|gmask|sgmask|tool|img|available)\w*\]\s*"
)


@dataclass(frozen=True)
class Role:
    """What a token text means: the slug of a category, or "respond"."""

    slug: str
    title: str
    text: str


PRESETS: Final[dict[str, tuple[Role, ...]]] = {
    "coconot-5": (
        Role("humanizing", "Humanizing requests", "[Humanizing requests]"),
        Role("incomplete", "Incomplete requests", "[Incomplete requests]"),
        Role("indeterminate", "Indeterminate requests", "[Indeterminate requests]"),
        Role("safety", "Requests with safety concerns", "[Requests with safety concerns]"),
        Role("unsupported", "Unsupported requests", "[Unsupported requests]"),
        Role(RESPOND, "Respond", "[respond]"),
    ),
    "single": (Role("refuse", "Refuse", "[refuse]"), Role(RESPOND, "Respond", "[respond]")),
}
_BY_TEXT = {role.text: role for roles in PRESETS.values() for role in roles}


@dataclass(frozen=True)
class ControlToken:
    """One control token: its role, its id, and its exact text, leading space included."""

    slug: str
    title: str
    id: int
    text: str


@dataclass(frozen=True)
class ControlTokens:
    """The category tokens in the order of their ids, and the respond token."""

    categories: tuple[ControlToken, ...]
    respond: ControlToken
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ControlToken]:
        yield from self.categories
        yield self.respond

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self]

    def seal(self, vocab: _vocab.Vocab, token_type: str = "sealed") -> _vocab.Vocab:
        """`vocab` with the control tokens written as `token_type`.

        "sealed" is a NORMAL token spelled as the vocabulary spells its own pieces, so that it still prints, but nothing
        matches it as a whole and no merge forms it. "control" and "user" hold the plain text: llama.cpp turns that text
        into the token where special tokens are parsed, or always.

        Raises:
            ConversionError: an unknown type.
        """
        if token_type not in TOKEN_TYPES:
            raise ConversionError(f"--token-type: expected one of {', '.join(TOKEN_TYPES)}, got {token_type!r}")
        kind = {"sealed": TokenType.NORMAL, "control": TokenType.CONTROL, "user": TokenType.USER_DEFINED}[token_type]
        tokens, types = list(vocab.tokens), list(vocab.types)
        taken = set(tokens)
        for token in self:
            text = spelled(vocab, token.text) if token_type == "sealed" else token.text
            if text.encode() not in taken:  # else the row already has a text of its own
                tokens[token.id] = text.encode()
            types[token.id] = int(kind)
        return replace(vocab, tokens=tokens, types=types)

    def formed_by_merging(self, vocab: _vocab.Vocab) -> list[ControlToken]:
        """Sealed tokens that llama.cpp could put together from smaller pieces, whatever their type."""
        spelling = {spelled(vocab, token.text): token for token in self}
        if vocab.merges is not None:
            formed = {merged for merge in vocab.merges if (merged := merge.replace(" ", "")) in spelling}
        else:
            pieces = set(vocab.tokens)
            formed = {text for text in spelling if _is_pair_of(pieces, text)}
        return [token for text, token in spelling.items() if text in formed]

    def stamp(self, *, token_type: str, reachable: str | None = None, **policy: Any) -> Stamp:
        """The keys to write. `policy` holds fields of `Stamp`; every category starts with the model's own behaviour."""
        return Stamp(
            respond_token_id=self.respond.id,
            categories=tuple(Category(c.slug, c.id, "model", c.title) for c in self.categories),
            token_type=token_type,
            reachable=reachable,
            **policy,
        )


def spelled(vocab: _vocab.Vocab, text: str) -> str:
    """`text` as the trained pieces of this vocabulary are spelled."""
    return encode(text) if vocab.model == "gpt2" else text.replace(" ", "▁")


def _is_pair_of(pieces: set[bytes], text: str) -> bool:
    """Whether SentencePiece could join two pieces, or characters, to `text`."""
    known = [len(part) == 1 or part.encode() in pieces for part in (text[:cut] for cut in range(len(text)))]
    rest = [len(part) == 1 or part.encode() in pieces for part in (text[cut:] for cut in range(len(text)))]
    return any(known[cut] and rest[cut] for cut in range(1, len(text)))


def find_control_tokens(vocab: _vocab.Vocab, *, preset: str | None = None, tokens: Sequence[str] = ()) -> ControlTokens:
    """Finds the control tokens among the added tokens.

    Args:
        preset: a name in `PRESETS`; None tries them all.
        tokens: `ROLE=ID` or `ROLE=TEXT`, with ROLE "respond", a category slug, or `SLUG:TITLE`;
            they are added to what is found, and win over it.

    Raises:
        ConversionError: none found (lists the added tokens), no respond token, no category, two roles on one token,
            an id or text that is not in the vocabulary, a token that is an ordinary piece of it, or one that prompts
            and answers are made of.
    """
    if preset is not None and preset not in PRESETS:
        raise ConversionError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    found = _Found(vocab)
    for item in tokens:
        found.explicit(item)
    named = set(found.roles)
    if preset is not None:
        found.by_text(PRESETS[preset], required=True)
    else:
        for roles in PRESETS.values():
            found.by_text(roles, required=False)
        if RESPOND not in named or named == {RESPOND}:  # else the neighbours could have been named, too
            found.by_place()
    return found.result()


class _Found:
    """Roles and their tokens, as they are found."""

    def __init__(self, vocab: _vocab.Vocab) -> None:
        self.vocab = vocab
        self.roles: dict[str, ControlToken] = {}
        self.added = {token.id: token.content for token in vocab.added}
        self.warnings: list[str] = []

    def explicit(self, item: str) -> None:
        """`ROLE=ID|TEXT`."""
        role, equals, value = item.partition("=")
        slug, _, title = role.strip().partition(":")
        if not equals or not slug or not value:
            raise ConversionError(f"--token: expected ROLE=ID or ROLE=TEXT, got {item!r}")
        token_id = int(value) if value.isascii() and value.isdigit() and len(value) < 11 else self._exactly(value)
        if token_id is None:
            raise ConversionError(f"--token {item}: no added token has this text; {self._seen()}")
        if token_id not in self.added:
            if token_id < len(self.vocab.tokens):
                piece = shown(self.vocab.tokens[token_id].decode(errors="replace"))
                raise ConversionError(
                    f"--token {item}: token {token_id} {piece} is an ordinary piece that any text contains; "
                    f"a control token must be an added one; {self._seen()}"
                )
            raise ConversionError(f"--token {item}: token ids go from 0 to {len(self.vocab.tokens) - 1}")
        if (use := self._other_use(token_id)) is not None:
            raise ConversionError(
                f"--token {item}: token {token_id} {shown(self.added[token_id])} is {use}; "
                f"a control token must have no other use; {self._seen()}"
            )
        known = _BY_TEXT.get(self.added[token_id].strip())
        if not title and known is not None and known.slug == slug:
            title = known.title
        self._assign(slug, title, token_id)

    def _other_use(self, token_id: int) -> str | None:
        """What prompts and answers need the token for."""
        role = next((role for role, i in self.vocab.special_ids.items() if i == token_id and role != "pad"), None)
        if role is not None:
            return f"the {role} token of this vocabulary"
        return "a mark of chat formats" if self.added[token_id].strip() in KNOWN_ENDS | TURN_STARTS else None

    def by_text(self, roles: Sequence[Role], *, required: bool) -> None:
        """Tokens whose text, stripped, is that of a role."""
        for role in roles:
            if role.slug in self.roles:
                continue
            if not required and any(token.text.strip() == role.text for token in self.roles.values()):
                continue  # named otherwise with --token
            token_id = self._only_one(role.text)
            if token_id is not None:
                self._assign(role.slug, role.title, token_id)
            elif required:
                raise ConversionError(f"no added token has the text {role.text!r} ({role.slug}); {self._seen()}")

    def by_place(self) -> None:
        """Bracketed tokens right next to those found by text: categories that are not in a preset."""
        block = {token.id for token in self.roles.values()}
        for step in (-1, 1):
            token_id = (min(block) if step < 0 else max(block)) + step if block else -1
            while self._is_category_like(token_id):
                title = self.added[token_id].strip()[1:-1].strip()
                slug = self._new_slug(title, token_id)
                self._assign(slug, title, token_id)
                self.warnings.append(
                    f"token {token_id} {shown(self.added[token_id])} was taken for the category {slug!r} because it "
                    "stands next to the others; name the tokens with --token if that is wrong"
                )
                token_id += step

    def _new_slug(self, title: str, token_id: int) -> str:
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:63]
        try:
            Category(slug, token_id)
        except InvalidPolicyError:
            slug = ""
        return slug if slug and slug not in self.roles else f"category_{token_id}"

    def _is_category_like(self, token_id: int) -> bool:
        text = self.added.get(token_id, "")
        return bool(_BRACKETED.fullmatch(text)) and not _FOREIGN.fullmatch(text)

    def _exactly(self, text: str) -> int | None:
        """The token of just this text, else the one that differs by spaces around it."""
        exact = next((i for i, content in self.added.items() if content == text), None)
        return self._only_one(text) if exact is None else exact

    def _only_one(self, text: str) -> int | None:
        same = [token_id for token_id, content in self.added.items() if content.strip() == text.strip()]
        if len(same) > 1:
            both = f"tokens {same[0]} and {same[1]} both read {text.strip()!r}"
            raise ConversionError(f"{both}: choose one with --token ROLE=ID")
        return same[0] if same else None

    def _assign(self, slug: str, title: str, token_id: int) -> None:
        if slug in self.roles:
            raise ConversionError(f"role {slug!r} is given to token {self.roles[slug].id} and to token {token_id}")
        for other in self.roles.values():
            if other.id == token_id:
                both = f"{other.slug!r} and {slug!r}"
                raise ConversionError(f"token {token_id} {shown(other.text)} has two roles: {both}")
        if slug != RESPOND:
            try:
                title = Category(slug, token_id, title=title).title
            except InvalidPolicyError as error:
                raise ConversionError(f"--token {slug}: {error}") from None
        self.roles[slug] = ControlToken(slug, title or slug.title(), token_id, self.added[token_id])

    def result(self) -> ControlTokens:
        categories = sorted((t for t in self.roles.values() if t.slug != RESPOND), key=lambda token: token.id)
        if not self.roles:
            name_them = "name them with --token respond=ID --token SLUG=ID"
            raise ConversionError(f"no control tokens found; {self._seen()}; {name_them}")
        if RESPOND not in self.roles:
            raise self._missing("respond", "--token respond=ID")
        if not categories:
            raise self._missing("category", "--token SLUG=ID")
        if len(categories) > MAX_CATEGORIES:
            raise ConversionError(
                f"{len(categories)} category tokens found, at most {MAX_CATEGORIES} are allowed; {self._seen()}; "
                "name those that are with --token respond=ID --token SLUG=ID"
            )
        control = ControlTokens(tuple(categories), self.roles[RESPOND])
        return replace(control, warnings=(*self.warnings, *self._misnamed(), *self._left_out(), *self._doubts(control)))

    def _missing(self, role: str, flag: str) -> ConversionError:
        found = ", ".join(f"{token.slug} {token.id} {shown(token.text, 40)}" for token in self.roles.values())
        misnamed = "".join(f": {said}" for said in self._misnamed())
        return ConversionError(
            f"no {role} token found{misnamed}; recognised: {found}; {self._seen()}; add it with {flag} (what is "
            f"recognised stays), or ask with --preset {' or '.join(PRESETS)} what is missing"
        )

    def _misnamed(self) -> Iterator[str]:
        """A respond token that was named a category, or the other way round."""
        for token in self.roles.values():
            known = _BY_TEXT.get(token.text.strip(), token)
            if (known.slug == RESPOND) != (token.slug == RESPOND):
                yield f"token {token.id} {shown(token.text)} was given to {token.slug!r} with --token"

    def _left_out(self) -> Iterator[str]:
        """Tokens without a role that look as if they had one. Many base models have special tokens in brackets."""
        taken = {token.id for token in self.roles.values()}
        left = [
            token
            for token in self.vocab.added
            if token.id not in taken
            and (
                token.content.strip() in _BY_TEXT
                or (self._is_category_like(token.id) and plain_type(token) is TokenType.USER_DEFINED)
            )
        ]
        if left:
            listed = _listed((token.id, token.content) for token in left)
            yield (
                f"added tokens that look like control tokens but have no role: {listed}; "
                f"they show in answers, and any prompt can hold them; give one its role with --token SLUG={left[0].id}"
            )

    def _doubts(self, control: ControlTokens) -> Iterator[str]:
        flags = {token.id: token for token in self.vocab.added}
        for token in control:
            if flags[token.id].lstrip or flags[token.id].rstrip:
                yield (
                    f"token {token.id} {shown(token.text)} was trained to swallow the spaces around it (lstrip or "
                    "rstrip); llama.cpp keeps them: put none there in your prompts"
                )
            if (n_bytes := len(token.text.encode())) > DETOKENIZE_BYTES:
                yield (
                    f"token {token.id} {shown(token.text)} has {n_bytes} bytes; llama-cpp-python's detokenize drops "
                    f"pieces longer than {DETOKENIZE_BYTES}: it will not show in its text"
                )

    def _seen(self) -> str:
        return f"added tokens: {_listed(self.added.items())}" if self.added else "the tokenizer has no added tokens"


def _listed(tokens: Iterable[tuple[int, str]]) -> str:
    """The last dozen of them, which is where fine-tuning adds its own."""
    every = list(tokens)
    last = every[-12:]
    more = f"{len(every) - len(last)} more, " if len(every) > len(last) else ""
    return more + ", ".join(f"{token_id} {shown(text, 40)}" for token_id, text in last)
