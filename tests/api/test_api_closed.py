"""After `close()` every use is an error of ours. In a process of its own: llama.cpp would follow freed pointers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, threading, time
from functools import partial
from refusal_edge import Llama
from refusal_edge.errors import StateError

hi = [{"role": "user", "content": "hi"}]


def load():
    return Llama(sys.argv[1], n_ctx=128, verbose=False)


llm = load()
llm.decide(hi)
llm.decide_batch([hi])
state = llm.save_state()
prompt = llm.tokenize(b"hello")
open_streams = {}
for name, start in {
    "chat": lambda llm: llm.create_chat_completion(hi, stream=True),
    "completion": lambda llm: llm.create_completion("hello", stream=True),
    "generate": lambda llm: llm.generate(prompt),
}.items():
    begun = load()
    open_streams[name] = start(begun)
    next(open_streams[name])
    begun.close()
llm.close()
llm.close()
uses = {
    "decide, remembered": lambda: llm.decide(hi),
    "decide": lambda: llm.decide([{"role": "user", "content": "new"}]),
    "decide_batch": lambda: llm.decide_batch([hi]),
    "create_chat_completion": lambda: llm.create_chat_completion(hi),
    "create_chat_completion, stream": lambda: next(llm.create_chat_completion(hi, stream=True)),
    "create_completion": lambda: llm.create_completion("hello"),
    "create_completion, ids": lambda: llm.create_completion(prompt),
    "create_completion, stream": lambda: next(llm.create_completion("hello", stream=True)),
    "generate": lambda: next(llm.generate(prompt)),
    "eval": lambda: llm.eval([1]),
    "sample": lambda: llm.sample(),
    "embed": lambda: llm.embed("hello"),
    "tokenize": lambda: llm.tokenize(b"hello"),
    "detokenize": lambda: llm.detokenize([5]),
    "tokenizer": lambda: llm.tokenizer().encode("hello"),
    "n_ctx": lambda: llm.n_ctx(),
    "n_vocab": lambda: llm.n_vocab(),
    "n_embd": lambda: llm.n_embd(),
    "token_eos": lambda: llm.token_eos(),
    "pooling_type": lambda: llm.pooling_type(),
    "ctx": lambda: llm.ctx,
    "model": lambda: llm.model,
    "save_state": lambda: llm.save_state(),
    "load_state": lambda: llm.load_state(state),
    **{f"open stream of {name}": partial(list, stream) for name, stream in open_streams.items()},
}
for name, use in uses.items():
    try:
        print(name, "->", use())
    except StateError as error:
        assert "closed: load the model again" in str(error), error
print(len(uses), "uses")

busy = load()
thread = threading.Thread(target=lambda: busy.create_chat_completion(hi, max_tokens=90, temperature=0.0))
thread.start()
time.sleep(0.01)
busy.close()
thread.join()
del llm, busy, open_streams, uses
print("done")
"""


def test_use_after_close(toy_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, toy_path], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.splitlines()) == (0, ["27 uses", "done"]), run.stderr[-2000:]
