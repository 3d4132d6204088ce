"""Writes and reads the checkpoint folder: what `transformers.AutoModelForCausalLM.from_pretrained` expects."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .model import Llama, ModelConfig
from .tokenizer import BOS, CHAT_TEMPLATE, EOS, EOT, token_id


def save_checkpoint(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write weights (bfloat16), configuration, tokenizer and chat template into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    bos, eos, eot = (token_id(tokenizer, text) for text in (BOS, EOS, EOT))
    _write_json(folder / "config.json", _config(model.config, bos, eos))
    # As in the released models the tokenizer's end is <|end_of_text|> while a turn ends with <|eot_id|>: both stop.
    _write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": [eos, eot]})
    _write_json(folder / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, model.config))


def load_checkpoint(folder: Path) -> tuple[Llama, Tokenizer]:
    """Read back what `save_checkpoint` wrote; weights become float32, the model is in evaluation mode."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig(**{field.name: values[field.name] for field in fields(ModelConfig)})
    model = Llama(config)
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _config(config: ModelConfig, bos: int, eos: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "added_tokens_decoder": added,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
