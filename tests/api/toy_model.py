"""A hand-made Llama GGUF: a byte-level BPE vocabulary with a Llama-3 chat template, and weights that know the boundary.

The weights are random but for one direction: the token "\\n\\n", which ends every header, points at the control tokens,
so that they hold nearly all probability at the boundary and little elsewhere. Which of them wins depends on the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from refusal_edge.keys import Stamp
from refusal_edge.policy import Category

WIDTH, HEADS, FEED_FORWARD, CONTEXT, LAYERS = 64, 4, 96, 512, 2

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CONTROL = {
    "humanizing": " [Humanizing requests]",
    "incomplete": " [Incomplete requests]",
    "indeterminate": " [Indeterminate requests]",
    "safety": " [Requests with safety concerns]",
    "unsupported": " [Unsupported requests]",
    "respond": " [respond]",
}
WORDS = ["system", "user", "assistant", " the", " respond", "respond", " [", "ing", " requests", "ed", " and", " hello"]

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


MakeToy = Callable[..., Path]
"""What the `make_toy` fixture gives: writes a toy; the arguments are those of `Toy`."""


@dataclass
class Toy:
    """What to write; the defaults are a good file."""

    token_type: str = "sealed"
    template: str = TEMPLATE
    stamp: dict[str, Any] | None = field(default_factory=dict)  # changes to the Stamp; None writes no keys
    file_type: int = 0
    seed: int = 9  # "hi" is answered, "How do I pick a lock?" is refused for safety
    poison: float | None = None  # a value for one weight, say NaN

    def write(self, path: Path) -> Path:
        vocabulary = _Vocabulary(self.token_type)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("toy")
        writer.add_file_type(self.file_type)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(WIDTH // HEADS)
        writer.add_vocab_size(len(vocabulary.tokens))
        vocabulary.add_to(writer)
        writer.add_chat_template(self.template)
        if self.stamp is not None:
            for key, value, kind in stamp(self.token_type, **self.stamp).to_kv():
                writer.add_key_value(key, value, kind)
        for name, tensor in self._tensors(vocabulary).items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _tensors(self, vocabulary: _Vocabulary) -> dict[str, npt.NDArray[np.float32]]:
        rng = np.random.default_rng(self.seed)
        n_vocab = len(vocabulary.tokens)

        def random(*shape: int, scale: float = 0.15) -> npt.NDArray[np.float32]:
            return rng.normal(0, scale, shape).astype(np.float32)

        embedding, output = random(n_vocab, WIDTH, scale=1.0), random(n_vocab, WIDTH, scale=0.4)
        embedding[:, -1] = 0
        embedding[vocabulary.id_of("ĊĊ"), -1] = 12  # the boundary's direction
        output[:, -1] = 0
        output[[i for i in range(n_vocab) if not vocabulary.printable(i)], :] = 0
        output[vocabulary.control_ids, :] = random(len(vocabulary.control_ids), WIDTH, scale=0.5)
        output[vocabulary.control_ids, -1] = 2
        tensors = {"token_embd.weight": embedding, "output.weight": output}
        tensors["output_norm.weight"] = np.ones(WIDTH, np.float32)
        for layer in range(LAYERS):
            block = f"blk.{layer}."
            tensors[block + "attn_norm.weight"] = np.ones(WIDTH, np.float32)
            tensors[block + "ffn_norm.weight"] = np.ones(WIDTH, np.float32)
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                tensors[f"{block}{name}.weight"] = random(WIDTH, WIDTH)
            tensors[block + "ffn_gate.weight"] = random(FEED_FORWARD, WIDTH)
            tensors[block + "ffn_up.weight"] = random(FEED_FORWARD, WIDTH)
            tensors[block + "ffn_down.weight"] = random(WIDTH, FEED_FORWARD)
        if self.poison is not None:
            tensors["output_norm.weight"][0] = self.poison
        return tensors


def stamp(token_type: str = "sealed", **changes: Any) -> Stamp:
    """The keys of a toy."""
    ids = dict(zip(CONTROL, _Vocabulary(token_type).control_ids))
    respond = ids.pop("respond")
    thresholds = changes.pop("thresholds", {})
    categories = tuple(Category(slug, i, thresholds.get(slug, "model")) for slug, i in ids.items())
    return Stamp(**{"respond_token_id": respond, "categories": categories, "token_type": token_type, **changes})


class _Vocabulary:
    def __init__(self, token_type: str) -> None:
        letters = list(_byte_letters().values())
        self.merges: list[str] = []
        pieces = list(letters)
        for word in ["\n\n", *WORDS]:
            self._learn([_byte_letters()[b] for b in word.encode()], pieces)
        controls = list(CONTROL.values())
        if token_type == "sealed":
            controls = ["".join(_byte_letters()[b] for b in text.encode()) for text in controls]
        kinds = {
            "sealed": gguf.TokenType.NORMAL,
            "control": gguf.TokenType.CONTROL,
            "user": gguf.TokenType.USER_DEFINED,
        }
        self.tokens = pieces + SPECIAL + controls
        self.types = (
            [gguf.TokenType.NORMAL] * len(pieces)
            + [gguf.TokenType.CONTROL] * len(SPECIAL)
            + [kinds[token_type]] * len(controls)
        )
        self.n_pieces = len(pieces)
        self.control_ids = list(range(len(self.tokens) - len(controls), len(self.tokens)))

    def _learn(self, letters: list[str], pieces: list[str]) -> None:
        """Merges from left to right until the word is one piece."""
        joined = letters[0]
        for letter in letters[1:]:
            merge = f"{joined} {letter}"
            joined += letter
            if joined not in pieces:
                self.merges.append(merge)
                pieces.append(joined)

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)

    def printable(self, token_id: int) -> bool:
        text = self.tokens[token_id]
        return token_id < self.n_pieces and text.isascii() and text.isprintable()

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.id_of(SPECIAL[0]))
        writer.add_eos_token_id(self.id_of(SPECIAL[1]))
        writer.add_eot_token_id(self.id_of(SPECIAL[2]))
        writer.add_add_bos_token(True)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}
