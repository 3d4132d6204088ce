"""Many decisions at once: one llama_decode for many prompts, what they begin with alike computed once.

The batch has a context of its own on the model's weights, so that the conversation in `Llama`'s context stays. Sequence
0 holds the shared prefix; each prompt is a sequence that borrows those cells and adds its own rest.

llama.cpp sums attention a vector of cells at a time. On a CPU the last bits of a prompt's logits thus depend on which
cells it lies in, and the rounding of activations to 8 bits, for quantised and bfloat16 weights, makes up to 8e-3 of a
score of that. With such weights a rest begins where a block of `BLOCK` cells does, as it does for the prompt alone,
after tokens of padding; and where padding costs more than it saves, each prompt has a llama_decode of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import _internals

from refusal_edge import _native
from refusal_edge.decision import Decision
from refusal_edge.errors import RefusalEdgeError
from refusal_edge.exclusive import Closed
from refusal_edge.policy import Policy
from refusal_edge.prompt import check_length

if TYPE_CHECKING:
    from refusal_edge.deciding_llama import DecidingLlama

MAX_SEQUENCES: Final = 64
PADDING: Final = MAX_SEQUENCES + 1  # the sequence that tokens of padding belong to
BLOCK: Final = 16  # float32 values in the widest vector, that of AVX-512
WORTH_A_DECODE: Final = 32
"""Tokens that a longer prefix must save before it is worth a llama_decode of its own."""
DECODE_COST: Final = 8
"""What a llama_decode costs beside its tokens, in tokens: on a CPU a dozen of them already keep the arithmetic busy."""
EXACT_FILE_TYPES: Final = ("0", "1")
"""llama_ftype F32 and F16, which round activations to no fewer than 11 bits."""

Ids = list[int]


class Part(NamedTuple):
    """Tokens of one sequence, the position of the first, and whether the last one's logits are wanted."""

    sequence: int
    ids: Ids
    position: int
    output: bool = False


