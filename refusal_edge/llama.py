"""`Llama`: llama_cpp.Llama whose every answer begins with a decision."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import llama_cpp
from llama_cpp import llama_chat_format

from refusal_edge import chat_shape, completion_shape
from refusal_edge.batch import BatchDecider
from refusal_edge.chat_handler import Answering, Handler
from refusal_edge.chat_prompt import encode_history
from refusal_edge.chat_shape import ChatShape, Response
from refusal_edge.deciding_llama import DecidingLlama, PolicyLike
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidRequestError, RefusedError
from refusal_edge.guards import ParameterGuard
from refusal_edge.messages import Refusals, read_messages
from refusal_edge.parameters import OnRefuse, check_logprobs, check_parameters
from refusal_edge.placement import Placement
from refusal_edge.policy import Policy
from refusal_edge.prompt import check_length
from refusal_edge.refusal_messages import check_messages, default_messages
from refusal_edge.refusal_texts import RefusalTexts
from refusal_edge.template import Span
from refusal_edge.turn import Turn
from refusal_edge.upstream import arguments_of

Message = Mapping[str, Any]

_chat: Final = arguments_of(llama_cpp.Llama.create_chat_completion)
_completion: Final = arguments_of(llama_cpp.Llama.create_completion)
_DROPPED_ON_REFUSAL: Final = ("functions", "function_call", "tools", "tool_choice", "response_format", "grammar")


class ChatPrompt(NamedTuple):
    """The messages before the boundary, their ids up to it, and the ids of the text that an answer is to begin with."""

    messages: list[dict[str, Any]]
    boundary: list[int]
    prefill: list[int]


class Llama(DecidingLlama):
    """A `llama_cpp.Llama` that decides before it answers; every argument and method of that class still works.

    The decision is taken at the end of the prompt by `policy`, on raw logits, and cannot be skipped: it is made where
    the first token of an answer would be sampled. After it no control token can be sampled.

    A decision is a function of prompt and policy: no seed, sampling parameter or earlier conversation changes it (but
    for the last bits of floating point, since llama.cpp rounds by how a prompt is split into batches).

    An instance serves one request at a time, since it has one context: another thread waits for a call that is running,
    and a stream that is read on after another request began raises StateError. Use after `close()` does as well. A
    logits processor or stopping criterion must not wait for another thread that uses the instance.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        policy: Policy | None = None,
        placement: Placement = "auto",
        **kwargs: Any,
    ) -> None:
        """Loads a GGUF that `refusal-edge convert` or `annotate` made.

        Args:
            policy: in force instead of the file's own, over the same control tokens.
            placement: "cpu", "backend" (the rule inside the graph that computes the logits, where llama.cpp and the
                device can; warns where not) or "auto", which is "cpu".
            kwargs: those of `llama_cpp.Llama`.

        Raises:
            FormatError: a broken or hostile file, or one that llama.cpp cannot load.
            MetadataError: the file has no or broken `refusal_edge.*` keys, or a broken chat template.
            InvalidPolicyError: `policy` is for another model.
            InvalidRequestError: `placement` is none of the three, or `n_ctx` out of range or of memory.
            HostError: the installed llama-cpp-python does not fit.
        """
        super().__init__(model_path, policy=policy, placement=placement, **kwargs)
        self.refusal_messages = default_messages(self.policy.categories)
        self._refusal_texts = RefusalTexts()
        texts = {i: text.decode(errors="replace") for i, text in self._control.items()}
        self._guard = ParameterGuard(texts, self._n_vocab)

    @property
    def refusal_messages(self) -> dict[str, str]:
        """Category -> fixed text for `on_refuse="message"`; change its values at will, they are checked when used."""
        return self._refusal_messages

    @refusal_messages.setter
    def refusal_messages(self, messages: Mapping[str, str]) -> None:
        self._refusal_messages = check_messages(messages, self.policy.categories)

    def decide(
        self,
        messages: Sequence[Message],
        policy: PolicyLike | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        functions: Sequence[Mapping[str, Any]] | None = None,
    ) -> Decision:
        """Decides on a conversation: one prefill, nothing generated; what the context already holds is not read again.

        Args:
            messages: OpenAI chat messages; a last one of role assistant is a prefill: the decision comes before it.
                Keep the `refusal_details` of earlier refusals: without them the category is known only while the text
                is among the last that this instance gave; else the first category stands before it, with a warning.
            policy: a Policy, or changes to `self.policy` by category or field name, for this call.
            tools, functions: as in `create_chat_completion`, for templates that show them.

        Raises:
            InvalidRequestError: messages that cannot be rendered.
            PromptTooLongError: the prompt does not fit the context.
            InvalidPolicyError: an unknown category or a value out of range.
            InvalidLogitsError: the model computed NaN or infinity.
        """
        effective = self._effective(policy)
        prompt = self._chat_prompt(messages, effective, {"tools": tools, "functions": functions})
        return self._decide_ids(prompt.boundary, effective)

    def decide_batch(
        self, conversations: Iterable[Sequence[Message]], policy: PolicyLike | None = None
    ) -> list[Decision]:
        """`decide` on many conversations, several a llama_decode, a shared beginning computed once.

        Uses a second context of the same size, made at the first call. Scores are those of one by one but for rounding:
        on a CPU below 1e-3 (4e-4 measured with f16, 3e-5 with bf16, nothing with q8_0 and q4_0; 2e-3 where nothing but
        the last token differs), on a GPU or with flash_attn about 1e-2. So are decisions, unless a score lies that
        close to its threshold.

        Raises:
            As `decide`, for the first conversation that fails; `conversations` is taken 64 at a time.
        """
        effective = self._effective(policy)
        prompts = (self._chat_prompt(messages, effective, {}).boundary for messages in conversations)
        with self._exclusive:  # one thread makes the second context, and close() waits for it
            batch = self._batch_decider
        return list(batch.decide(prompts, effective, calibrated=self._is_calibrated(effective)))

    @cached_property
    def _batch_decider(self) -> BatchDecider:
        batch = BatchDecider(self)
        self._stack.callback(batch.close)
        return batch

    def create_chat_completion(  # type: ignore[no-untyped-def]
        self,
        messages: Sequence[Message],
        *args: Any,
        policy: PolicyLike | None = None,
        on_refuse: OnRefuse = "generate",
        refusal_as_content: bool = False,
        **kwargs: Any,
    ):
        """Decides, then answers or refuses, in OpenAI's shape: `message.refusal` is a string or None.

        Args:
            messages: as for `decide`. A last assistant message is a prefill: an answer goes on from it, a refusal not.
            args, kwargs: those of `llama_cpp.Llama.create_chat_completion`. A refusal drops grammar, response format
                and tools. `max_tokens` counts the control token too.
            policy: as for `decide`.
            on_refuse: "generate" lets the model write its refusal, "message" gives the fixed text of
                `refusal_messages` and generates nothing, "raise" raises. The outcome "no_decision" is no refusal, and
                the model may answer, unless the policy says `fallback="refuse"`.
            refusal_as_content: a refusal's text stands in `content` as well.

        Returns:
            The completion, or with `stream=True` an iterator of chunks, with `refusal_details` = `Decision.to_dict()`:
            its `outcome` is "refuse", "respond" or "no_decision", where `control_mass` is below `min_control_mass`.

        Raises:
            RefusedError: refused, and `on_refuse="raise"`.
            As `decide`, and InvalidRequestError for a parameter that would reach a control token.
        """
        parameters = _chat(self, messages, *args, **kwargs)
        del parameters["messages"]
        turn = self._new_turn(parameters, policy, on_refuse)
        prompt = self._chat_prompt(messages, turn.policy, parameters)
        n_prompt = len(prompt.boundary) + len(prompt.prefill)
        check_length(n_prompt, self._n_ctx, n_answer=2)  # the control token, and the first of the text
        with self._exclusive:  # nothing is evaluated twice because another thread came in between
            turn.decision = self._decide_ids(prompt.boundary, turn.policy)
            if turn.refused and on_refuse == "raise":
                raise RefusedError(turn.decision)
            result = self._answer(prompt, turn, parameters)
        remember = partial(self._remember, turn)
        shape = ChatShape(turn.refused, turn.details(), refusal_as_content, int(turn.opening is not None), remember)
        return shape.chunks(result) if parameters["stream"] else shape.completion(result)

    def create_completion(  # type: ignore[no-untyped-def]
        self,
        prompt: str | Sequence[int],
        *args: Any,
        policy: PolicyLike | None = None,
        on_refuse: OnRefuse = "generate",
        **kwargs: Any,
    ):
        """Decides at the prompt's end, then completes it; `refusal_details` tells what was decided.

        The prompt is the host's own: special tokens in its text stand for themselves, control tokens do not; as token
        ids it may hold control tokens in its history alone, before an end-of-generation token. Where its end is no
        boundary, the control tokens have little probability: outcome "no_decision", and the text is sampled as ever.
        `max_tokens` and the usage count the control token. With `stream=True` nothing happens before the first
        chunk is asked for.

        Args and errors as for `create_chat_completion`.
        """
        parameters = _completion(self, prompt, *args, **kwargs)
        turn = self._new_turn(parameters, policy, on_refuse)
        if not isinstance(prompt, str):
            parameters["prompt"] = prompt = self._prompt_ids(prompt)
            self._check_undecided(prompt)
        check_length(self._count(prompt), self._n_ctx, n_answer=1)
        if parameters["stream"]:
            return completion_shape.chunks(self._complete_or_refuse(turn, parameters), turn)
        response = next(self._complete_or_refuse(turn, parameters))
        return completion_shape.completion(response, turn)

    def __call__(self, prompt: str | Sequence[int], *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        """The same as `create_completion`."""
        return self.create_completion(prompt, *args, **kwargs)

    def _chat_prompt(self, messages: object, policy: Policy, parameters: Mapping[str, Any]) -> ChatPrompt:
        conversation = read_messages(messages, Refusals(policy, self._token_before, self._warn_once))
        tokenizer = self._tokenizer()
        boundary = encode_history(
            conversation.history,
            self._handler(),
            tokenizer,
            self._bos(True),
            tools={name: parameters[name] for name in ("tools", "functions") if parameters.get(name) is not None},
            choices={name: parameters.get(name) for name in ("tool_choice", "function_call")},
            warn=self._warn_once,
        )
        prefill = tokenizer.encode([Span(conversation.prefill, trusted=False)])
        return ChatPrompt([message.fields for message in conversation.history], boundary, prefill)

    def _remember(self, turn: Turn, text: str) -> None:
        if turn.refused and turn.control_token is not None:
            self._refusal_texts.put(text, turn.control_token)

    def _token_before(self, refusal: str) -> int | None:
        """The control token of a refusal that was given lately, or has a fixed text; None unless it is one alone."""
        if (token_id := self._refusal_texts.get(refusal)) is not None:
            return token_id
        fixed = [c.token_id for c in self.policy.categories if self.refusal_messages.get(c.id) == refusal]
        return fixed[0] if len(fixed) == 1 else None

    def _new_turn(self, parameters: Mapping[str, Any], policy: PolicyLike | None, on_refuse: OnRefuse) -> Turn:
        check_parameters(parameters, on_refuse)
        self._guard.check(parameters)
        check_logprobs(parameters, self._logits_all)
        check_messages(self.refusal_messages, self.policy.categories)
        return Turn(self._effective(policy), on_refuse)

    def _handler(self) -> Handler:
        handler = self.chat_handler or self._chat_handlers.get(self.chat_format)
        if handler is not None:
            return handler  # type: ignore[no-any-return]
        try:
            return llama_chat_format.get_chat_completion_handler(self.chat_format)  # type: ignore[no-any-return]
        except llama_chat_format.LlamaChatCompletionHandlerNotFoundException:
            raise InvalidRequestError(f"chat_format: llama-cpp-python has none named {self.chat_format!r}") from None

    def _count(self, prompt: str | Sequence[int]) -> int:
        if not isinstance(prompt, str):
            return len(prompt)
        try:
            return len(self.tokenize(prompt.encode(), add_bos=True, special=True))
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"prompt: expected Unicode text, got a lone surrogate: {error}") from None

    def _answer(self, prompt: ChatPrompt, turn: Turn, parameters: dict[str, Any]) -> Any:
        """The chat completion, or its chunks, in llama-cpp-python's shape; the control token counts as prompt there."""
        max_tokens = parameters["max_tokens"]
        fixed = partial(_fixed_chat, parameters, self.model_path)
        if turn.refused and turn.on_refuse == "message":
            return fixed(turn.refusal_text(self.refusal_messages), len(prompt.boundary), "stop")
        if turn.opening is not None and max_tokens == 1:
            return fixed("", len(prompt.boundary) + 1, "length")
        ids = list(prompt.boundary)
        if turn.opening is not None:
            ids.append(turn.opening)
            max_tokens = max_tokens - 1 if (max_tokens or 0) > 0 else max_tokens
        elif turn.decision is not None and not prompt.prefill:
            turn.first = turn.decision.token_id
        dropped = dict.fromkeys(_DROPPED_ON_REFUSAL) if turn.refused else {}
        if not turn.refused:
            ids += prompt.prefill
        return self._handler()(
            llama=Answering(self, ids, partial(self._complete, turn)),
            messages=prompt.messages,
            **{**parameters, **dropped, "max_tokens": max_tokens},
        )

    def _complete(self, turn: Turn, **arguments: Any) -> Any:
        responses = self._responses(turn, arguments)
        return responses if arguments.get("stream") else next(responses)

    def _complete_or_refuse(self, turn: Turn, arguments: dict[str, Any]) -> Iterator[Response]:
        try:
            yield from self._responses(turn, arguments)
        except RefusedError:
            if turn.on_refuse == "raise":
                raise
            echo = arguments["prompt"] if arguments["echo"] and isinstance(arguments["prompt"], str) else ""
            text = echo + turn.refusal_text(self.refusal_messages)
            name = arguments["model"] or self.model_path
            yield from completion_shape.fixed_completion(text, name, turn.n_prompt, arguments["stream"])

    def _responses(self, turn: Turn, arguments: dict[str, Any]) -> Iterator[Response]:
        """llama-cpp-python's completion, or its chunks."""
        return self._exclusive.steps(self._complete_turn(turn, arguments))

    def _complete_turn(self, turn: Turn, arguments: dict[str, Any]) -> Generator[Response, None, None]:
        self._turn = turn
        try:
            result = super().create_completion(**arguments)
            responses = iter(result if arguments.get("stream") else [result])
            first = next(responses)  # has started `generate`, which took the turn
        finally:
            self._turn = None
        yield first
        yield from responses


def _fixed_chat(parameters: Mapping[str, Any], path: str, text: str, n_prompt: int, finish_reason: str) -> Any:
    name = parameters["model"] or path
    if parameters["stream"]:
        return chat_shape.fixed_chat_chunks(text, name, finish_reason)
    return chat_shape.fixed_chat(text, name, n_prompt, finish_reason)
