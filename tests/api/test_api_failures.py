"""DESIGN 10, point 7, and files that are no good: one clear error, never a silent "respond"."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import toy_model
from helpers import ALL_OFF, BENIGN, raw_prompt, user
from toy_model import TEMPLATE, MakeToy

from refusal_edge import Llama, RefusalEdgeError, reference
from refusal_edge.errors import FormatError, InvalidLogitsError, InvalidRequestError, MetadataError
from refusal_edge.pins import template_sha256
from refusal_edge.sampling import decision_chain
from refusal_edge.turn import Turn


@pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_model_that_computes_nan(make_toy: MakeToy, poison: float) -> None:
    llm = Llama(make_toy(poison=poison), n_ctx=128, verbose=False)
    calls: list[Any] = [
        lambda: llm.decide(user(BENIGN)),
        lambda: llm.create_chat_completion(user(BENIGN), max_tokens=2),
        lambda: llm.create_chat_completion(user(BENIGN), max_tokens=2, stream=True),
        lambda: llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, on_refuse="message"),
        lambda: llm.create_completion(raw_prompt(BENIGN), max_tokens=2),
        lambda: list(llm.create_completion(raw_prompt(BENIGN), max_tokens=2, stream=True)),  # type: ignore
        lambda: next(llm.generate([1, 2, 3])),
    ]
    for call in calls:
        with pytest.raises(InvalidLogitsError, match="NaN"):
            call()
    llm.close()


def test_a_sampler_that_was_never_applied(llm: Llama) -> None:
    from refusal_edge import _native
    from refusal_edge.sampling import _address

    chain = decision_chain(llm.policy, llm.n_vocab())
    with pytest.raises(RefusalEdgeError, match="never applied"):
        _native.sampler_decision(_address(chain.sampler), llm.policy)
    chain.close()


def test_an_answer_without_a_decision_cannot_be_told(llm: Llama) -> None:
    with pytest.raises(RefusalEdgeError, match="no decision was taken"):
        Turn(llm.policy).details()


def test_upstream_that_bypasses_generate_is_found_out(llm: Llama) -> None:
    """Were llama-cpp-python to sample by another way, there would be an error and no answer."""

    def bypass(**_: Any) -> Any:
        yield {"choices": [{"text": "x", "logprobs": None, "finish_reason": "stop", "index": 0}], "usage": {}}

    llm._create_completion = bypass
    try:
        with pytest.raises(RefusalEdgeError, match="no decision was taken"):
            llm.create_completion("hello")
    finally:
        del llm._create_completion


def test_a_file_without_our_keys(make_toy: MakeToy) -> None:
    with pytest.raises(MetadataError, match="refusal-edge annotate"):
        Llama(make_toy(stamp=None), verbose=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "expected 1, got 9"),
        ({"respond_token_id": 10**6}, "out of range"),
        ({"respond_token_id": 312}, "used for both"),
        ({"rule": "mood"}, "rule"),
    ],
)
def test_a_file_with_broken_keys(make_toy: MakeToy, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        Llama(make_toy(stamp=changes), verbose=False)


def test_files_that_llama_cpp_cannot_load(tmp_path: Path, toy_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        Llama(tmp_path / "missing.gguf", verbose=False)
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "truncated": toy_path.read_bytes()[:5000],
        "short": toy_path.read_bytes()[:-1000],
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(FormatError, match=rf"{name}\.gguf: "):
            Llama(path, verbose=False)


def test_an_architecture_that_llama_cpp_does_not_know(tmp_path: Path, toy_path: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(
        toy_path.read_bytes().replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0lamas",
        )
    )
    with pytest.raises(FormatError, match=r"llama\.cpp cannot load it"):
        Llama(path, verbose=False)


def test_a_model_loaded_for_something_else(toy_path: Path) -> None:
    vocabulary = Llama(toy_path, vocab_only=True, verbose=False)
    with pytest.raises(InvalidRequestError, match="vocab_only"):
        vocabulary.decide(user(BENIGN))
    with pytest.raises(InvalidRequestError, match="vocab_only"):
        vocabulary.create_completion("hello")
    assert vocabulary.tokenize(b"hello")
    vocabulary.close()


def test_a_failed_load_leaves_no_noise(tmp_path: Path) -> None:
    """`__del__` of a half-made instance must not complain."""
    with pytest.MonkeyPatch.context() as patch:
        complaints: list[Any] = []
        patch.setattr("sys.unraisablehook", complaints.append)
        with pytest.raises(FormatError):
            Llama(tmp_path / "missing.gguf")
    assert complaints == []


# ---- calibration pins ------------------------------------------------------------------------------------------------

CALIBRATION: dict[str, Any] = {
    "method": "np",
    "alpha": 0.05,
    "delta": 0.05,
    "n": 400,
    "dataset_sha256": "0" * 64,
    "template_sha256": template_sha256(TEMPLATE),
    "file_type": 0,
    "created": "2026-01-01",
}


def loaded(make_toy: MakeToy, **changes: Any) -> tuple[Llama, list[str]]:
    thresholds = {"safety": 0.3}
    pins = {**CALIBRATION, "policy_id": toy_model.stamp(thresholds=thresholds).policy.policy_id, **changes}
    stamp = {"calibration": pins, "thresholds": thresholds}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llm = Llama(make_toy(stamp=stamp), n_ctx=128, verbose=False)
        llm.decide(user("a"))
        llm.decide(user("b"))
    return llm, [str(w.message) for w in caught]


def test_pins_that_hold(make_toy: MakeToy) -> None:
    llm, messages = loaded(make_toy)
    assert messages == []
    assert llm.decide(user(BENIGN)).calibrated is True
    assert llm.decide(user(BENIGN), policy={"safety": 0.3}).calibrated is True
    assert llm.decide(user(BENIGN), policy={"safety": 0.31}).calibrated is False
    reply: Any = llm.create_chat_completion(user(BENIGN), max_tokens=2)
    assert reply["refusal_details"]["calibrated"] is True
    llm.close()


@pytest.mark.parametrize("changes", [{"file_type": 7}, {"template_sha256": "1" * 64}])
def test_pins_that_do_not(make_toy: MakeToy, changes: dict[str, Any]) -> None:
    llm, messages = loaded(make_toy, **changes)
    assert len(messages) == 1
    assert f"not calibrated for this file: {next(iter(changes))} is" in messages[0]
    assert llm.decide(user(BENIGN)).calibrated is False
    llm.close()


def test_an_uncalibrated_file(llm: Llama) -> None:
    assert llm.decide(user(BENIGN)).calibrated is False


# ---- decisions at the edges of the context ---------------------------------------------------------------------------


def test_decision_equals_the_reference_whatever_was_in_the_context_before(llm: Llama) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        llm.eval(rng.integers(0, llm.n_vocab(), size=3).tolist()) if llm.n_tokens < 400 else llm.reset()
        decision = llm.decide(user("".join(rng.choice(list("abc xyz"), size=12))))
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),))
        assert decision.scores == pytest.approx(reference.decide(row, llm.policy).scores, abs=1e-6)


def test_a_decode_that_fails_is_an_error_and_the_next_request_works(llm: Llama) -> None:
    with pytest.raises(InvalidRequestError):
        llm.decide(user("a b " * 600))
    assert llm.decide(user(BENIGN)).outcome == "respond"
