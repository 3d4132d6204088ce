"""`refusal-edge chat`: talk to a model, see each decision, change thresholds on the way."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from refusal_edge.cli import common, terminal
from refusal_edge.errors import PromptTooLongError, RefusalEdgeError

if TYPE_CHECKING:
    from refusal_edge.llama import Llama

SUMMARY = "talk to a model in the terminal; thresholds can be changed on the way"
EXAMPLES = """  refusal-edge chat model.gguf
  refusal-edge chat model.gguf -t safety=0.3 --on-refuse message
  (inside: /set safety=off   /policy   /reset   /help   ctrl-D to leave)"""

HELP = """/set SLUG=VALUE   a number in [0, 1], "off" or "model"
/policy           the control values in force
/reset            forget the conversation
/help             this text; ctrl-D leaves"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--on-refuse",
        choices=["generate", "message"],
        default="generate",
        help="a refusal is written by the model (default), or is a fixed text and costs no decoding",
    )
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N")


def run(args: argparse.Namespace) -> int:
    llm = common.load(args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    messages: list[dict[str, Any]] = list(opening)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP)
    while (line := _read(interactive)) is not None:
        if line == "/reset":
            messages = list(opening)
        elif line.startswith("/"):
            _command(llm, line)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                messages.append(_answer(llm, messages, args))
            except RefusalEdgeError as error:  # one bad turn does not end the conversation
                messages.pop()
                too_long = isinstance(error, PromptTooLongError)
                terminal.warn(f"{error}; /reset forgets the conversation" if too_long else str(error))
    return 0


def _read(interactive: bool) -> str | None:
    try:
        return input("\n> " if interactive else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise common.not_text(error) from None


def _command(llm: Llama, line: str) -> None:
    name, _, rest = line.partition(" ")
    if name == "/set":
        try:
            common.set_thresholds(llm, rest.split())
        except RefusalEdgeError as error:
            terminal.warn(str(error))
    print(HELP if name not in ("/set", "/policy") else f"  {llm.policy.thresholds}")


def _answer(llm: Llama, messages: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Streams one answer to the terminal and returns it as a message for the history."""
    chunks: Iterable[Any] = llm.create_chat_completion(
        messages,
        stream=True,
        on_refuse=args.on_refuse,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
    )
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    for chunk in chunks:
        details = chunk.get("refusal_details")
        if details and "refusal_details" not in message:
            message["refusal_details"] = details
            if details["outcome"] == "refuse":
                score = details["scores"][details["category"]]
                print(f"[refused: {details['category']} {score:.2f}] ", end="")
        for key in ("content", "refusal"):
            if text := chunk["choices"][0]["delta"].get(key):
                message[key] = (message[key] or "") + text
                print(_visible(text), end="", flush=True)
    print()
    return message


def _visible(text: str) -> str:
    return "\n".join(map(terminal.printable, text.split("\n")))
