"""The public surface, and what is inherited from llama-cpp-python."""

from __future__ import annotations

import gc
import inspect
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, counted_evals, held, raw_prompt, text_of, user

import refusal_edge
from refusal_edge import Llama


def test_all_is_true() -> None:
    assert sorted(refusal_edge.__all__) == refusal_edge.__all__
    for name in refusal_edge.__all__:
        assert getattr(refusal_edge, name).__module__.startswith("refusal_edge")
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        refusal_edge.Lama  # noqa: B018


def test_import_is_light() -> None:
    """`Llama` loads llama.cpp when it is first asked for; `import refusal_edge` does not."""
    program = "import sys, refusal_edge; print(*(m in sys.modules for m in ('llama_cpp', 'gguf', 'jinja2', 'torch')))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["False"] * 4


def test_importing_llama_adds_little(tmp_path: Path) -> None:
    program = "import sys; import {}; print(*(name.split('.')[0] for name in sys.modules))"
    ours, theirs = (
        set(subprocess.check_output([sys.executable, "-c", program.format(name)], text=True).split())
        for name in ("refusal_edge.llama", "llama_cpp")
    )
    assert ours - theirs <= {"refusal_edge", "_cffi_backend", "mmap"}


def test_every_method_and_argument_of_upstream_is_there() -> None:
    for name, theirs in inspect.getmembers(llama_cpp.Llama, inspect.isfunction):
        ours = getattr(Llama, name)
        if ours is theirs or name.startswith("__"):
            continue
        parameters = inspect.signature(ours).parameters.values()
        takes_all = {p.kind for p in parameters} >= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        assert takes_all or [p.name for p in parameters] == list(inspect.signature(theirs).parameters), name


def test_positional_arguments_mean_the_same(llm: Llama) -> None:
    # create_completion(prompt, suffix, max_tokens, temperature, ...)
    by_place: Any = llm.create_completion("hello", None, 4, 0.0)
    by_name: Any = llm.create_completion("hello", max_tokens=4, temperature=0.0)
    assert by_place["choices"] == by_name["choices"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_tokens'"):
        llm.create_chat_completion(user("hi"), n_tokens=3)


def test_pickle_keeps_the_policy(llm: Llama) -> None:
    llm.policy, before = llm.policy.replace(**REFUSE), llm.policy
    try:
        copy = pickle.loads(pickle.dumps(llm))
    finally:
        llm.policy = before
    assert copy.policy.thresholds["safety"] == 0.0
    assert copy.decide(user(BENIGN)).category == "safety"
    copy.close()


def test_policy_of_the_constructor(toy_path: Path, llm: Llama) -> None:
    strict = Llama(toy_path, n_ctx=64, policy=llm.policy.replace(**REFUSE), verbose=False)
    assert strict.decide(user(BENIGN)).category == "safety"
    strict.close()


def test_an_instance_is_freed_without_the_garbage_collector(toy_path: Path) -> None:
    gc.disable()
    try:
        model = Llama(toy_path, n_ctx=64, verbose=False)
        model.create_chat_completion(user("hi"), max_tokens=3)
        model.decide(user("hi"))
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_close_twice(toy_path: Path) -> None:
    model = Llama(toy_path, n_ctx=64, verbose=False)
    model.create_chat_completion(user("hi"), max_tokens=3)
    model.close()
    model.close()


def test_cache(toy_path: Path) -> None:
    """`set_cache` saves states that a later decision loads instead of reading the prompt again."""
    llm = Llama(toy_path, n_ctx=256, verbose=False)
    llm.set_cache(llama_cpp.LlamaRAMCache())
    first: Any = llm.create_chat_completion(user("one two three"), max_tokens=4, temperature=0.0)
    llm.create_chat_completion(user("quite another thing"), max_tokens=4)
    with counted_evals(llm) as sizes:
        again: Any = llm.create_chat_completion(user("one two three"), max_tokens=4, temperature=0.0)
    assert text_of(again) == text_of(first)
    assert sizes[0] < 5
    llm.close()


def test_draft_model(toy_path: Path) -> None:
    """Speculative decoding writes the same greedy text."""
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    plain = Llama(toy_path, n_ctx=256, verbose=False)
    fast = Llama(toy_path, n_ctx=256, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=3), verbose=False)
    arguments: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}
    for text, policy in ((BENIGN, {}), (HARMFUL, {}), ("ab ab ab ab", ALL_OFF)):
        expected = plain.create_chat_completion(user(text), policy=policy, **arguments)
        assert text_of(fast.create_chat_completion(user(text), policy=policy, **arguments)) == text_of(expected)
    plain.close()
    fast.close()


def test_embeddings_still_work(toy_path: Path) -> None:
    llm = Llama(toy_path, n_ctx=64, embedding=True, verbose=False)
    stock = llama_cpp.Llama(str(toy_path), n_ctx=64, embedding=True, verbose=False)
    np.testing.assert_allclose(llm.embed("hello"), stock.embed("hello"), rtol=1e-5)
    llm.close()
    stock.close()


def test_eval_and_sample_by_hand(llm: Llama) -> None:
    """The lowest level decides nothing, but gives no control token either."""
    ids = llama_cpp.Llama.tokenize(llm, raw_prompt(HARMFUL).encode(), False, True)
    llm.reset()
    llm._sampler = None
    llm.eval(ids)
    tokens = [llm.sample(temp=1.0) for _ in range(20)]
    assert set(tokens).isdisjoint(llm.policy.control_token_ids)
    assert held(llm) == ids


def test_detokenize(any_llm: Llama) -> None:
    """Control tokens show with `special=True` alone, whole, as other special tokens do."""
    respond, safety = any_llm.policy.respond_token_id, any_llm.policy.category("safety").token_id
    word = any_llm.tokenize(b"hello", False, False)
    assert any_llm.detokenize([respond]) == b""
    assert any_llm.detokenize([*word, safety, *word]) == b"hellohello"
    assert any_llm.detokenize([respond], special=True) == b" [respond]"
    spelled = any_llm.detokenize([*word, safety, *word], special=True)
    assert spelled == b"hello [Requests with safety concerns]hello"


def test_save_and_load_state(llm: Llama) -> None:
    llm.decide(user(HARMFUL))
    state = llm.save_state()
    llm.decide(user(BENIGN))
    llm.load_state(state)
    assert llm.decide(user(HARMFUL)).category == "safety"


def test_memory_does_not_grow_with_requests(llm: Llama) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()

    def run(times: int) -> int:
        for i in range(times):
            llm.create_chat_completion(user("hi"), max_tokens=3, seed=i)
        return int(process.memory_info().rss)

    gc.disable()  # what only the collector frees would pile up
    try:
        before = run(20)
        assert run(150) - before < 2**22
    finally:
        gc.enable()
