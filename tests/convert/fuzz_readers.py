"""Coverage-guided fuzzing of the readers of strangers' files, for as long as one likes.

    pip install atheris
    python tests/convert/fuzz_readers.py gguf -max_total_time=300 -max_len=4096
    python tests/convert/fuzz_readers.py tokenizer.model -max_total_time=300

Targets: gguf, tokenizer.json, tokenizer_config.json, tokenizer.model. A finding is any error that is not ours, or a
slow input; libFuzzer writes it to a file `crash-*`. The test suite runs the same targets on mutants (fuzzing.py).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import tokenizer_files as files
from test_gguf_file_fuzz import SEEDS, _use
from test_vocab_fuzz import BYTES, PIECES, load_vocab_and_seal

from refusal_edge.convert.vocab.sentencepiece import parse_proto
from refusal_edge.errors import RefusalEdgeError

Target = Callable[[bytes], object]


def gguf_target(folder: Path) -> tuple[Target, list[bytes]]:
    path = folder / "x.gguf"

    def use(data: bytes) -> None:
        path.write_bytes(data)
        _use(path)

    return use, SEEDS


def tokenizer_target(folder: Path, name: str) -> tuple[Target, list[bytes]]:
    n_rows = files.write_byte_level(folder, BYTES, files.split(files.CL100K), bos="<s>")

    def use(data: bytes) -> None:
        (folder / name).write_bytes(data)
        load_vocab_and_seal(folder, n_rows)

    return use, [(folder / name).read_bytes()]


def main() -> None:
    name = sys.argv.pop(1)
    folder = Path(tempfile.mkdtemp())
    if name == "gguf":
        use, seeds = gguf_target(folder)
    elif name == "tokenizer.model":
        use, seeds = (lambda data: parse_proto(data, "x")), [files.sentencepiece_model(PIECES)]
    else:
        use, seeds = tokenizer_target(folder, name)
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds):
        (corpus / str(i)).write_bytes(seed)

    def one_input(data: bytes) -> None:
        try:
            use(data)
        except RefusalEdgeError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error

    atheris.instrument_all()
    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
