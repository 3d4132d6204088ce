"""A small byte-level BPE tokenizer with the structure of Llama 3's: same pre-tokenizer, same special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .controls import ROLES, TOKEN_TEXT

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"
EOT = "<|eot_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
SPECIALS = (BOS, EOS, EOT, START_HEADER, END_HEADER)

# Llama 3's split pattern, as published in its tokenizer.json.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a tokenizer of exactly `size` entries: BPE pieces, five special tokens, six control tokens last."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIALS) - len(ROLES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken(TOKEN_TEXT[role], special=False, normalized=True) for role in ROLES])
    bos = token_id(tokenizer, BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
            ),
        ]
    )
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"tokenizer: asked for {size} entries, got {tokenizer.get_vocab_size()}: more text is needed")
    return tokenizer


class ChatEncoder:
    """Turns chats into token ids; text of messages never becomes a special or a control token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control_ids = [token_id(tokenizer, TOKEN_TEXT[role]) for role in ROLES]
        self.control_of = dict(zip(ROLES, self.control_ids, strict=True))
        self.bos = token_id(tokenizer, BOS)
        self.eot = token_id(tokenizer, EOT)
        self._start = token_id(tokenizer, START_HEADER)
        self._end = token_id(tokenizer, END_HEADER)
        self.n_pieces: int = tokenizer.get_vocab_size(with_added_tokens=False)
        self._plain = _without_added_tokens(tokenizer)
        self._blank_line = self.text("\n\n")

    def text(self, text: str) -> list[int]:
        """Ids of plain text, without the beginning-of-text token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def header(self, role: str) -> list[int]:
        """Ids of one turn's header."""
        return [self._start, *self.text(role), self._end, *self._blank_line]

    def turn(self, role: str, content: str) -> list[int]:
        """Ids of one system or user turn."""
        return [*self.header(role), *self.text(content.strip()), self.eot]

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a prompt of (role, content) turns up to the boundary: the next token is the control token."""
        ids = [self.bos]
        for role, content in messages:
            ids += self.turn(role, content)
        return ids + self.header("assistant")


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, blind to special and control tokens."""
    return Tokenizer.from_str(
        json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": [], "post_processor": None})
    )


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Id of a token by its text; ValueError if there is none."""
    found: int | None = tokenizer.token_to_id(text)
    if found is None:
        raise ValueError(f"tokenizer: no token {text!r}")
    return found
