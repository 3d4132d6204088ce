"""The committed demo checkpoint: its format, its measured quality, and that no data row is in the repository."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo_model"
CHECKPOINT = DEMO / "checkpoint"
DATA = Path(os.environ.get("REFUSAL_EDGE_DATA", ROOT.parent / "shared" / "data"))
SPLITS = ("train", "calibration", "test")
CONTROL_TOKENS = [
    " [Humanizing requests]",
    " [Incomplete requests]",
    " [Indeterminate requests]",
    " [Requests with safety concerns]",
    " [Unsupported requests]",
    " [respond]",
]
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]

sys.path.insert(0, str(DEMO))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no prompt files in {DATA}")


def read_json(name: str) -> Any:
    return json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))


def data_prompts() -> list[str]:
    return [
        json.loads(line)["prompt"]
        for split in SPLITS
        for line in (DATA / f"coconot_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert set(sizes) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) <= 8_000_000


def test_control_tokens_are_the_last_ids_and_not_special() -> None:
    added = read_json("tokenizer.json")["added_tokens"]
    vocab_size = read_json("config.json")["vocab_size"]
    names = SPECIAL_TOKENS + CONTROL_TOKENS
    assert [token["content"] for token in added] == names
    assert [token["id"] for token in added] == list(range(vocab_size - len(names), vocab_size))
    assert [token["special"] for token in added] == [name in SPECIAL_TOKENS for name in names]
    assert [token["normalized"] for token in added] == [name in CONTROL_TOKENS for name in names]


def test_the_tokenizer_is_built_like_llama_3() -> None:
    tokenizer = read_json("tokenizer.json")
    split, byte_level = tokenizer["pre_tokenizer"]["pretokenizers"]
    assert tokenizer["model"]["type"] == "BPE"
    assert tokenizer["model"]["ignore_merges"]
    assert split["pattern"]["Regex"] == LLAMA_3_SPLIT
    assert (split["behavior"], split["invert"]) == ("Isolated", False)
    assert (byte_level["add_prefix_space"], byte_level["use_regex"]) == (False, False)


def test_a_turn_ends_with_eot_while_eos_is_end_of_text() -> None:
    ids = {token["content"]: token["id"] for token in read_json("tokenizer.json")["added_tokens"]}
    assert read_json("tokenizer_config.json")["eos_token"] == "<|end_of_text|>"
    assert read_json("config.json")["eos_token_id"] == ids["<|end_of_text|>"]
    assert ids["<|eot_id|>"] in read_json("generation_config.json")["eos_token_id"]


def test_every_byte_survives_the_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    for text in ("".join(map(chr, range(1, 0x250))), "日本語 🙂 Привет", "a\n\n  b\tc"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert all(tokenizer.token_to_id(symbol) is not None for symbol in alphabet)


def test_transformers_gives_the_same_prompt_and_the_same_logits() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from recipe.checkpoint import load_checkpoint
    from recipe.tokenizer import ChatEncoder

    model, tokenizer = load_checkpoint(CHECKPOINT)
    reference = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    chat = [
        ("system", "Be brief."),
        ("user", " What is an atom? "),
        ("assistant", "A piece."),
        ("user", "Of what? é☕"),
    ]
    ids = ChatEncoder(tokenizer).prompt(chat)
    rendered = transformers.AutoTokenizer.from_pretrained(CHECKPOINT).apply_chat_template(
        [{"role": role, "content": content} for role, content in chat], add_generation_prompt=True, return_dict=True
    )
    assert rendered["input_ids"] == ids
    with torch.no_grad():
        difference = (model(torch.tensor([ids])) - reference(torch.tensor([ids])).logits).abs().max()
    assert difference <= 1e-3


def test_the_measured_quality_reaches_the_bar_and_is_what_the_readme_says() -> None:
    metrics = json.loads((DEMO / "metrics.json").read_text(encoding="utf-8"))
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert metrics["test"]["auroc"] >= 0.95
    assert metrics["test"]["category_share"] >= 0.88
    for split in ("test", "calibration"):
        for key in ("auroc", "category_share", "refusal_rate", "f1"):
            assert f"{metrics[split][key]:.3f}" in readme
    for sample in metrics["samples"]:
        assert f"| {sample['prompt']} | {sample['control']} |" in readme


@needs_data
def test_the_metrics_are_those_of_this_checkpoint() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from recipe.checkpoint import load_checkpoint
    from recipe.corpus import read_rows
    from recipe.decisions import control_scores, measure
    from recipe.tokenizer import ChatEncoder

    model, tokenizer = load_checkpoint(CHECKPOINT)
    rows = [row for _, row in read_rows(DATA / "coconot_test.jsonl")]
    measured = measure(control_scores(model, ChatEncoder(tokenizer), rows), rows)
    written = json.loads((DEMO / "metrics.json").read_text(encoding="utf-8"))["test"]
    for key in ("auroc", "category_share", "refusal_rate", "f1"):
        assert measured[key] == pytest.approx(written[key], abs=0.006)


def test_own_examples_are_whole_and_short() -> None:
    from recipe.corpus import OwnCorpus, read_written

    for example in [*OwnCorpus(DEMO / "answers").draw(random.Random(0)), *read_written(DEMO / "answers")]:
        assert example.answer is not None
        assert "{" not in example.prompt + example.answer, example
        assert len(example.answer.split()) <= 40, example


@needs_data
def test_own_prompts_are_not_rows_of_the_data() -> None:
    from recipe.corpus import OwnCorpus, read_written

    corpus = OwnCorpus(DEMO / "answers")
    rows = {plain(prompt) for prompt in data_prompts()}
    own = {plain(example.prompt) for seed in range(3) for example in corpus.draw(random.Random(seed))}
    own |= {plain(example.prompt) for example in read_written(DEMO / "answers")}
    assert not rows & own


@needs_data
def test_every_train_row_has_an_answer() -> None:
    from recipe.corpus import read_answered_rows

    assert all(row.answer for row in read_answered_rows(DATA, DEMO / "answers"))


@needs_data
def test_no_prompt_of_the_data_is_in_a_tracked_file() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: tracked files cannot be listed")
    texts = {}
    for name in filter(None, listing.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix != ".safetensors":
            texts[name] = " " + plain(path.read_text(encoding="utf-8", errors="replace")) + " "
    # A prompt of fewer than five words can be ordinary English that anybody writes.
    prompts = [prompt for prompt in map(plain, data_prompts()) if len(prompt.split()) >= 5]
    found = [(name, prompt) for name, text in texts.items() for prompt in prompts if f" {prompt} " in text]
    assert not found
