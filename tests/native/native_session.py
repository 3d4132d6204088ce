"""A llama.cpp context whose logits a test may overwrite, and chains on it, through llama_cpp's own ctypes functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from gpu import GPU_LAYERS

from refusal_edge import _native

Sampler = Any  # a ctypes pointer to llama_sampler
MakeSampler = Callable[[], Sampler]


class Session:
    def __init__(self, model_path: Path, n_seq_max: int = 1) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = GPU_LAYERS
        self.model = llama_cpp.llama_model_load_from_file(str(model_path).encode(), params)
        assert self.model, f"{model_path} does not load"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx, context_params.n_batch, context_params.n_threads = 256, 64, 1
        context_params.n_seq_max = n_seq_max
        self.context = llama_cpp.llama_init_from_model(self.model, context_params)
        self.decode([1, 5, 6])

    def attach(self, chain: Sampler | None, sequence: int = 0) -> bool:
        """Gives a sequence a chain that runs on the backend (None: takes it away)."""
        return bool(llama_cpp.llama_set_sampler(self.context, sequence, chain))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    @property
    def context_address(self) -> int:
        return address(self.context)

    def decode(self, tokens: Sequence[int]) -> None:
        """Forgets what was there and decodes one prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.decode_more(tokens)

    def decode_more(self, tokens: Sequence[int]) -> None:
        row = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(row, len(tokens))) == 0

    def decode_batch(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Decodes one prompt a sequence, all in one batch; returns the output index of each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        n_tokens = sum(map(len, prompts))
        batch = llama_cpp.llama_batch_init(n_tokens, 0, 1)
        batch.n_tokens = n_tokens
        outputs: list[int] = []
        i = 0
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = position == len(prompt) - 1
                i += 1
            outputs.append(i - 1)
        assert llama_cpp.llama_decode(self.context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        return outputs

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """The last position's logits: a view, so that a test can put its own there."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def stock_sample(self, chain: Sampler) -> int:
        return int(llama_cpp.llama_sampler_sample(chain, self.context, -1))

    def our_sample(self, chain: Sampler, index: int = -1) -> int:
        return _native.sampler_sample(address(chain), self.context_address, index)


def address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def pointer(sampler_address: int) -> Sampler:
    return ctypes.cast(sampler_address, llama_cpp.llama_sampler_p_ctypes)


def make_chain(*samplers: Sampler) -> Sampler:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in samplers:
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain


@llama_cpp.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass
