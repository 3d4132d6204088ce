"""Proof, per file, that no text becomes a control token: stock llama.cpp tokenizes them in every way that matters.

Since llama.cpp is asked anyway, it also says whether it loads the vocabulary and the chat templates at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gguf import GGUFValueType, Keys

from refusal_edge.byte_level import encode
from refusal_edge.errors import ConversionError
from refusal_edge.keys import REACHABLE

from . import probe
from .control import ControlTokens
from .gguf_writer import KeyValue, encode_header
from .named_errors import naming
from .vocab import Vocab

NEVER, SPECIAL, TEXT = REACHABLE
TIMEOUT_SECONDS: Final = 120

# `python -m` would look for modules in the current folder first. (Python 3.10 has no -P; -I forgets PYTHONPATH.)
_START: Final = f"import sys; sys.path[:] = sys.argv[1:]; from {probe.__name__} import main; main()"


@dataclass(frozen=True)
class Reachability:
    """What stock llama.cpp does with the texts of the control tokens.

    Attributes:
        by_token: id -> "never", "special" (where special tokens are parsed, as every chat front end does) or
            "text" (always).
        n_texts: how many texts were tried, each with and without parsing special tokens.
        broken_templates: key -> what is wrong with that chat template; llama-cpp-python does not load such a file.
    """

    by_token: Mapping[int, str]
    n_texts: int
    broken_templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The most reachable of them: one of `refusal_edge.keys.REACHABLE`."""
        return max(self.by_token.values(), key=REACHABLE.index)

    @property
    def template_problems(self) -> list[str]:
        """One line for each broken template."""
        consequence = "llama-cpp-python loads no file with such a template; correct it or remove it"
        return [f"{key}: {problem}; {consequence}" for key, problem in self.broken_templates.items()]


def self_test(gguf_path: str | Path, control: ControlTokens, source: str | None = None) -> Reachability:
    """Loads only the vocabulary of a GGUF file with llama.cpp and tries to reach the control tokens by text.

    Args:
        source: what errors name instead of `gguf_path`.

    Raises:
        ConversionError: llama.cpp does not load the file, or dies.
    """
    texts = _texts(control)
    try:
        answer = _ask(Path(gguf_path), texts)
    except ValueError as error:
        raise ConversionError(f"{source or gguf_path}: self-test: {error}") from None
    reached = {how: {token for tokens in answer[how] for token in tokens} for how in ("plain", "special")}
    by_token = {
        token_id: TEXT if token_id in reached["plain"] else SPECIAL if token_id in reached["special"] else NEVER
        for token_id in control.ids
    }
    return Reachability(by_token, len(texts), answer["broken_templates"])


def _texts(control: ControlTokens) -> list[str]:
    """Every control text and every way to spell it: alone, at line starts, within sentences, doubled, all together."""
    lines = ("{}", " {}", "  {}", "\n{}", "\n\n{}\n", "\t{}")
    sentences = ("say{}", "say {} now", "1{}2", ".{}.", "({})", "{0}{0}", "🙂{}é")
    texts = []
    for token in control:
        forms = (token.text, token.text.strip(), encode(token.text), token.text.replace(" ", "▁"))
        texts += [frame.format(form) for form in forms for frame in lines + sentences]
    return list(dict.fromkeys([*texts, "".join(token.text for token in control)]))


def _ask(path: Path, texts: list[str]) -> dict[str, Any]:
    """The answer of `probe`, in a process of its own where this program can start one.

    Raises:
        ValueError: llama.cpp does not load the file, or dies.
    """
    if getattr(sys, "frozen", False) or not sys.executable:  # inside an application, which is no Python to run
        return probe.ask(str(path), texts)
    try:
        child = subprocess.run(
            [sys.executable, "-c", _START, *_search_path()],
            input=json.dumps({"path": str(path), "texts": texts}),
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"llama.cpp needed more than {TIMEOUT_SECONDS} s") from None
    if child.returncode != 0:
        raise ValueError(_reason(child))
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def _search_path() -> list[str]:
    """`sys.path` of this process without the current folder: a checkpoint may lie there, whose files must not run."""
    return [os.path.abspath(entry) for entry in sys.path if entry]


def _reason(child: subprocess.CompletedProcess[str]) -> str:
    lines = child.stderr.strip().splitlines()
    for line in lines:
        if "GGML_ASSERT" in line:
            return f"llama.cpp aborts: {line[line.index('GGML_ASSERT') :]}"
    return lines[-1] if lines else f"llama.cpp died with status {child.returncode}"


@dataclass(frozen=True)
class Proven:
    """A vocabulary with its control tokens written in the safest way that holds."""

    vocab: Vocab
    token_type: str
    reachability: Reachability
    warnings: tuple[str, ...] = ()


def prove(
    vocab: Vocab, control: ControlTokens, token_type: str, *, arch: str, name: str | None, scratch: Path, source: str
) -> Proven:
    """`prove_header` for a vocabulary that is about to be written for the first time.

    Args:
        arch, name: `general.architecture` and `general.name` of the file to come; llama.cpp looks at both.
        scratch, source: as for `prove_header`.
    """
    text = GGUFValueType.STRING
    general = [KeyValue(Keys.General.ARCHITECTURE, arch, text)]
    if name:
        general.append(KeyValue(Keys.General.NAME, name, text))
    return prove_header(vocab, control, token_type, lambda v: encode_header([*general, *v.kv()], []), scratch, source)


def prove_header(
    vocab: Vocab, control: ControlTokens, token_type: str, header: Callable[[Vocab], bytes], scratch: Path, source: str
) -> Proven:
    """Seals the control tokens and tests the result; tokens that are reachable all the same become CONTROL.

    Args:
        token_type: "sealed", "control" or "user", as asked for.
        header: makes a GGUF without tensors of a vocabulary.
        scratch: a file of this name is written, tested and removed.
        source: where the vocabulary comes from, for errors.

    Raises:
        ConversionError: llama.cpp does not load the vocabulary.
        OSError: the folder of `scratch` is full.
    """

    def test(candidate: Vocab) -> Reachability:
        try:
            with naming(scratch):
                scratch.write_bytes(header(candidate))
            return self_test(scratch, control, source)
        finally:
            scratch.unlink(missing_ok=True)

    sealed = control.seal(vocab, token_type)
    result = test(sealed)
    mergeable = control.formed_by_merging(vocab)
    if token_type != "sealed" or (result.worst == NEVER and not mergeable):
        return Proven(sealed, token_type, result)
    fallback = control.seal(vocab, "control")
    reached = mergeable[0].text if mergeable else next(t.text for t in control if result.by_token[t.id] != NEVER)
    warning = (
        f"the text {reached!r} tokenizes to its control token even when sealed, so the tokens were written as CONTROL; "
        "keep that text out of prompts, or retrain with a longer, bracketed one"
    )
    return Proven(fallback, "control", test(fallback), (warning,))


@contextmanager
def scratch_file() -> Iterator[Path]:
    """Where a self-test may put a vocabulary: in a folder that nobody else knows."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "vocab.gguf"
