from __future__ import annotations

from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY, SLUGS

from refusal_edge.calibrate import Target, calibrate, odds, read_scores
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
    assert result.refused_benign.k == n - certificate.rank


def test_each_category_uses_its_own_benign_rows_and_a_third_of_delta(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=1200)
    result = calibrate(table, POLICY, Target(alpha=0.05))
    q = 1 / (1 + np.exp(-odds.log_odds(table, POLICY)))
    for c, certificate in enumerate(result.certificates):
        own = ~table.refuse & (table.category == c)
        assert (certificate.rows, certificate.delta) == (SLUGS[c], pytest.approx(0.05 / 3))
        rank = order_statistic_rank(int(own.sum()), 0.05, 0.05 / 3)
        assert int((q[own, c] >= result.policy.thresholds[SLUGS[c]]).sum()) == own.sum() - rank
    assert not result.uncertified


def test_union_bounds_being_refused_at_all(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=1500)
    result = calibrate(table, POLICY, Target(scope="union", alpha=0.06))
    assert [c.alpha for c in result.certificates] == pytest.approx([0.02] * 3)
    assert result.refused_benign.value <= 0.06


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
    with pytest.raises(InvalidRequestError, match="refused whatever the threshold"):
        calibrate(table, gated.replace(fallback="refuse"), Target(scope="pooled"))


def statistic_count(table: object, policy: object) -> int:
    return int((odds.control_mass(table, policy)[~table.refuse] < policy.min_control_mass).sum())


def test_rule_sum_gets_its_own_threshold(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path, n=600)
    result = calibrate(table, POLICY.replace(rule="sum"), Target(scope="pooled"))
    assert refused_benign(table, result.policy) == result.certificates[0].refused > 0
    with pytest.raises(InvalidPolicyError, match="one threshold"):
        calibrate(table, POLICY.replace(rule="sum"), Target())


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
        ({"alpha": 0.0}, r"alpha: expected a number in \(0, 1\), got 0.0"),
        ({"delta": 1.0}, "delta"),
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
