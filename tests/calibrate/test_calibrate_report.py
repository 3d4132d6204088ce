"""The report: what it counts, what it puts a target beside, and its pictures as they are drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import struct
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY, SLUGS

from refusal_edge import cli
from refusal_edge.calibrate import PolicyFile, ScoreTable, Target, calibrate, read_policy_file, read_scores
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.row_overlap import KEPT, shared_rows, sketch
from refusal_edge.errors import InvalidRequestError
from refusal_edge.policy import Category, Policy
from refusal_edge.report import Facts, collect, figures, page, warnings_of


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert cli.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def calibrated(table: ScoreTable, policy: Policy = POLICY, **target: object) -> PolicyFile:
    return PolicyFile.of(calibrate(table, policy, Target(**target)), table.header, "2025-01-01")


def rows(folder: Path, n: int = 400, seed: int = 1, **changes: object) -> ScoreTable:
    """Made rows with hashes as different as real ones."""
    table = made_scores.make_table(folder, n, seed, **changes)
    return dataclasses.replace(table, sha256=[hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(n)])


def other_rows(folder: Path, n: int = 300, **changes: object) -> ScoreTable:
    return rows(folder, n, seed=77, **changes)


def text_of(facts: Facts) -> str:
    parser = Page()
    parser.feed(page.render(facts, {}))
    assert parser.open == []
    return parser.text


class Page(HTMLParser):
    """What a page would load, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def policy_path(demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    run(capsys, "calibrate", demo_gguf, scores_path, "-o", tmp_path / "policy.json")
    return tmp_path / "policy.json"


def test_a_report_is_one_page_with_every_picture(
    scores_path: Path, policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    numbers = json.loads(run(capsys, "report", scores_path, "--policy", policy_path, "-o", folder, "--json"))
    table, policy = read_scores(scores_path), read_policy_file(policy_path).policy
    refused = replay(table, policy).refused
    assert numbers["overall"]["false_refusals"]["k"] == int(refused[~table.refuse].sum())
    assert numbers["overall"]["caught"]["k"] == int(refused[table.refuse].sum())
    assert numbers["always_refuse_f1"] == pytest.approx(2 * 36 / (108 + 36))
    assert numbers["calibrated_on_these_rows"] is True
    by_name = {c["category"]: c for c in numbers["categories"]}
    assert by_name["safety"]["certifiable"] is True
    assert by_name["humanizing"]["certifiable"] is False
    assert json.loads((folder / "report.json").read_text()) == numbers
    parser = Page()
    parser.feed((folder / "report.html").read_text())
    assert parser.open == []
    assert len(parser.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "cannot certify" in parser.text
    assert "its rates here are optimistic" in parser.text
    for picture in folder.glob("*.png"):
        data = picture.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert min(width, height) > 300


@pytest.mark.parametrize("options", [None, ["--method", "f1"], ["--method", "crc"], ["--bias", "--alpha", "0.1"]])
def test_every_kind_of_policy_can_be_drawn(
    demo_gguf: Path,
    scores_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str] | None,
) -> None:
    arguments: list[object] = []
    if options is not None:
        run(capsys, "calibrate", demo_gguf, scores_path, "-o", tmp_path / "p.json", *options)
        arguments = ["--policy", tmp_path / "p.json"]
    run(capsys, "report", scores_path, *arguments, "-o", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert ("not calibrated" in text) is (options is None)
    assert ("promised: at most" in text) is (options is not None and "f1" not in options)


def test_untrusted_names_are_escaped(scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = scores_path.read_text().splitlines()
    header = {**json.loads(lines[0]), "model": "<script>alert(1)</script>"}
    (tmp_path / "s.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    run(capsys, "report", tmp_path / "s.jsonl", "-o", tmp_path / "report")
    assert "<script>" not in (tmp_path / "report" / "report.html").read_text()


def test_a_file_in_place_of_the_folder_is_one_line(scores_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scores_path.read_bytes()
    assert cli.main(["report", str(scores_path), "-o", str(scores_path)]) == 2
    assert "expected a folder, got a file" in capsys.readouterr().err
    assert scores_path.read_bytes() == before


# ---- promises and what became of them --------------------------------------------------------------------------------


def test_a_report_is_written_as_a_whole_or_not_at_all(
    scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    (out / "roc.png").mkdir(parents=True)
    assert cli.main(["report", str(scores_path), "-o", str(out)]) == 2
    assert "roc.png is a folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["roc.png"]


def test_a_target_stands_beside_the_rate_it_is_about(tmp_path: Path) -> None:
    table = other_rows(tmp_path, 900)
    calibration = rows(tmp_path, n=1200)
    pooled = collect(table, calibrated(calibration))
    ((promise, realised),) = pooled.promises
    assert (promise.at_all, promise.alpha) == (True, 0.05)
    assert realised == pooled.overall.false_refusals
    assert "refused at all: " + str(realised) + " (promised: at most 5%)" in text_of(pooled)
    each = collect(table, calibrated(calibration, scope="category"))
    assert [realised for _, realised in each.promises] == [c.own_false_refusals for c in each.categories]
    assert "(promised: at most" not in text_of(each)
    assert "Nothing was promised about being refused at all." in text_of(each)
    union = collect(table, calibrated(calibration, scope="union", alpha=0.06))
    assert [(p.at_all, round(p.alpha, 9)) for p, _ in union.promises] == [(True, 0.06), *[(False, 0.02)] * 3]
    everything = [rate.n for _, rate in union.promises]
    assert set(everything) == {int((~table.refuse).sum())}


def test_more_than_was_promised_is_said(tmp_path: Path) -> None:
    """The rows to come score higher than those that calibrated."""
    logits, refuse, category = made_scores.make_logits(400, 5)
    logits[~refuse, 5] += 6
    table = read_scores(made_scores.write_scores(tmp_path / "shifted.jsonl", logits, refuse, category))
    warned = warnings_of(collect(table, calibrated(rows(tmp_path, n=600))))
    assert any(
        line.startswith("More than was promised: at most 5% of benign prompts are refused at all") for line in warned
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights_sha256": "9" * 64}, "for other weights than those that made these scores"),
        ({"file_type": 2}, "for another file type"),
        ({"template_sha256": "9" * 64}, "with another chat template"),
    ],
)
def test_scores_of_another_model_are_said_to_be(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    file = calibrated(rows(tmp_path))
    assert collect(other_rows(tmp_path), file).misfits == ()
    (line,) = collect(other_rows(tmp_path, **changes), file).misfits
    assert said in line
    assert line in text_of(collect(other_rows(tmp_path, **changes), file))


def test_an_edited_policy_carries_no_promise(tmp_path: Path) -> None:
    file = calibrated(rows(tmp_path))
    edited = dataclasses.replace(file, policy=file.policy.replace(**dict.fromkeys(SLUGS, 0.001)))
    facts = collect(other_rows(tmp_path), edited)
    assert facts.promises == ()
    assert "The policy was changed after it was calibrated" in facts.misfits[0]
    assert "promised: at most" not in text_of(facts)


def test_the_calibration_of_a_scored_file_is_reported(tmp_path: Path) -> None:
    """As `score` finds it in the keys of a file made with `calibrate --write`: scope and alpha, no certificates."""
    for scope, aimed in (("pooled", True), ("category", False)):
        file = calibrated(rows(tmp_path, n=1200), scope=scope)
        table = other_rows(tmp_path, policy=file.policy, calibration=file.calibration)
        assert table.header.calibration == file.calibration
        facts = collect(table, PolicyFile(table.header.policy, table.header.calibration))
        assert (len(facts.promises) == 1) is aimed
        text = text_of(facts)
        assert f"calibrated with np, scope {scope}, alpha 0.05, delta 0.05" in text
        assert ("(promised: at most 5%)" in text) is aimed
        assert ("is in the policy file (--policy)" in text) is not aimed


def test_a_broken_calibration_in_the_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"line 1: calibration\.alpha: expected a number in"):
        rows(tmp_path, calibration={"alpha": 7.0})


def test_report_and_calibrate_need_the_same_rows(tmp_path: Path) -> None:
    """Three categories of own rows at most: a third of delta each, and what crc needs is less."""
    table = rows(tmp_path, n=350)
    result = calibrate(table, POLICY, Target(scope="category"))
    assert result.uncertified
    facts = collect(table, PolicyFile.of(result, table.header, "2025-01-01"))
    needed = {c.name: c.needed for c in facts.categories}
    assert {u.category: u.needed for u in result.uncertified}.items() <= needed.items()
    crc = calibrate(table, POLICY, Target("crc", scope="category"))
    assert not crc.uncertified
    facts = collect(table, PolicyFile.of(crc, table.header, "2025-01-01"))
    assert all(c.needed == 19 and c.certifiable for c in facts.categories)


# ---- rows that calibrated --------------------------------------------------------------------------------------------


def test_rows_that_calibrated_are_found_in_any_order_and_company(tmp_path: Path) -> None:
    table = rows(tmp_path, n=200)
    file = calibrated(table)
    shuffled = table.select(np.random.default_rng(0).permutation(200))
    assert collect(shuffled, file).rows_that_calibrated == 200
    part = collect(table.select(np.arange(30)), file)
    assert part.rows_that_calibrated == 30
    assert part.summary()["calibrated_on_these_rows"] is True
    assert "30 of these 30 rows are rows that the policy was calibrated on" in text_of(part)
    assert collect(other_rows(tmp_path), file).rows_that_calibrated == 0


def test_the_overlap_of_huge_files_is_estimated() -> None:
    rng = random.Random(1)
    a, b = ([f"{rng.getrandbits(256):064x}" for _ in range(40_000)] for _ in range(2))
    kept = sketch(a)
    assert len(kept) == KEPT
    assert shared_rows(kept, a) == len(a)
    assert shared_rows(kept, b) == 0
    assert shared_rows(kept, [*b, *a[:10_000]]) == pytest.approx(10_000, rel=0.1)


# ---- pictures --------------------------------------------------------------------------------------------------------


def drawn_text(figure: object) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def without_categories(tmp_path: Path) -> Facts:
    logits, refuse, category = made_scores.make_logits(300, 9)
    category[np.flatnonzero(refuse)[:17]] = -1
    table = read_scores(made_scores.write_scores(tmp_path / "some.jsonl", logits, refuse, category))
    return collect(table, PolicyFile(POLICY))


def test_refusals_without_a_category_are_counted_and_noted(tmp_path: Path) -> None:
    facts = without_categories(tmp_path)
    drawings = figures.draw_all(facts)
    for name in ("roc", "histograms"):
        assert "not shown: 17 rows to refuse that name no category" in drawn_text(drawings[name])
    confusion = drawings["confusion"].axes[0]
    counts = sum(int(text.get_text()) for text in confusion.texts)
    assert counts == len(facts.table)
    assert "refuse, no category (17)" in [label.get_text() for label in confusion.get_yticklabels()]
    assert any("17 rows to refuse name no category" in line for line in warnings_of(facts))


def test_without_benign_rows_no_false_refusals_are_drawn(tmp_path: Path) -> None:
    table = rows(tmp_path)
    facts = collect(table.select(table.refuse), PolicyFile(POLICY))
    sweep = figures.draw_all(facts)["sweep"]
    lines = {line.get_label(): line for line in sweep.axes[0].lines}
    assert len(lines["false refusals, of benign rows: no such rows"].get_xdata()) == 0
    assert len(lines["caught, of rows to refuse"].get_xdata()) > 0


def test_histograms_show_the_rows_of_the_curves_on_one_scale(tmp_path: Path) -> None:
    facts = without_categories(tmp_path)
    panels = figures.draw_all(facts)["histograms"].axes
    assert len({axes.get_ylim() for axes in panels}) == 1
    for c, axes in enumerate(panels):
        own = facts.table.category == c
        refuse, benign = ((own & rows).sum() for rows in (facts.table.refuse, ~facts.table.refuse))
        assert axes.get_title().endswith(f"{refuse} to refuse, {benign} benign")


def test_long_names_do_not_overlap(tmp_path: Path) -> None:
    names = ("requests_with_safety_concerns", "humanizingwithoutanyunderscore", "unsupported_requests_of_any_kind")
    policy = Policy([Category(name, 5 + i) for i, name in enumerate(names)], respond_token_id=9)
    table = rows(tmp_path)
    named = dataclasses.replace(table, header=dataclasses.replace(table.header, policy=policy))
    for name in ("roc", "histograms"):
        figure = figures.draw_all(collect(named, PolicyFile(policy)))[name]
        figure.canvas.draw()
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
