"""The HTML page: one file, pictures inside, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refusal_edge.calibrate.certificate import percent
from refusal_edge.calibrate.control_table import Band, control_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refusal_edge.report.facts import CategoryFacts, Facts

_CAPTIONS: Final = {
    "sweep": (
        "Threshold sweep",
        "F1 alone says little: always refusing has a high one where most rows should be refused. Read it with the "
        "false refusals under it.",
    ),
    "roc": (
        "ROC of each category's score",
        "The ring is the policy's threshold on that category alone, with 95 % Clopper-Pearson intervals. A dashed "
        "curve is drawn against the benign rows of other categories and certifies nothing.",
    ),
    "histograms": (
        "Scores",
        "Where the rows of the curves above lie on the log-odds scale; the dashed line is the threshold in force.",
    ),
    "reliability": ("Reliability", "On the diagonal a score of 0.3 means that 3 rows of 10 should be refused."),
    "confusion": (
        "Confusion between categories",
        "Rows in the data by label, columns by decision; shade is the share of the row.",
    ),
}

_READABLE: Final = 0.55  # of a picture's own width: on a phone it scrolls instead of shrinking further

_STYLE: Final = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #111; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; font-size: .87rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; }
td, th { vertical-align: top; white-space: pre-line; }
td:first-child { overflow-wrap: anywhere; min-width: 8.5rem; }
th { border-bottom: 1.5px solid #111; font-weight: 600; }
tr.total td { border-top: 1.5px solid #111; font-weight: 600; }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
.quiet { color: #555; }
.warn { border-left: 4px solid #111; padding: .2rem .8rem; margin: .8rem 0; background: #f3f3f3; }
.wide { overflow-x: auto; }
@media print { body { margin: 0; max-width: none; } figure, table { break-inside: avoid; } }
"""


def write_report(facts: Facts, folder: str | Path) -> Path:
    """Writes report.html, report.json and the PNGs into `folder` (made if missing); returns the page's path.

    Raises:
        ConversionError: one of them is there and no file; then none is written.
    """
    from refusal_edge.convert.partfile import part_file
    from refusal_edge.report.figures import draw_all

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _png(figure) for name, figure in draw_all(facts).items()}
    files = {f"{name}.png": data for name, data in pictures.items()}
    files["report.json"] = (json.dumps(facts.summary(), indent=2) + "\n").encode()
    files["report.html"] = render(facts, pictures).encode()
    with contextlib.ExitStack() as together:  # all of them, or none
        for name, data in files.items():
            descriptor, _ = together.enter_context(part_file(folder / name, force=True))
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
    return folder / "report.html"


