"""`refusal-edge convert`: a Hugging Face checkpoint becomes a GGUF file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import terminal, tokens

if TYPE_CHECKING:
    from refusal_edge.convert import Report

SUMMARY = "convert a Hugging Face refusal-token fine-tune to GGUF"
EXAMPLES = """\
  refusal-edge convert zephyr-refusal/ -o zephyr-refusal.gguf
  refusal-edge convert zephyr-refusal/ -o small.gguf --outtype q8_0
  refusal-edge convert zephyr-refusal/ -o laptop.gguf --quantize Q4_K_M
  refusal-edge convert llama-3-8b/ -o tuned.gguf --adapter my-lora/
  refusal-edge convert my-model/ -o my-model.gguf --token respond=32001 --token "safety=[no]"
  refusal-edge convert my-model/ -o my-model.gguf --dry-run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "src", metavar="SRC", type=Path, help="folder with config.json, safetensors and tokenizer files"
    )
    parser.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, required=True, help="file to write")
    parser.add_argument("--adapter", metavar="DIR", type=Path, help="PEFT adapter to merge (LoRA, rsLoRA, DoRA)")
    parser.add_argument(
        "--outtype",
        default="auto",
        metavar="TYPE",
        help="type of the matrices: auto (as stored), f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0",
    )
    parser.add_argument(
        "--quantize",
        metavar="MIX",
        help="a mix instead of one type: Q2_K, Q3_K_S/M/L, Q4_K_S/M, Q5_K_S/M, Q6_K, IQ3_S/M, IQ4_NL, IQ4_XS",
    )
    parser.add_argument("--head", metavar="TYPE", help="type of the output head (default: q8_0 under any 4-bit type)")
    tokens.add_token_arguments(parser)
    parser.add_argument("--pre", metavar="NAME", help="llama.cpp's name of the pre-tokenizer, if it is not recognised")
    parser.add_argument("--name", help="name of the model (default: what the checkpoint says)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="worker threads (default: one per processor, at most 4)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.convert import convert

    with tokens.bytes_bar("converting") as progress:
        report = convert(
            args.src,
            args.output,
            adapter=args.adapter,
            outtype=args.outtype,
            quantize=args.quantize,
            head=args.head,
            preset=args.preset,
            tokens=args.tokens,
            token_type=args.token_type,
            pre=args.pre,
            name=args.name,
            force=args.force,
            dry_run=args.dry_run,
            threads=args.threads,
            progress=progress,
        )
    print(json.dumps(report.to_dict(), indent=2) if args.json else _describe(report))
    return 0


def _describe(report: Report) -> str:
    verb = "would write" if report.dry_run else "wrote"
    lines = [
        f"{verb} {report.out}: {report.arch} {report.file_type}, {report.n_params / 1e6:,.1f}M parameters, "
        f"{report.n_bytes / 1e6:,.1f} MB, {report.seconds:.1f} s",
        "",
        terminal.table([[t.slug, str(t.id), repr(t.text)] for t in report.control], header=["role", "id", "text"]),
        "",
        tokens.REACHABLE[report.stamp.reachable or "text"],
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report.warnings)])