class BatchDecider:
    """Decides on prompts of token ids, in order, `MAX_SEQUENCES` or fewer a llama_decode.

    `close` frees the context; it must not outlive the model.
    """

    def __init__(self, llm: DecidingLlama) -> None:
        """Raises RefusalEdgeError if llama.cpp cannot make the context (out of memory)."""
        params = type(llm.context_params).from_buffer_copy(llm.context_params)
        params.n_seq_max = params.n_outputs_max = PADDING + 1
        params.n_batch = max(params.n_batch, params.n_outputs_max)  # llama.cpp aborts otherwise
        params.n_ctx = max(llm.n_ctx(), params.n_batch)
        params.kv_unified = True
        params.embeddings = False
        params.swa_full = True  # cells of a sliding window that several sequences share are not freed
        self._exclusive = llm._exclusive
        self._n_batch = params.n_batch
        self._n_vocab: int = llm.n_vocab()
        try:
            self._context = _internals.LlamaContext(model=llm._model, params=params, verbose=llm.verbose)
        except ValueError:
            raise RefusalEdgeError(
                f"batch: llama.cpp cannot make a second context of {params.n_ctx} tokens: use a smaller n_ctx"
            ) from None
        use_adapter(self._context, llm)
        self._n_ctx = min(llm._n_ctx, self._context.n_ctx())
        self._shares_cells = not _is_recurrent(llm._model.model)
        on_gpu = llm.model_params.n_gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
        exact = llm.metadata.get("general.file_type") in EXACT_FILE_TYPES
        self._block = BLOCK if self._shares_cells and not on_gpu and not exact else 1
        self._prefix: list[int] = []

    def close(self) -> None:
        self._context.close()
        self._context = Closed()

    def decide(self, prompts: Iterable[Ids], policy: Policy, *, calibrated: bool) -> Iterator[Decision]:
        """One decision a prompt, in order; prompts are taken from the iterable `MAX_SEQUENCES` at a time.

        Raises:
            InvalidRequestError: a prompt without tokens. PromptTooLongError: one that does not fit the context.
            InvalidLogitsError: the model computed NaN or infinity.
        """
        prompts = iter(prompts)
        while group := list(islice(prompts, MAX_SEQUENCES)):
            for ids in group:
                check_length(len(ids), self._n_ctx)
            with self._exclusive:
                decisions = self._decide_group(group, policy, calibrated)
            yield from decisions

    def _decide_group(self, group: Sequence[Ids], policy: Policy, calibrated: bool) -> list[Decision]:
        common = _shared_beginning([ids[:-1] for ids in group]) if self._shares_cells else []
        alone = self._block > 1 and not _worth_padding(group, len(common), self._block)
        n_shared = self._share_prefix(group, common, 1 if alone else self._block)
        packs = [[ids] for ids in group] if alone else self._packs(group, n_shared)
        return [d for pack in packs for d in self._decide_pack(pack, n_shared, policy, calibrated)]

    def _share_prefix(self, group: Sequence[Ids], common: Ids, block: int) -> int:
        """Brings sequence 0 to whole blocks of what the prompts share, where that saves work.

        Returns: how many of its tokens they can borrow.
        """
        common = _whole_blocks(common, block)
        held = _whole_blocks(_shared_beginning([self._prefix, common]), block)
        missing = common[len(held) :]
        if len(missing) * (len(group) - 1) >= WORTH_A_DECODE:
            self._cut_prefix(len(held))
            self._decode([Part(0, missing, len(held))])
            self._prefix = list(common)
            return len(common)
        if any(n % self._block for n in (len(self._prefix), len(held))):
            self._cut_prefix(len(held))  # the next free cell is to be that of the next position
        return len(held)

    def _padding(self, ids: Ids) -> int:
        """Tokens behind a prompt before the next one can begin."""
        return -len(ids) % self._block

    def _packs(self, group: Sequence[Ids], n_shared: int) -> Iterator[list[Ids]]:
        """Prompts whose rests fit one llama_decode, and the context beside the prefix; a longer one is alone."""
        pack: list[Ids] = []
        n_tokens = 0
        room = min(self._n_batch, self._n_ctx - len(self._prefix))
        for ids in group:
            if pack and n_tokens + len(ids) - n_shared > room:
                yield pack
                pack, n_tokens = [], 0
            pack.append(ids)
            n_tokens += len(ids) - n_shared + self._padding(ids)
        yield pack

    def _decide_pack(self, pack: Sequence[Ids], n_shared: int, policy: Policy, calibrated: bool) -> list[Decision]:
        if len(pack[0]) - n_shared > self._n_ctx - len(self._prefix):
            self._cut_prefix(n_shared)  # a prompt that needs the whole context: keep of the prefix what it shares
        for sequence in range(1, len(pack) + 1):
            if n_shared:
                self._context.kv_cache_seq_cp(0, sequence, 0, n_shared)
        try:
            rows = self._decode(self._parts(pack, n_shared))
            return [_native.decide(self._logits(row), policy, calibrated=calibrated) for row in rows]
        finally:
            for sequence in (*range(1, len(pack) + 1), PADDING):
                self._forget(sequence, 0)

    def _parts(self, pack: Sequence[Ids], n_shared: int) -> list[Part]:
        """The rest of each prompt, and padding between two of them."""
        parts: list[Part] = []
        n_padding = 0
        for sequence, ids in enumerate(pack, start=1):
            parts.append(Part(sequence, ids[n_shared:], n_shared, output=True))
            if sequence < len(pack) and (missing := self._padding(ids)):
                parts.append(Part(PADDING, ids[:1] * missing, n_padding))
                n_padding += missing
        return parts

    def _decode(self, parts: Sequence[Part]) -> list[int]:
        """Decodes in pieces of n_batch tokens.

        Returns: the output index of the last token of each part that wants it; all lie in the last piece.
        """
        lengths = [len(part.ids) for part in parts]
        tokens = np.concatenate([np.asarray(part.ids, np.int32) for part in parts])
        sequences = np.repeat([part.sequence for part in parts], lengths).astype(np.int32)
        positions = np.concatenate([part.position + np.arange(len(part.ids)) for part in parts]).astype(np.int32)
        last = (np.cumsum(lengths) - 1)[[part.output for part in parts]]
        wanted = np.zeros(len(tokens), np.int8)
        wanted[last] = 1
        for start in range(0, len(tokens), self._n_batch):
            piece = slice(start, start + self._n_batch)
            status = _decode(self._context.ctx, tokens[piece], sequences[piece], positions[piece], wanted[piece])
            if status:
                self._reset()
                raise RefusalEdgeError(f"batch: llama_decode failed with status {status}")
        return [int(i) - (len(tokens) - 1) // self._n_batch * self._n_batch for i in last]

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        row = llama_cpp.llama_get_logits_ith(self._context.ctx, index)
        return np.ctypeslib.as_array(row, shape=(self._n_vocab,))

    def _cut_prefix(self, n_tokens: int) -> None:
        self._forget(0, n_tokens)
        self._prefix = self._prefix[:n_tokens]

    def _forget(self, sequence: int, position: int) -> None:
        if not self._context.kv_cache_seq_rm(sequence, position, -1):
            self._reset()
            raise RefusalEdgeError(f"batch: llama.cpp cannot cut sequence {sequence} at position {position}")

    def _reset(self) -> None:
        self._context.kv_cache_clear()
        self._prefix = []


def use_adapter(context: Any, llm: DecidingLlama) -> None:
    """Puts the LoRA adapter of `llm`, if it has one, in force in a context.

    Raises:
        RefusalEdgeError: llama.cpp cannot.
    """
    if llm._lora_adapter is None:
        return
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(llm._lora_adapter)
    if llama_cpp.llama_set_adapters_lora(context.ctx, adapters, 1, (ctypes.c_float * 1)(llm.lora_scale)):
        raise RefusalEdgeError("lora_path: llama.cpp cannot set the LoRA adapter on a context")


def _decode(
    context: Any,
    tokens: npt.NDArray[np.int32],
    sequences: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    wanted: npt.NDArray[np.int8],
) -> int:
    """llama_decode on arrays of the same length; one sequence a token."""
    n = len(tokens)
    counts = np.ones(n, np.int32)
    pointers = (sequences.ctypes.data + np.arange(n) * sequences.itemsize).astype(np.uintp)
    batch = llama_cpp.llama_batch()
    for name, array in (
        ("token", tokens),
        ("pos", positions),
        ("n_seq_id", counts),
        ("seq_id", pointers),
        ("logits", wanted),
    ):
        field = dict(llama_cpp.llama_batch._fields_)[name]
        setattr(batch, name, ctypes.cast(array.ctypes.data, field))
    batch.n_tokens = n
    return int(llama_cpp.llama_decode(context, batch))


def _shared_beginning(sequences: Sequence[Ids]) -> Ids:
    """What all of them begin with: it is enough to compare the smallest with the largest."""
    low, high = min(sequences), max(sequences)
    n = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return low[:n]


def _whole_blocks(ids: Ids, block: int) -> Ids:
    return ids[: len(ids) // block * block]


def _worth_padding(group: Sequence[Ids], n_common: int, block: int) -> bool:
    """Whether prompts that fill whole blocks, in few llama_decodes, cost no more than one llama_decode for each."""
    padded = sum(-(-len(ids) // block) * block - n_common // block * block for ids in group)
    return padded <= sum(len(ids) - n_common + DECODE_COST for ids in group)


def _is_recurrent(model: Any) -> bool:
    return bool(llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))