def render(facts: Facts, pictures: dict[str, bytes]) -> str:
    """The page's text."""
    header = facts.table.header
    sections = [
        f"<h1>{escape(header.model)} on {escape(header.dataset)}</h1>",
        _introduction(facts),
        *(f'<p class="warn">{escape(line)}</p>' for line in warnings_of(facts)),
        "<h2>What was promised, and what happened here</h2>",
        _promises(facts),
        "<h2>Rates</h2>",
        _rates(facts),
        "<h2>What these rows cannot certify</h2>",
        _uncertified(facts),
        *(_figure(name, data) for name, data in pictures.items()),
        _control(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>refusal-edge: {escape(header.model)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def _introduction(facts: Facts) -> str:
    numbers = facts.summary()
    aim = next((f" (promised: at most {percent(p.alpha)})" for p, _ in facts.promises if p.at_all), "")
    left_out = {"bad": numbers["skipped"], "without a label": numbers["unlabelled"]}
    skipped = "".join(f", {n} {why} left out" for why, n in left_out.items() if n)
    unnamed = f" ({facts.unnamed} of them without a category)" if facts.unnamed else ""
    return (
        f"<p>{numbers['rows']} rows{skipped}: {int(facts.table.refuse.sum())} to refuse{unnamed}, "
        f"{int((~facts.table.refuse).sum())} benign. Policy {facts.policy.policy_id}, "
        f"rule {facts.policy.rule}, {escape(_origin(facts))}.</p>"
        f"<p>Benign rows refused at all: <b>{escape(str(facts.overall.false_refusals))}</b>{aim}. "
        f"Refusals caught: <b>{escape(str(facts.overall.caught))}</b>. F1 {numbers['f1']:.3f}; always refusing has "
        f"{numbers['always_refuse_f1']:.3f}. "
        f"NLL {numbers['nll']:.3f}, Brier {numbers['brier']:.3f}, ECE {numbers['ece']:.3f}.</p>"
        '<p class="quiet">Intervals are 95 % Clopper-Pearson; those of AUROC are percentile bootstraps.</p>'
    )


def _origin(facts: Facts) -> str:
    pins = facts.file.calibration
    if pins is None:
        return "not calibrated"
    target = "".join(f", {name} {pins[name]:g}" for name in ("alpha", "delta") if name in pins)
    scope = f", scope {pins['scope']}" if "scope" in pins else ""
    return (
        f"calibrated with {pins.get('method', '?')}{scope}{target} on {pins.get('n', '?')} benign rows, "
        f"{pins.get('created', 'undated')}"
    )


def warnings_of(facts: Facts) -> list[str]:
    """What to know before a number is believed."""
    lines = list(facts.misfits)
    if facts.rows_that_calibrated:
        lines.append(
            f"{facts.rows_that_calibrated} of these {len(facts.table)} rows are rows that the policy was calibrated "
            "on: its rates here are optimistic."
        )
    lines += [
        f"More than was promised: at most {percent(promise.alpha)} of {promise.event}, {promise.sureness}. "
        f"Here it is {realised}."
        for promise, realised in facts.promises
        if realised.low > promise.alpha
    ]
    if (over := _over_alpha(facts)) is not None:
        lines.append(over)
    if facts.replay.no_decision.any():
        lines.append(f"{int(facts.replay.no_decision.sum())} rows have too little control mass for a decision.")
    if facts.unnamed:
        lines.append(
            f"{facts.unnamed} rows to refuse name no category: they count in the rates of all, the sweep and the "
            "reliability, and are in no curve or histogram of a category."
        )
    return lines


def _over_alpha(facts: Facts) -> str | None:
    rate, pins = facts.overall.false_refusals, facts.file.calibration or {}
    if pins.get("scope") != "category" or "alpha" not in pins or not rate.value > pins["alpha"]:
        return None
    return (
        f"{rate} of benign rows are refused at all, more than alpha = {percent(pins['alpha'])}: alpha was promised of "
        "each category's own token alone, not of being refused at all."
    )


def _promises(facts: Facts) -> str:
    pins = facts.file.calibration
    if facts.promises:
        head = ("promised", "at most", "", "from benign rows", "benign rows here", "happened here")
        rows = [
            (p.event, percent(p.alpha), p.sureness, str(p.n), str(realised.n), str(realised))
            for p, realised in facts.promises
        ]
        every = any(promise.at_all for promise, _ in facts.promises)
        more = "" if every else "<p>Nothing was promised about being refused at all.</p>"
        return _table(head, rows) + more
    if pins is None:
        return "<p>Not calibrated: no promise came with these scores (a policy file brings its own: --policy).</p>"
    if "alpha" in pins and not facts.file.certificates and not facts.misfits:
        return (
            "<p>What was promised is in the policy file (--policy); the keys of a GGUF file hold no promises of single "
            "categories.</p>"
        )
    return "<p>No promise is attached to this policy.</p>"


def _rates(facts: Facts) -> str:
    head = (
        "category",
        "threshold",
        "to refuse",
        "caught",
        "for the right reason",
        "benign",
        "false refusals",
        "own token",
        "AUROC",
    )
    return _table(head, [_rate_row(c) for c in facts.categories], _rate_row(facts.overall)) + (
        '<p class="quiet">"False refusals" are benign rows of the category that are refused for any reason; '
        '"own token" are those that pass its own threshold. AUROC ranks its refusals against its own benign rows by '
        "its own score, and all refusals against all benign rows by the probability of any refusal token.</p>"
    )


def _rate_row(facts: CategoryFacts) -> list[str]:
    area = (
        "no rows to rank"
        if facts.auroc != facts.auroc
        else f"{facts.auroc:.3f} [{facts.auroc_low:.3f}, {facts.auroc_high:.3f}]"
    )
    threshold = (
        ""
        if facts.threshold is None
        else facts.threshold
        if isinstance(facts.threshold, str)
        else f"{facts.threshold:.6g}"
    )
    return [
        facts.name,
        threshold,
        str(facts.caught.n),
        str(facts.caught),
        str(facts.named),
        str(facts.false_refusals.n),
        str(facts.false_refusals),
        "" if facts.own_false_refusals is None else str(facts.own_false_refusals),
        area if facts.own_benign or facts.auroc != facts.auroc else f"{area} against all benign",
    ]


def _uncertified(facts: Facts) -> str:
    rows = [
        [c.name, str(c.false_refusals.n), str(c.needed), "enough rows" if c.certifiable else "cannot certify"]
        for c in (*facts.categories, facts.overall)
    ]
    sure = "on average" if facts.method == "crc" else f"with confidence {percent(1 - facts.delta)}"
    text = (
        f"To promise from these rows that at most {percent(facts.alpha)} of the benign prompts near a category pass "
        f"its threshold, {sure} ({facts.method}), takes as many benign rows of its own as the table says; the last row "
        "is for all of them together. A category without benign rows has no measurable false refusals: a pooled "
        "promise covers its token on the benign rows there are, and says nothing of prompts near it. No number here "
        "speaks of prompts of another kind than these."
    )
    return f"<p>{escape(text)}</p>" + _table(("category", "benign rows", "needed", ""), rows[:-1], rows[-1])


def _control(facts: Facts) -> str:
    if not (facts.table.text >= 0).all(axis=1).any():
        return ""
    bands = control_table(facts.table)
    head = ("refusal score", "rows", "after [respond]: refuses", "after a refusal token: refuses")

    def row(band: Band) -> list[str]:
        return [
            f"{band.low:g} to {band.high:g}",
            str(band.after_respond.n),
            str(band.after_respond),
            str(band.after_refuse),
        ]

    return (
        "<h2>Does the text follow the token?</h2><p>Each decision was forced, and a judge read the text.</p>"
        + _table(head, [row(band) for band in bands[:-1]], row(bands[-1]))
    )


def _figure(name: str, data: bytes) -> str:
    title, caption = _CAPTIONS[name]
    source = base64.b64encode(data).decode()
    width = int.from_bytes(data[16:20], "big")  # of the PNG's header
    style = f"min-width: {round(_READABLE * width)}px"
    return (
        f'<h2>{title}</h2><figure><div class="wide"><img alt="{title}" style="{style}" '
        f'src="data:image/png;base64,{source}"></div><figcaption class="quiet">{escape(caption)}</figcaption></figure>'
    )


def _lines(text: str) -> str:
    """A rate above its interval, so that neither is broken."""
    return re.sub(r" (\[\S+), (\S+\])", "\n\\1,\u00a0\\2", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = ()) -> str:
    def line(cells: Sequence[str], tag: str = "td", kind: str = "") -> str:
        return f"<tr{kind}>" + "".join(f"<{tag}>{escape(_lines(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(map(line, rows)) + (line(total, kind=' class="total"') if total else "")
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
