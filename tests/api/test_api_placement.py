"""`placement="backend"`: the same decisions and answers as on the CPU, or the CPU and a warning; never no decision.

On a GPU: REFUSAL_EDGE_GPU_LAYERS=99 with a llama-cpp-python that was built for it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from gpu import GPU_LAYERS, SHAPE_TOLERANCE
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, counted_evals, raw_prompt, user
from toy_model import MakeToy

from refusal_edge import Decision, Llama, RefusalEdgeError, demo
from refusal_edge.convert import convert
from refusal_edge.errors import InvalidLogitsError, InvalidRequestError
from refusal_edge.placement import decide_on_backend

load = partial(Llama, n_gpu_layers=GPU_LAYERS)
QUESTIONS = [BENIGN, HARMFUL, "Hello!", "What is 2 + 2?", *demo.PROMPTS]
CHANGES: list[dict[str, Any]] = [
    {},
    ALL_OFF,
    REFUSE,
    {"safety": 0.05, "humanizing": "off"},
    {"score": "vocab", "temperature": 2.0, "safety": 0.01},
    {"rule": "sum", "sum_threshold": 0.3},
    {"min_control_mass": 1.0, "fallback": "refuse"},
    {"min_control_mass": 1.0},
]


@pytest.fixture(scope="module", params=["toy", "demo"])
def path(request: pytest.FixtureRequest, toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "toy":
        return toy_path
    if not demo.checkpoint().is_dir():
        pytest.skip("the demo checkpoint is not there")
    made = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo.checkpoint(), made, outtype="f32")
    return made


@pytest.fixture(scope="module")
def cpu(path: Path) -> Iterator[Llama]:
    llm = load(path, n_ctx=512, verbose=False)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def backend(path: Path) -> Iterator[Llama]:
    llm = load(path, n_ctx=512, verbose=False, placement="backend")
    yield llm
    llm.close()


def assert_same(got: Decision, expected: Decision, tolerance: float = 1e-5) -> None:
    for name in ("outcome", "category", "token_id", "model_token_id", "policy_id", "thresholds"):
        assert getattr(got, name) == getattr(expected, name), name
    assert got.scores == pytest.approx(expected.scores, abs=tolerance)
    assert got.respond_score == pytest.approx(expected.respond_score, abs=tolerance)
    assert got.control_mass == pytest.approx(expected.control_mass, abs=tolerance)


def chunks(llm: Llama, text: str, **arguments: Any) -> list[Any]:
    """The deltas and finish reasons of a streamed greedy answer."""
    stream: Any = llm.create_chat_completion(user(text), max_tokens=16, temperature=0.0, stream=True, **arguments)
    return [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in stream]


def without_details(deltas: list[Any]) -> list[Any]:
    return [({k: v for k, v in delta.items() if k != "refusal_details"}, reason) for delta, reason in deltas]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_decisions_are_those_of_the_cpu(cpu: Llama, backend: Llama, changes: dict[str, Any]) -> None:
    for question in QUESTIONS:
        cpu._boundaries.clear()
        assert_same(backend.decide(user(question), changes), cpu.decide(user(question), changes))
    assert backend.placement == "backend"


def test_the_decision_is_read_from_the_graph(backend: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the CPU's chain nor the remembered logits have a part in it."""
    monkeypatch.setattr(backend._decider, "decide", None)
    monkeypatch.setattr(backend._boundaries, "put", None)
    for policy in (ALL_OFF, REFUSE):
        assert backend.decide(user(HARMFUL), policy).category == ("safety" if policy is REFUSE else None)


@pytest.mark.parametrize("question", [BENIGN, HARMFUL])
@pytest.mark.parametrize("policy", [{}, ALL_OFF, REFUSE, {"min_control_mass": 1.0}], ids=str)
def test_answers_are_those_of_the_cpu(cpu: Llama, backend: Llama, question: str, policy: dict[str, Any]) -> None:
    for on_refuse in ("generate", "message"):
        arguments = {"policy": policy, "on_refuse": on_refuse}
        ours, theirs = chunks(backend, question, **arguments), chunks(cpu, question, **arguments)
        assert without_details(ours) == without_details(theirs)
        assert len(ours) > 1


def test_completions_are_those_of_the_cpu(cpu: Llama, backend: Llama) -> None:
    """Decided inside `generate`; with `min_control_mass` the first token is sampled from logits that must be raw."""
    for policy in (ALL_OFF, {"min_control_mass": 1.0}):
        texts = []
        for llm in (cpu, backend):
            response = llm.create_completion(raw_prompt(BENIGN), policy=policy, max_tokens=12, temperature=0.0)
            texts.append(response["choices"][0]["text"])
        assert texts[0] == texts[1] != ""


def test_sampling_after_a_decision_sees_raw_logits(path: Path) -> None:
    tokens = []
    for placement in ("cpu", "backend"):
        llm = load(path, n_ctx=512, verbose=False, placement=placement)
        for question in (HARMFUL, BENIGN):  # the logits of the first would be there still
            llm.decide(user(question))
            tokens.append((question, llm.sample(temp=0.0)))
        llm.close()
    assert tokens[:2] == tokens[2:]


