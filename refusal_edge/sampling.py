"""The native sampler inside llama-cpp-python's sampler chains."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from typing import Any, Final

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import _internals

from refusal_edge import _native
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidRequestError, RefusalEdgeError
from refusal_edge.numbers import is_unicode, shown
from refusal_edge.policy import Policy

MAX_GRAMMAR_CHARACTERS: Final = 1 << 16
MAX_GRAMMAR_DEPTH: Final = 256

_GRAMMAR_LITERAL: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)


class ProcessorWatch:
    """Logits processors, called where their errors are lost: kept here until the chain can raise them."""

    def __init__(self, processors: object) -> None:
        self._processors: list[Any] = list(processors) if isinstance(processors, Iterable) else [processors]
        self.problem: str | None = None

    def __call__(self, ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        try:
            changed = logits
            for processor in self._processors:
                changed = processor(ids, changed)
            if np.shape(changed) != np.shape(logits):
                self.problem = f"expected shape {np.shape(logits)}, got {np.shape(changed)}"
            elif np.isnan(changed).any() or np.isposinf(changed).any():
                self.problem = "gave NaN or infinity"
        except Exception as error:  # any code of the caller's
            self.problem = f"{type(error).__name__}: {shown(error)}"
        return logits if self.problem else changed


class Chain(_internals.LlamaSampler):  # type: ignore[misc]
    """A llama.cpp sampler chain that begins with our sampler and samples through `redge_sampler_sample`.

    Phase "decide": the first token sampled is the decided one, later ones are guarded. Phase "guard": control tokens
    are masked at every position. `close` frees the chain; without it memory waits for the cyclic garbage collector.
    """

    watch: ProcessorWatch | None = None

    def __init__(self, policy: Policy, n_vocab: int, phase: _native.Phase) -> None:
        """`refusal_edge.host.bind()` must have been called.

        Raises:
            InvalidPolicyError, InvalidLogitsError: the policy does not fit a vocabulary of n_vocab tokens.
        """
        super().__init__()
        self._forbidden = frozenset(policy.control_token_ids) if phase == "guard" else frozenset()
        self._append(_native.sampler_init(policy, n_vocab, phase))

    def _append(self, address: int) -> None:
        llama_cpp.llama_sampler_chain_add(self.sampler, ctypes.cast(address, llama_cpp.llama_sampler_p_ctypes))

    def adopt(self, other: _internals.LlamaSampler) -> None:
        """Moves the samplers of another chain to the end of this one; the other is left empty."""
        offset = llama_cpp.llama_sampler_chain_n(self.sampler)
        for _ in range(llama_cpp.llama_sampler_chain_n(other.sampler)):
            llama_cpp.llama_sampler_chain_add(self.sampler, llama_cpp.llama_sampler_chain_remove(other.sampler, 0))
        self.custom_samplers += [(offset + index, custom) for index, custom in other.custom_samplers]
        other.custom_samplers = []
        other.close()

    def sample(self, ctx: _internals.LlamaContext, idx: int = -1) -> int:
        """The token that `llama_sampler_sample` would give for output `idx` of the last decode, accepted.

        Raises:
            InvalidLogitsError: the logits could not be decided on.
            RefusalEdgeError: no logits there, every candidate masked, or a control token mid-answer.
            InvalidRequestError: a logits processor failed, or gave NaN or infinity.
        """
        token = _native.sampler_sample(_address(self.sampler), _address(ctx.ctx), idx)
        if self.watch is not None and self.watch.problem is not None:
            raise InvalidRequestError(f"logits_processor: {self.watch.problem}")
        if token in self._forbidden:
            raise RefusalEdgeError(
                f"control token {token} was sampled mid-answer: a logits processor must have raised it"
            )
        return token

    def decide(self, ctx: _internals.LlamaContext, policy: Policy, *, calibrated: bool) -> Decision:
        """Decides by `policy` on the last row of logits; the chain must be in phase "decide".

        Raises:
            InvalidLogitsError: the logits could not be decided on.
            RefusalEdgeError: no decision was made.
        """
        self.reset()
        _native.sampler_set_policy(_address(self.sampler), policy)
        return self.finish(ctx, policy, calibrated=calibrated)

    def finish(self, ctx: _internals.LlamaContext, policy: Policy, *, calibrated: bool) -> Decision:
        """The decision by `policy`, which is in force, on the last output; read from the graph that this chain is in.

        Raises: as `decide`.
        """
        self.sample(ctx)
        return _native.sampler_decision(_address(self.sampler), policy, calibrated=calibrated)


def decision_chain(policy: Policy, n_vocab: int) -> Chain:
    """The chain of a decision step: greedy stands last so that a token is picked where none is forced."""
    chain = Chain(policy, n_vocab, "decide")
    chain.add_greedy()
    return chain


def guarded(chain: _internals.LlamaSampler, policy: Policy, n_vocab: int) -> Chain:
    """The same samplers with GUARD before them; `chain` is left empty and closed."""
    guard = Chain(policy, n_vocab, "guard")
    guard.adopt(chain)
    return guard


def last_logits(ctx: _internals.LlamaContext, n_vocab: int) -> npt.NDArray[np.float32]:
    """The last row of logits, shape (n_vocab,): llama.cpp's own memory, valid until the next decode."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx.ctx, -1), (n_vocab,))


def check_grammar(vocab: Any, grammar: Any) -> None:
    """Refuses a grammar that llama.cpp cannot parse: in a chain it would end the process.

    Raises:
        InvalidRequestError: no LlamaGrammar, or one that llama.cpp rejects.
    """
    if grammar is None:
        return
    if not isinstance(grammar, llama_cpp.LlamaGrammar):
        raise InvalidRequestError(f"grammar: expected a LlamaGrammar, got {type(grammar).__name__}")
    check_grammar_size(grammar._grammar)
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar._grammar.encode(), grammar._root.encode())
    if not sampler:
        raise InvalidRequestError("grammar: llama.cpp cannot parse it")
    llama_cpp.llama_sampler_free(sampler)


def check_grammar_size(source: object) -> None:
    """llama.cpp parses a grammar, and follows its rules, by recursion: a large one would overflow the stack.

    Raises:
        InvalidRequestError: too long, too deep, or no text.
    """
    if not isinstance(source, str) or "\0" in source or not is_unicode(source):
        raise InvalidRequestError("grammar: expected Unicode text without NUL characters")
    if len(source) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequestError(
            f"grammar: expected at most {MAX_GRAMMAR_CHARACTERS} characters, got {len(source)}; allow less at once"
        )
    depth = deepest = 0
    for bracket in re.findall(r"[()]", _GRAMMAR_LITERAL.sub("", source)):
        depth = depth + 1 if bracket == "(" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    if deepest > MAX_GRAMMAR_DEPTH:
        raise InvalidRequestError(f"grammar: expected at most {MAX_GRAMMAR_DEPTH} nested groups, got {deepest}")


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0
