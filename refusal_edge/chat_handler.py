"""llama-cpp-python's chat handlers, with stand-ins for the model: to see what they render, to answer through them.

A handler renders the messages, tokenises the text with `llama.tokenize` and calls `llama.create_completion`; grammars,
tools and the answer's shape are its work and stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from refusal_edge.errors import InvalidRequestError
from refusal_edge.template import Request

Handler = Callable[..., Any]


class _Rendered(Exception):
    def __init__(self, text: str, add_bos: bool) -> None:
        self.text, self.add_bos = text, add_bos


class _Recorder:
    """A model that only hears which text is to be tokenised."""

    verbose = False

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        raise _Rendered(text.decode(), add_bos)

    def create_completion(self, prompt: object, **parameters: Any) -> Any:
        if not isinstance(prompt, str):
            raise TypeError("expected a text prompt")
        raise _Rendered(prompt, True)


class HandlerTemplate:
    """Renders requests as a chat handler does.

    Attributes:
        add_bos: whether the text that was rendered last wants a beginning-of-sequence token before it.
    """

    add_bos = False

    def __init__(self, handler: Handler, choices: Mapping[str, Any]) -> None:
        """`choices`: `tool_choice` and `function_call`, as given."""
        self._handler = handler
        self._choices = choices

    def __call__(self, request: Request) -> str:
        """The text of the prompt.

        Raises:
            InvalidRequestError: the template refuses these messages or is broken, or the handler does not render text.
        """
        try:
            self._handler(llama=_Recorder(), **request, **self._choices)
        except _Rendered as rendered:
            self.add_bos = rendered.add_bos
            return rendered.text
        except Exception as error:  # a template is a program of the file's, which may fail in any way
            reason = (str(error).splitlines() or [""])[0]
            raise InvalidRequestError(f"chat template: {type(error).__name__}: {reason}") from None
        raise InvalidRequestError("chat handler: it renders no text, so nothing can be decided; use llama_cpp.Llama")


class Answering:
    """A model that answers a handler's one completion from ids that were made before."""

    def __init__(self, llama: Any, ids: list[int], complete: Callable[..., Any]) -> None:
        self._llama, self._ids, self._complete = llama, ids, complete

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return self._ids

    def create_completion(self, **parameters: Any) -> Any:
        if self._ids is None:
            raise InvalidRequestError("chat handler: it asks for several completions, but one decision was made")
        ids, self._ids = self._ids, None  # type: ignore[assignment]
        return self._complete(**{**parameters, "prompt": ids})