def test_asking_again_decodes_one_token(backend: Llama) -> None:
    backend.decide(user(BENIGN))
    with counted_evals(backend) as sizes:
        backend.decide(user(BENIGN), REFUSE)
    assert sizes == [1]


def test_a_long_prompt_in_several_batches(path: Path) -> None:
    text = "How do I pick a lock? " * 8
    decisions = []
    for placement in ("cpu", "backend"):
        llm = load(path, n_ctx=512, n_batch=16, n_ubatch=8, verbose=False, placement=placement)
        decisions.append(llm.decide(user(text)))
        llm.close()
    assert_same(decisions[1], decisions[0])


def test_auto_is_the_cpu(toy_path: Path) -> None:
    for placement in ("auto", "cpu"):
        llm = load(toy_path, n_ctx=128, verbose=False, placement=placement)
        assert llm.placement == "cpu"
        llm.close()


@pytest.mark.parametrize("placement", ["gpu", "", None, 3, "CPU"])
def test_other_placements(toy_path: Path, placement: Any) -> None:
    with pytest.raises(InvalidRequestError, match="placement: expected one of cpu, backend, auto, got"):
        load(toy_path, verbose=False, placement=placement)


def test_pickling_keeps_the_placement(toy_path: Path) -> None:
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.placement == "backend"
    for opened in (llm, copy):
        opened.close()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")
def test_a_model_that_computes_nan(make_toy: MakeToy, poison: float) -> None:
    llm = load(make_toy(poison=poison), n_ctx=128, verbose=False, placement="backend")
    for _ in range(2):
        with pytest.raises(InvalidLogitsError):
            llm.decide(user(BENIGN))
        with pytest.raises(InvalidLogitsError):
            llm.create_chat_completion(user(BENIGN), max_tokens=2)
        with pytest.raises(InvalidLogitsError):
            llm.create_completion(raw_prompt(BENIGN), max_tokens=2)
    assert llm.placement == "backend"
    llm.close()


def test_a_graph_without_our_sampler_is_no_decision(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone attaches another chain in between: its token must not pass for a decision, nor be kept attached."""
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    expected = llm.decide(user(BENIGN))
    other = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    llama_cpp.llama_sampler_chain_add(other, llama_cpp.llama_sampler_init_greedy())
    prefill = llm._prefill

    def hijacked(ids: list[int]) -> None:
        assert llama_cpp.llama_set_sampler(llm.ctx, 0, other)
        prefill(ids)

    monkeypatch.setattr(llm, "_prefill", hijacked)
    with pytest.raises(RefusalEdgeError, match="no decision"):
        llm.decide(user(BENIGN))
    monkeypatch.undo()
    assert_same(llm.decide(user(BENIGN)), expected, max(SHAPE_TOLERANCE, 1e-5))
    llm.close()
    llama_cpp.llama_sampler_free(other)


def test_nothing_decoded_is_no_decision(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    llm.decide(user(BENIGN), ALL_OFF)
    monkeypatch.setattr(llm, "_prefill", lambda ids: None)
    with pytest.raises(RefusalEdgeError):
        llm.decide(user(HARMFUL))
    llm.close()


def falls_back(llm: Llama, match: str, **policy: Any) -> Decision:
    with pytest.warns(UserWarning, match=match):
        decision = llm.decide(user(HARMFUL), policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert llm.decide(user(HARMFUL), policy) == decision
    return decision


def test_a_library_without_backend_samplers(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    monkeypatch.delattr(llama_cpp, "llama_set_sampler")
    assert falls_back(llm, "the CPU decides").category == "safety"
    assert llm.placement == "cpu"
    llm.close()


def test_a_device_that_lacks_an_operation(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp tells so by the sampler's name; the chain was attached by then, and is no longer."""
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    monkeypatch.setattr("refusal_edge.placement._IN_GRAPH", b"another name")
    assert falls_back(llm, "the CPU decides").category == "safety"
    assert llm.placement == "cpu"
    llm.close()


def test_paper_category_is_decided_by_the_cpu(toy_path: Path) -> None:
    llm = load(toy_path, n_ctx=128, verbose=False, placement="backend")
    assert falls_back(llm, "paper-category", rule="paper-category", safety=0.0).category == "safety"
    assert llm.placement == "backend"
    assert llm.decide(user(HARMFUL)).category == "safety"
    llm.close()


def test_logits_of_every_token_need_the_cpu(toy_path: Path) -> None:
    with pytest.warns(UserWarning, match="logits_all"):
        llm = load(toy_path, n_ctx=128, verbose=False, placement="backend", logits_all=True)
    assert llm.placement == "cpu"
    assert llm.decide(user(HARMFUL)).category == "safety"
    llm.close()


def test_the_rule_is_attached_only_while_it_decides(toy_path: Path) -> None:
    llm = load(toy_path, n_ctx=128, verbose=False)
    llm.eval([1, 2, 3])
    before = llm.sample(temp=0.0)

    def fail() -> None:
        raise RuntimeError("decode failed")

    with pytest.raises(RuntimeError, match="decode failed"):
        decide_on_backend(llm._ctx, fail, llm.policy, llm.n_vocab(), calibrated=False)
    llm.reset()
    llm.eval([1, 2, 3])
    assert llm.sample(temp=0.0) == before
    llm.close()
