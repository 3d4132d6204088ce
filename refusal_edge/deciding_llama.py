"""llama_cpp.Llama with the decision in its `generate`; neither text nor token ids get around it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Final, Literal

import jinja2
import llama_cpp
import numpy as np
import numpy.typing as npt

from refusal_edge import _native, host
from refusal_edge.batch import use_adapter
from refusal_edge.boundaries import Boundaries
from refusal_edge.decision import Decision
from refusal_edge.errors import (
    FormatError,
    InvalidPolicyError,
    InvalidRequestError,
    MetadataError,
    RefusedError,
)
from refusal_edge.exclusive import Closed, Exclusive
from refusal_edge.keys import Stamp
from refusal_edge.loading import check_loadable
from refusal_edge.numbers import as_integer, shown
from refusal_edge.pins import broken_pins
from refusal_edge.placement import Placement, check_placement, decide_on_backend, has_graph
from refusal_edge.policy import Policy
from refusal_edge.prompt import PromptTokenizer, check_length
from refusal_edge.sampling import Chain, ProcessorWatch, check_grammar, decision_chain, guarded, last_logits
from refusal_edge.turn import Turn
from refusal_edge.upstream import arguments_of
from refusal_edge.vocabulary import prompt_tokenizer, token_texts

PolicyLike = Policy | Mapping[str, Any]

_REMEMBERED_TEXTS: Final = 64
"""Texts whose tokens are kept: system prompts and earlier turns come again with every request."""

_generation: Final = arguments_of(llama_cpp.Llama.generate)


class DecidingLlama(llama_cpp.Llama):  # type: ignore[misc]
    """What `refusal_edge.Llama` is below its requests: the file, the policy, token ids and their generation."""

    n_tokens: int
    _n_ctx: int

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        policy: Policy | None = None,
        placement: Placement = "auto",
        **kwargs: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()  # which close() needs, however far this gets
        self._exclusive = Exclusive()
        self._turn: Turn | None = None
        self._chain: Chain | None = None
        self._prompts: PromptTokenizer | None = None
        self._warned: set[str] = set()
        check_placement(placement)
        host.bind()
        self._load(os.fspath(model_path), kwargs)
        try:
            self._read_stamp(policy)
            self._place(placement)
        except Exception:
            self.close()
            raise

    def _load(self, path: str, kwargs: dict[str, Any]) -> None:
        check_loadable(path, kwargs)
        adapter = kwargs.get("lora_path")
        if adapter:  # llama-cpp-python would use one that llama.cpp could not load
            kwargs = {**kwargs, "lora_path": None, "use_mmap": False}
        try:
            super().__init__(path, **kwargs)
            if adapter:
                self._load_adapter(adapter)
        except MemoryError as error:
            self.close()
            raise InvalidRequestError(f"n_ctx, n_batch: no memory for as many tokens ({error})") from None
        except jinja2.TemplateError as error:
            self.close()
            raise MetadataError(f"{path}: tokenizer.chat_template: {error}") from None
        except ValueError as error:
            self.close()
            if str(error).startswith("Failed to create llama_context"):
                raise InvalidRequestError(
                    f"n_ctx: llama.cpp cannot make a context of {kwargs.get('n_ctx', 512)} tokens (0: the model's): "
                    "choose a smaller one"
                ) from None
            if not str(error).startswith("Failed to load model"):
                raise
            raise FormatError(
                f"{path}: llama.cpp cannot load it: no GGUF, truncated, or of an unknown architecture "
                "(verbose=True shows llama.cpp's own words)"
            ) from None
        self._n_ctx = min(self._n_ctx, len(self.input_ids))  # llama.cpp rounds n_ctx up, upstream's buffers do not
        if kwargs.get("chat_format") is None and "chat_template.default" in self._chat_handlers:
            self.chat_format = "chat_template.default"  # the file's own template, also where a built-in one looks alike
        elif kwargs.get("chat_format") is None and self.chat_handler is None and not self.model_params.vocab_only:
            self._warn_once(
                f"{path}: no chat template: chats are written as {self.chat_format!r}, which the model may not know, "
                "and decided off-template; give chat_format or chat_handler"
            )

    def _load_adapter(self, path: str) -> None:
        self._lora_adapter = llama_cpp.llama_adapter_lora_init(self._model.model, path.encode()) or None
        if self._lora_adapter is None:
            raise InvalidRequestError(
                f"lora_path: {path}: llama.cpp cannot use it with this model (verbose=True shows its own words)"
            )
        self._stack.callback(llama_cpp.llama_adapter_lora_free, self._lora_adapter)
        self.lora_path = path
        use_adapter(self._ctx, self)

    def _read_stamp(self, policy: Policy | None) -> None:
        stamp = Stamp.from_kv(self.metadata, self._n_vocab)
        self._trained = self._policy = stamp.policy
        self._control = token_texts(self._model.vocab, self._trained.control_token_ids)
        self._decider = decision_chain(self._trained, self._n_vocab)
        self._stack.callback(self._decider.close)
        self._boundaries = Boundaries()
        self._calibrated_id = self._pinned(stamp.policy, stamp.calibration)
        if policy is not None:
            self.policy = policy

    def _place(self, placement: Placement) -> None:
        self._on_backend = placement == "backend" and not self._logits_all
        if placement == "backend" and self._logits_all:
            self._warn_once('placement "backend" needs logits_all=False: the CPU decides')

    @property
    def placement(self) -> Literal["cpu", "backend"]:
        """Where decisions are taken; "backend" becomes "cpu" at the first decision that shows it cannot be used."""
        return "backend" if self._on_backend else "cpu"

    @property
    def policy(self) -> Policy:
        """The policy in force. Assign another one over the same control tokens: `llm.policy.replace(safety=0.3)`."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = self._checked(policy)

    def load_policy(self, path: str | os.PathLike[str]) -> None:
        """Puts a file of `refusal-edge calibrate` in force; decisions are `calibrated` if its pins fit this model.

        Raises:
            InvalidPolicyError: no policy file, or one for another model.
        """
        from refusal_edge.calibrate import read_policy_file

        file = read_policy_file(os.fspath(path))
        self.policy = file.policy
        self._calibrated_id = self._pinned(file.policy, file.calibration)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Decides at the end of `tokens`, then yields token ids, the control token first where one is forced.

        Args: those of `llama_cpp.Llama.generate`. A refusal drops the grammar. `tokens` may hold control tokens in its
            history alone: before an end-of-generation token.

        Raises:
            As `decide`, InvalidRequestError for a control token in the turn that is to be decided, and StateError where
            another request has used the context since the last token.
        """
        return self._exclusive.steps(self._generate(tokens, *args, **kwargs))

    def _generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        turn, self._turn = self._turn or Turn(self.policy), None
        arguments = _generation(self, tokens, *args, **kwargs)
        ids = [*([] if arguments["reset"] else self._input_ids.tolist()), *self._prompt_ids(tokens)]
        if turn.decision is None:
            self._check_undecided(ids)
            turn.n_prompt = len(ids)
            turn.decision = self._decide_ids(ids, turn.policy)
            turn.first = turn.decision.token_id
            if turn.refused and turn.on_refuse != "generate":
                raise RefusedError(turn.decision)
        if turn.refused:
            arguments["grammar"] = None
        if arguments["stopping_criteria"] is not None:
            arguments["stopping_criteria"] = self._exclusive.outside(arguments["stopping_criteria"])
        if turn.first is not None and (turn.control_token is not None or arguments["grammar"] is None):
            more = yield turn.first
            ids += [turn.first, *(more or ())]
        yield from super().generate(**{**arguments, "tokens": ids, "reset": True})

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `llama_cpp.Llama.tokenize`, but never gives a control token, whatever the file types it as."""
        ids: list[int] = super().tokenize(text, add_bos, special)
        if self._control.keys().isdisjoint(ids):
            return ids
        return [*self._bos(add_bos), *self._tokenizer().encode_text(text, special)]

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """As `llama_cpp.Llama.detokenize`; control tokens show only with `special`, as other special tokens do."""
        if self._control.keys().isdisjoint(tokens):
            return super().detokenize(tokens, prev_tokens=prev_tokens, special=special)  # type: ignore[no-any-return]
        pieces = []
        for is_control, group in groupby(tokens, self._control.__contains__):
            ids = list(group)
            if not is_control:
                pieces.append(super().detokenize(ids, prev_tokens=prev_tokens, special=special))
            elif special:
                pieces += [self._control[i] for i in ids]
        return b"".join(pieces)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As `llama_cpp.Llama.sample`: one token of the last logits, never a control token; nothing is decided."""
        with self._exclusive:
            self._exclusive.changed()
            alone = self._sampler is None
            if self._requires_eval and self.n_tokens > 0:
                self._prefill(self._input_ids.tolist())
            token: int = super().sample(*args, **kwargs)
            if alone and self._chain is not None:
                self._chain.close()
            return token

    def eval(self, tokens: Sequence[int]) -> None:
        """As `llama_cpp.Llama.eval`; a stream that is still open cannot go on after it."""
        with self._exclusive:
            self._exclusive.changed()
            super().eval(tokens)

    def reset(self) -> None:
        """As `llama_cpp.Llama.reset`; a stream that is still open cannot go on after it."""
        with self._exclusive:
            self._exclusive.changed()
            super().reset()

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.embed`; a stream that is still open cannot go on after it."""
        with self._exclusive:
            self.reset()
            return super().embed(*args, **kwargs)

    def save_state(self) -> llama_cpp.LlamaState:
        """As `llama_cpp.Llama.save_state`."""
        with self._exclusive:
            return super().save_state()

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """As `llama_cpp.Llama.load_state`; a stream that is still open cannot go on after it."""
        with self._exclusive:
            self._exclusive.changed()
            super().load_state(state)

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Chain:
        check_grammar(self._model.vocab, kwargs.get("grammar"))
        self._exclusive.changed()  # an open stream loses its sampler
        if self._chain is not None:
            self._chain.close()
        processors = kwargs.get("logits_processor")
        watch = None if processors is None else ProcessorWatch(processors)
        kwargs["logits_processor"] = None if watch is None else [self._exclusive.outside(watch)]
        self._chain = guarded(super()._init_sampler(*args, **kwargs), self._policy, self._n_vocab)
        self._chain.watch = watch
        return self._chain

    def close(self) -> None:
        """Frees the model, once a running step is done; the instance is of no use afterwards."""
        with self._exclusive:
            if self._chain is not None:
                self._chain.close()
            super().close()
            closed: Any = Closed()
            self._model = self._ctx = self._batch = self.tokenizer_ = self._prompts = closed

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "policy": self.policy, "placement": self.placement}

    def _effective(self, policy: PolicyLike | None) -> Policy:
        if policy is None:
            return self._policy
        if isinstance(policy, Mapping):
            policy = self._policy.replace(**{str(name): value for name, value in policy.items()})
        return self._checked(policy)

    def _checked(self, policy: object) -> Policy:
        """The policy, if it is over this model's control tokens."""
        if not isinstance(policy, Policy):
            raise InvalidPolicyError(f"policy: expected a Policy, got {type(policy).__name__}")
        ours = {c.id: c.token_id for c in self._trained.categories}
        theirs = {c.id: c.token_id for c in policy.categories}
        if list(ours.items()) != list(theirs.items()) or policy.respond_token_id != self._trained.respond_token_id:
            raise InvalidPolicyError(
                f"policy: this model's control tokens are {ours} and respond {self._trained.respond_token_id}, "
                f"got {theirs} and respond {policy.respond_token_id}; start from llm.policy.replace(...)"
            )
        return policy

    def _decide_ids(self, ids: list[int], policy: Policy) -> Decision:
        if self.model_params.vocab_only:
            raise InvalidRequestError("the model was loaded with vocab_only=True: load it without to decide")
        check_length(len(ids), self._n_ctx)
        calibrated = self._is_calibrated(policy)
        with self._exclusive:
            if (logits := self._boundaries.get(ids)) is not None:
                return _native.decide(logits, policy, calibrated=calibrated)
            if self._on_backend and (decision := self._decide_on_backend(ids, policy, calibrated)) is not None:
                return decision
            self._prefill(ids)
            decision = self._decider.decide(self._ctx, policy, calibrated=calibrated)
            self._boundaries.put(ids, last_logits(self._ctx, self._n_vocab))
            return decision

    def _decide_on_backend(self, ids: list[int], policy: Policy, calibrated: bool) -> Decision | None:
        """None where only the CPU can decide. Raw logits never get here, so nothing is remembered."""
        if not has_graph(policy):
            self._warn_once(f'placement "backend" has no graph for the rule {policy.rule!r}: the CPU decides by it')
            return None
        self._requires_eval = True  # the last token is decoded again, with the rule behind it
        prefill = partial(self._prefill, ids)
        try:
            decision = decide_on_backend(self._ctx, prefill, policy, self._n_vocab, calibrated=calibrated)
        finally:
            self._requires_eval = True  # and once more without it, before anything is sampled from its logits
        if decision is None:
            self._on_backend = False
            self._warn_once('placement "backend": llama.cpp or the device cannot run the rule here: the CPU decides')
        return decision

    def _is_calibrated(self, policy: Policy) -> bool:
        return policy.policy_id == self._calibrated_id

    def _pinned(self, policy: Policy, calibration: Mapping[str, Any] | None) -> str | None:
        """The id of a policy that was calibrated for this file; warns where its pins say that it was for another."""
        if calibration is None:
            return None
        if broken := broken_pins(calibration, self.metadata, policy, self.model_path):
            self._warn_once(f"{self.model_path}: not calibrated for this file: {'; '.join(broken)}")
            return None
        return policy.policy_id

    def _prefill(self, ids: list[int]) -> None:
        """Brings the context to exactly `ids` with live logits, keeping the prefix it already holds."""
        self._load_cached(ids)
        keep = _common_prefix(self._input_ids, ids)
        if keep == len(ids) == self.n_tokens and not self._requires_eval:
            return
        keep = min(keep, len(ids) - 1)
        if keep == 0 or (keep < self.n_tokens and not self._can_cut(keep)):
            keep = 0
            self.reset()
        self.n_tokens = keep
        self.eval(ids[keep:])

    def _can_cut(self, position: int) -> bool:
        """Forgets what the context holds from there on; False where what came before would not be whole either."""
        if not self.context_params.swa_full and llama_cpp.llama_model_n_swa(self._model.model) > 0:
            return False  # of a sliding window only the last cells are left
        return bool(self._ctx.kv_cache_seq_rm(-1, position, -1))

    def _load_cached(self, ids: list[int]) -> None:
        """A state of `set_cache` that holds more of the prompt than the context does."""
        if self.cache is None:
            return
        with contextlib.suppress(KeyError):
            state = self.cache[ids]
            if _common_prefix(state.input_ids[: state.n_tokens], ids) > _common_prefix(self._input_ids, ids):
                self.load_state(state)

    def _prompt_ids(self, prompt: object) -> list[int]:
        ids = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
        if isinstance(ids, (list, tuple)) or (isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))):
            numbers = [as_integer(i) for i in ids]
            found = [i for i in numbers if i is not None and 0 <= i < self._n_vocab]
            if len(found) == len(numbers):
                return found
        raise InvalidRequestError(
            f"prompt: expected a string or token ids in [0, {self._n_vocab}), got {shown(prompt)}"
        )

    def _check_undecided(self, ids: Sequence[int]) -> None:
        """A control token after the last turn's end would stand for a decision that nobody took."""
        for token_id in reversed(ids):
            if token_id in self._control:
                text = self._control[token_id].decode(errors="replace")
                raise InvalidRequestError(
                    f"prompt: token {token_id} is the control token {text!r}: "
                    "allowed in earlier turns only, before a token that ends a turn; leave it out, it is decided here"
                )
            if llama_cpp.llama_vocab_is_eog(self._model.vocab, token_id):
                return

    def _tokenizer(self) -> PromptTokenizer:
        if self._prompts is None:
            stock = self.tokenizer_  # a closure over self would keep the model alive

            @lru_cache(_REMEMBERED_TEXTS)
            def tokenize(text: bytes, special: bool) -> tuple[int, ...]:
                return tuple(stock.tokenize(text, False, special))

            self._prompts = prompt_tokenizer(self._model.vocab, tokenize, self._control)
        return self._prompts

    def _bos(self, wanted: bool) -> list[int]:
        return [self.token_bos()] if wanted and self._model.add_bos_token() else []

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)


def _common_prefix(held: npt.NDArray[np.intc], ids: Sequence[int]) -> int:
    """How many ids at the start are the same."""
    n = min(len(held), len(ids))
    different = np.flatnonzero(held[:n] != np.asarray(ids[:n]))
    return int(different[0]) if different.size else n
