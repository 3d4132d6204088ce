"""Runs llama.cpp's own converter on the tiny checkpoints of `cases.py` and stores what it wrote, as hashes.

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    python tests/convert/make_upstream_hashes.py llama_cpp_python-0.3.36/vendor/llama.cpp

Needs torch, transformers, sentencepiece. The only thing patched is the name of the pre-tokenizer: upstream finds it by
hashing the token ids of a sample text, which knows no vocabulary of 270 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, digest_file, digest_folder
from checkpoints import write_checkpoint

FIXTURE = Path(__file__).parent / "fixtures" / "upstream_hashes.json"
UPSTREAM = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sys.argv = ["convert_hf_to_gguf.py", sys.argv[2], "--outfile", sys.argv[3], "--outtype", sys.argv[4]]
convert_hf_to_gguf.main()
"""


def main(llama_cpp: Path) -> None:
    fixture = {"upstream": "llama.cpp as vendored in llama-cpp-python 0.3.36", "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in CASES.items():
            folder = write_checkpoint(Path(scratch) / name / "tiny-model", **case.options)
            fixture["cases"][name] = {"checkpoint": digest_folder(folder), "files": {}}
            for outtype in case.outtypes:
                out = folder.parent / f"{outtype}.gguf"
                run_upstream(llama_cpp, folder, out, outtype)
                fixture["cases"][name]["files"][outtype] = digest_file(out)
            print(name, file=sys.stderr)
    FIXTURE.write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_upstream(llama_cpp: Path, folder: Path, out: Path, outtype: str) -> None:
    """Converts `folder` with llama.cpp's converter."""
    subprocess.run(
        [sys.executable, "-c", UPSTREAM, str(llama_cpp), str(folder), str(out), outtype],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
