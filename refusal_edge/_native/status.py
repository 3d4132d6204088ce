"""A status of the C library as the exception it stands for, with C's own text."""

from __future__ import annotations

from typing import Final

from refusal_edge._native._redge import ffi, lib
from refusal_edge.errors import HostError, InvalidLogitsError, InvalidPolicyError, RefusalEdgeError

_EXCEPTIONS: Final[dict[int, type[RefusalEdgeError]]] = {
    lib.REDGE_ERR_RULE: InvalidPolicyError,
    lib.REDGE_ERR_CATEGORY_COUNT: InvalidPolicyError,
    lib.REDGE_ERR_TOKEN_DUPLICATE: InvalidPolicyError,
    lib.REDGE_ERR_THRESHOLD: InvalidPolicyError,
    lib.REDGE_ERR_TEMPERATURE: InvalidPolicyError,
    lib.REDGE_ERR_CONTROL_MASS: InvalidPolicyError,
    lib.REDGE_ERR_TOKEN_CHANGED: InvalidPolicyError,
    lib.REDGE_ERR_BACKEND_RULE: InvalidPolicyError,
    lib.REDGE_ERR_TOKEN_RANGE: InvalidLogitsError,
    lib.REDGE_ERR_N_VOCAB: InvalidLogitsError,
    lib.REDGE_ERR_LOGITS: InvalidLogitsError,
    lib.REDGE_ERR_NOT_BOUND: HostError,
    lib.REDGE_ERR_HOST: HostError,
}


def check(status: int) -> None:
    """Raises the exception that `status` stands for; nothing if it is REDGE_OK."""
    if status != lib.REDGE_OK:
        raise _EXCEPTIONS.get(status, RefusalEdgeError)(message(status))


def message(status: int) -> str:
    """C's own sentence for a status."""
    return str(ffi.string(lib.redge_status_message(status)).decode())
