"""One context serves one request at a time: what would mix two of them waits or fails; use after its end fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from refusal_edge.errors import StateError

T = TypeVar("T")
S = TypeVar("S")


class Exclusive:
    """Who may use a context: `with exclusive:` waits for other threads, and fails inside a callback of a request.

    A request may be left for another one between two of its steps, since a stream that nobody reads on must not block
    the next request. It then cannot go on: the context no longer holds what it has read and written.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._epoch = 0
        self._in_callback = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._in_callback:
            self._lock.release()
            raise StateError(
                "a logits processor or stopping criterion cannot use the Llama that is calling it: "
                "decide before or after the request, or load a second Llama"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def changed(self) -> None:
        """Says, while it is held, that the context now holds something else than before."""
        self._epoch += 1

    def steps(self, work: Generator[T, S, None]) -> Generator[T, S, None]:
        """`work`, each step of which has the context to itself and finds it as the step before left it.

        Raises:
            StateError: another request used the context between two steps.
        """
        epoch, sent = None, None
        try:
            while True:
                with self:
                    if epoch not in (None, self._epoch):
                        raise StateError(
                            "this stream cannot go on: another request has used its Llama since; one Llama serves one "
                            "request at a time: read or close a stream before the next request, or load a second Llama"
                        )
                    try:
                        value = next(work) if epoch is None else work.send(sent)  # type: ignore[arg-type]
                    except StopIteration:
                        return
                    epoch = self._epoch
                sent = yield value
        finally:
            work.close()

    def outside(self, callback: Callable[..., T]) -> Callable[..., T]:
        """`callback`, which a step calls and in which nothing may use the context."""

        def call(*args: Any) -> T:
            self._in_callback = True
            try:
                return callback(*args)
            finally:
                self._in_callback = False

        return call


class Closed:
    """Stands in for what was freed: llama.cpp would follow the dangling pointer."""

    def __getattr__(self, name: str) -> Any:
        raise StateError("this Llama is closed: load the model again")
