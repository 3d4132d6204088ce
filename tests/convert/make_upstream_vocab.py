"""Runs llama.cpp's own converter, vocabulary only, on `vocab_cases.py` and stores what it wrote, as hashes.

    pip download --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    python tests/convert/make_upstream_vocab.py llama_cpp_python-0.3.36/vendor/llama.cpp

Needs torch, transformers, sentencepiece. Nothing is patched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import digest_file
from vocab_cases import CASES

FIXTURE = Path(__file__).parent / "fixtures" / "upstream_vocab.json"


def main(llama_cpp: Path) -> None:
    fixture = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch) / "model", Path(scratch) / "out.gguf"
            case.write_folder(folder)
            command = [sys.executable, "convert_hf_to_gguf.py", str(folder), "--vocab-only", "--outfile", str(out)]
            offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
            done = subprocess.run(command, cwd=llama_cpp, env=offline, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(name, done.stderr.strip().splitlines()[-1], file=sys.stderr)
                continue
            keys = digest_file(out)["keys"]
            fixture[name] = {key: value for key, value in keys.items() if key.startswith("tokenizer.")}
            print(name, file=sys.stderr)
    FIXTURE.write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
