"""Every tensor and every key as llama.cpp's own converter writes them; `make_upstream_hashes.py` ran it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import CASES, digest_file, digest_folder
from checkpoints import write_checkpoint

from refusal_edge.convert import convert

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "upstream_hashes.json").read_text(encoding="utf-8"))

WE_ADD = {
    "tokenizer.ggml.eot_token_id": "the end of a turn must end the answer, whatever the tokenizer calls its eos",
    "tokenizer.ggml.add_eos_token": "always explicit, so that no default of llama.cpp's decides",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a case, written once."""
    root, written = tmp_path_factory.mktemp("checkpoints"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_checkpoint(root / name / "tiny-model", **CASES[name].options)
            assert digest_folder(written[name]) == FIXTURE["cases"][name]["checkpoint"], (
                "the checkpoint itself is not the one that upstream converted: run make_upstream_hashes.py again"
            )
        return written[name]

    return folder


@pytest.mark.parametrize(
    ("name", "outtype"), [(name, outtype) for name, case in CASES.items() for outtype in case.outtypes]
)
def test_same_tensors_and_keys(name: str, outtype: str, checkpoints: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    token_type = "control" if CASES[name].options.get("special") else "user"
    convert(checkpoints(name), out, outtype=outtype, token_type=token_type)
    ours, theirs = digest_file(out), FIXTURE["cases"][name]["files"][outtype]
    assert ours["tensors"] == theirs["tensors"]
    keys = {key: value for key, value in ours["keys"].items() if not key.startswith("refusal_edge.")}
    added = keys.keys() - theirs["keys"].keys()
    assert added <= WE_ADD.keys()
    assert {key: value for key, value in keys.items() if key not in added} == theirs["keys"]
