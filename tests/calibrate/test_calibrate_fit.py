from __future__ import annotations

import dataclasses
from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY, SLUGS

from refusal_edge.calibrate import PolicyFile, ScoreTable, Target, calibrate, odds, read_scores
from refusal_edge.calibrate.certificate import promises
from refusal_edge.calibrate.plan import plan
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.thresholds import order_statistic_rank
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError


def refused_benign(table: object, policy: object) -> int:
    return int(replay(table, policy).refused[~table.refuse].sum())


def test_pooled_np_refuses_as_many_benign_rows_as_its_rank_allows(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    result = calibrate(table, POLICY, Target(scope="pooled", alpha=0.05))
    (certificate,) = result.certificates
    n = int((~table.refuse).sum())
    assert (certificate.n, certificate.rank) == (n, order_statistic_rank(n, 0.05, 0.05))
    assert len(set(result.policy.thresholds.values())) == 1
    assert refused_benign(table, result.policy) == n - certificate.rank == certificate.refused
    assert result.measured.false_refusals.k == n - certificate.rank


def test_each_category_uses_its_own_benign_rows_and_a_third_of_delta(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=1200)
    result = calibrate(table, POLICY, Target(scope="category", alpha=0.05))
    q = 1 / (1 + np.exp(-odds.log_odds(table, POLICY)))
    for c, certificate in enumerate(result.certificates):
        own = ~table.refuse & (table.category == c)
        assert (certificate.rows, certificate.delta) == (SLUGS[c], pytest.approx(0.05 / 3))
        rank = order_statistic_rank(int(own.sum()), 0.05, 0.05 / 3)
        assert int((q[own, c] >= result.policy.thresholds[SLUGS[c]]).sum()) == own.sum() - rank
    assert not result.uncertified
    assert result.scope == "category"


def near_misses(tmp_path: Path) -> ScoreTable:
    """Benign rows near a category score on the next one: no category's own threshold sees them."""
    logits, refuse, category = made_scores.make_logits(900, 11)
    on = 5 + np.where(refuse, category, (category + 1) % len(SLUGS))
    logits[np.arange(900), on] = 9 + np.random.default_rng(0).normal(size=900)
    return read_scores(made_scores.write_scores(tmp_path / "near.jsonl", logits, refuse, category))


def test_as_it_stands_calibrate_bounds_being_refused_at_all(tmp_path: Path) -> None:
    """Where thresholds from each category's own rows, each promise kept, refuse nearly every benign row."""
    table = near_misses(tmp_path)
    assert Target().scope == "pooled"
    assert calibrate(table, POLICY, Target()).measured.false_refusals.value <= 0.05
    result = calibrate(table, POLICY, Target(scope="category"))
    assert all(certificate.refused <= 0.05 * certificate.n for certificate in result.certificates)
    assert result.measured.false_refusals.value > 0.9
    assert "of these benign rows are refused at all, more than alpha = 5%" in result.warnings[0]
    assert "scope category promises nothing about being refused at all" in result.warnings[0]


def test_a_promise_says_what_it_is_about(tmp_path: Path) -> None:
    def said(**target: object) -> list[str]:
        result = calibrate(table, POLICY, Target(**target))
        file = PolicyFile.of(result, table.header, "2025-01-01")
        return [str(p) for p in promises(file.calibration, file.certificates, file.policy)]

    table = near_misses(tmp_path)
    n = int((~table.refuse).sum())
    own = [int((~table.refuse & (table.category == c)).sum()) for c in range(3)]
    at_all = f"at most 6% of benign prompts are refused at all, with confidence 95%, from {n} benign rows"
    assert said(alpha=0.06) == [at_all]
    assert said(scope="union", alpha=0.06) == [
        at_all,
        *(
            f"at most 2% of benign prompts pass the threshold of {slug}, with confidence 98.33%, from {n} benign rows"
            for slug in SLUGS
        ),
    ]
    assert said(scope="category", method="crc") == [
        f"at most 5% of benign prompts near {slug} pass the threshold of {slug}, on average, from {k} benign rows"
        for slug, k in zip(SLUGS, own)
    ]
    assert said(method="f1") == []


def test_where_no_category_has_enough_rows_the_scope_is_pooled(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=120)
    result = calibrate(table, POLICY, Target(scope="category"))
    assert (result.scope, result.target.scope, len(result.certificates)) == ("pooled", "category", 1)
    assert {u.category for u in result.uncertified} == set(SLUGS)
    assert "too few benign rows of their own: safety" in result.warnings[-1]


def test_what_the_thresholds_catch_is_measured(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    result = calibrate(table, POLICY, Target())
    refused = replay(table, result.policy).refused
    tp, fp = int((refused & table.refuse).sum()), int((refused & ~table.refuse).sum())
    n = int(table.refuse.sum())
    assert (result.measured.caught.k, result.measured.caught.n) == (tp, n)
    assert (result.measured.false_refusals.k, result.measured.false_refusals.n) == (fp, 600 - n)
    assert result.measured.f1 == pytest.approx(2 * tp / (2 * tp + fp + n - tp))
    assert result.measured.always_refuse_f1 == pytest.approx(2 * n / (n + 600))


def test_union_bounds_being_refused_at_all(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=1500)
    result = calibrate(table, POLICY, Target(scope="union", alpha=0.06))
    assert [c.alpha for c in result.certificates] == pytest.approx([0.02] * 3)
    assert result.measured.false_refusals.value <= 0.06


def test_categories_with_too_few_rows_share_the_pooled_threshold() -> None:
    statements, weak = plan("np", "category", {"a": 200, "b": 30, "c": 0}, 230, 0.05, 0.05)
    assert [(s.categories, s.rows, s.delta) for s in statements] == [(("a",), "a", 0.025), (("b", "c"), None, 0.025)]
    assert [(u.category, u.n, u.needed) for u in weak] == [("b", 30, 80), ("c", 0, 80)]


def test_bonferroni_leaves_out_the_category_that_it_makes_too_small() -> None:
    """60 rows are enough alone (59), not for a second statement beside it (72)."""
    statements, weak = plan("np", "category", {"a": 60, "b": 0}, 60, 0.05, 0.05)
    assert [(s.categories, s.rows, s.delta) for s in statements] == [(("a", "b"), None, 0.05)]
    assert [(u.category, u.needed) for u in weak] == [("a", 72), ("b", 72)]


@pytest.mark.parametrize(("scope", "needed"), [("category", 59), ("pooled", 59), ("union", 244)])
def test_too_few_rows_for_any_promise_say_how_many_are_needed(scope: str, needed: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"from 58 benign rows: needs at least {needed}"):
        plan("np", scope, {"a": 58, "b": 0, "c": 0}, 58, 0.05, 0.05)


def test_the_fallbacks_of_the_policy_count_as_refusals(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    gated = POLICY.replace(min_control_mass=0.99)
    assert statistic_count(table, gated) > 30
    loose = calibrate(table, gated, Target(scope="pooled"))
    assert refused_benign(table, loose.policy) == loose.certificates[0].refused
    closed = gated.replace(fallback="refuse")
    for target in (Target(), Target("rate", rate=0.01)):
        with pytest.raises(InvalidRequestError, match="refused whatever the threshold"):
            calibrate(table, closed, target)
    mass = odds.control_mass(table, closed)[~table.refuse]
    closed = closed.replace(min_control_mass=float(np.quantile(mass, 0.1)))
    some = calibrate(table, closed, Target(alpha=0.2))
    assert some.measured.false_refusals.k == some.certificates[0].refused > (mass < closed.min_control_mass).sum() > 30


def statistic_count(table: object, policy: object) -> int:
    return int((odds.control_mass(table, policy)[~table.refuse] < policy.min_control_mass).sum())


def test_rule_sum_gets_its_own_threshold(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    result = calibrate(table, POLICY.replace(rule="sum"), Target(scope="pooled"))
    assert refused_benign(table, result.policy) == result.certificates[0].refused > 0
    with pytest.raises(InvalidPolicyError, match="one threshold"):
        calibrate(table, POLICY.replace(rule="sum"), Target(scope="category"))


@pytest.mark.parametrize("method", ["f1", "youden", "cost", "rate"])
def test_tradeoffs_find_the_best_threshold_of_all(tmp_path: Path, method: str) -> None:
    """Against brute force over every threshold on the storable grid near a score."""
    table = made_scores.make_table(tmp_path, n=300, ties=True)
    target = Target(method=method, scope="pooled", rate=0.25, cost_fp=3.0, cost_fn=1.0)
    score = odds.log_odds(table, POLICY).max(axis=1)

    def value(cut: float) -> float:
        hit = score > cut
        tp, fp = int((hit & table.refuse).sum()), int((hit & ~table.refuse).sum())
        fn = int(table.refuse.sum()) - tp
        return {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "youden": tp / table.refuse.sum() - fp / (~table.refuse).sum(),
            "cost": -(3.0 * fp + fn),
            "rate": hit.mean() if hit.mean() <= 0.25 else -1.0,
        }[method]

    result = calibrate(table, POLICY.replace(min_control_mass=0.0), target)
    best = max(value(cut) for cut in [*np.unique(score), -np.inf])
    assert value(result.certificates[0].cut) == pytest.approx(best)
    assert result.certificates[0].alpha is None
    threshold = result.policy.thresholds["safety"]
    assert value(float(odds.logit(threshold))) == pytest.approx(best)


def reached(method: str, refused: np.ndarray, wanted: np.ndarray, target: Target) -> float:
    tp, fp, n = int((refused & wanted).sum()), int((refused & ~wanted).sum()), int(wanted.sum())
    if method == "rate":
        assert refused.mean() <= target.rate
    return {
        "f1": 2 * tp / (tp + fp + n),
        "youden": tp / n - fp / (~wanted).sum(),
        "cost": -(target.cost_fp * fp + target.cost_fn * (n - tp)),
        "rate": refused.mean(),
    }[method]


@pytest.mark.parametrize("method", ["f1", "youden", "cost", "rate"])
@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_for_each_category_are_judged_together(tmp_path: Path, method: str, ties: bool) -> None:
    """They never do worse than one for all, and "rate" never passes its rate: what each does alone adds up."""
    logits, refuse, category = made_scores.make_logits(500, 8, ties=ties)
    logits[:, 6] += 3  # humanizing is over-scored: one threshold fits badly
    table = read_scores(made_scores.write_scores(tmp_path / "s.jsonl", logits, refuse, category))
    values = {}
    for scope in ("pooled", "category"):
        target = Target(method=method, scope=scope, rate=0.5, cost_fp=2.0)
        policy = calibrate(table, POLICY.replace(min_control_mass=0.0), target).policy
        values[scope] = reached(method, replay(table, policy).refused, table.refuse, target)
    assert values["category"] >= values["pooled"]
    if method != "rate":
        assert values["category"] > values["pooled"]


def test_a_rate_counts_rows_of_categories_that_are_off(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    policy = calibrate(table, POLICY.replace(humanizing="off"), Target("rate", rate=0.3)).policy
    assert 0.28 < replay(table, policy).refused.mean() <= 0.3


def test_scores_tied_at_a_threshold_of_six_decimals_do_not_pass_it(tmp_path: Path) -> None:
    """All control logits equal: every score is 1/4, which log-odds of log(1/3) meet only up to the last bit."""
    logits = np.zeros((100, made_scores.N_VOCAB), np.float32)
    logits[:, [5, 6, 7, 9]] = np.linspace(5, 7, 100, dtype=np.float32)[:, None]
    path = made_scores.write_scores(tmp_path / "s.jsonl", logits, np.zeros(100, bool), np.zeros(100, int))
    result = calibrate(read_scores(path), POLICY, Target())
    assert result.measured.false_refusals.k == result.certificates[0].refused == 0


def test_scaling_improves_held_out_quality_and_is_deterministic(tmp_path: Path) -> None:
    logits, refuse, category = made_scores.make_logits(1500, 4)
    logits[:, 5] += 2.0  # safety is over-scored
    table = read_scores(made_scores.write_scores(tmp_path / "s.jsonl", logits * 3, refuse, category))
    target = Target(scope="pooled", temperature=True, bias=True, seed=7)
    a, b = (calibrate(table, POLICY, target) for _ in range(2))
    assert a == b
    assert a.policy != calibrate(table, POLICY, Target(scope="pooled", temperature=True, bias=True, seed=8)).policy
    fitted = a.fitted
    assert 2 < fitted["temperature"]["value"] < 8
    assert a.policy.temperature == fitted["temperature"]["value"]
    assert fitted["bias"]["value"]["safety"] < -1
    assert fitted["bias"]["nll"] < fitted["temperature"]["nll"] < fitted["before"]["nll"]
    assert fitted["bias"]["brier"] < fitted["before"]["brier"]
    thresholds = a.policy.thresholds
    assert thresholds["safety"] > thresholds["humanizing"]
    assert any("control mass" in w for w in a.warnings)
    assert a.certificates[0].n == pytest.approx(0.7 * (~refuse).sum(), abs=1)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_fit_fraction_that_leaves_no_rows_is_an_error(tmp_path: Path, fraction: float) -> None:
    table = made_scores.make_table(tmp_path)
    with pytest.raises(
        InvalidRequestError, match=r"fit_fraction 0\.\d+: expected at least one of the benign rows to fit"
    ):
        calibrate(table, POLICY, Target(temperature=True, fit_fraction=fraction))


def test_bias_shifts_thresholds_but_keeps_the_promise(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=900)
    result = calibrate(table, POLICY, Target(scope="pooled", bias=True))
    assert len(set(result.policy.thresholds.values())) == 3
    cut, bias = result.certificates[0].cut, result.fitted["bias"]["value"]
    for slug, threshold in result.policy.thresholds.items():
        assert odds.logit(threshold) == pytest.approx(cut - bias[slug], abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha": 0.0}, r"alpha: expected a number in \[1e-06, 0.999999\], got 0.0"),
        ({"alpha": 1e-300}, r"alpha: expected a number in \[1e-06, 0.999999\], got 1e-300"),
        ({"delta": 1.0}, "delta"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"seed": 0.5}, "seed: expected a whole number >= 0, got 0.5"),
        ({"rate": 1.0}, r"rate: expected a number in \(0, 1\), got 1.0"),
        ({"method": "best"}, "method: expected one of np, ltt, crc, f1, youden, rate, cost, got 'best'"),
        ({"scope": "both"}, "scope: expected one of category, pooled, union"),
        ({"method": "f1", "scope": "union"}, "scope union: expected method np, ltt or crc"),
        ({"cost_fp": -1.0}, "cost_fp: expected a number >= 0"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_a_target_out_of_range_is_an_error(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        Target(**changes)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (POLICY.replace(rule="paper-category"), "rule: calibration needs"),
        (POLICY.replace(**dict.fromkeys(SLUGS, "off")), 'every category is "off"'),
        (POLICY.replace(respond_token_id=99), "not those of the scores"),
        (POLICY.replace(score="vocab", temperature=2.0), "needs new scores"),
    ],
)
def test_a_policy_that_cannot_be_calibrated_is_an_error(tmp_path: Path, policy: object, reason: str) -> None:
    with pytest.raises(InvalidPolicyError, match=reason):
        calibrate(made_scores.make_table(tmp_path), policy, Target())


def test_a_category_that_is_off_stays_off(tmp_path: Path) -> None:
    result = calibrate(made_scores.make_table(tmp_path, n=600), POLICY.replace(humanizing="off"), Target())
    assert result.policy.thresholds["humanizing"] == "off"


def test_copies_of_benign_rows_are_named(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path)
    assert not any("copies" in warning for warning in calibrate(table, POLICY, Target()).warnings)
    twice = table.select(np.repeat(np.arange(len(table)), 2))
    n = int((~table.refuse).sum())
    (warning,) = (w for w in calibrate(twice, POLICY, Target()).warnings if "copies" in w)
    assert warning.startswith(f"{n} of {2 * n} benign rows are copies of another")


def test_scores_of_exactly_zero_pass_no_threshold(tmp_path: Path) -> None:
    """A cut at minus infinity: all benign rows score 0, and none of them may be refused."""
    table = made_scores.make_table(tmp_path)
    logits = table.logits.copy()
    logits[~table.refuse, :-1] = -np.inf
    result = calibrate(dataclasses.replace(table, logits=logits), POLICY, Target())
    assert result.measured.false_refusals.k == 0
    assert result.measured.caught.k > 0
