"""`refusal-edge bench`: the project's own benchmarks as one table, each number beside what it is held against."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from refusal_edge.cli import terminal
from refusal_edge.errors import InvalidRequestError, RefusalEdgeError

SUMMARY = "measure decisions and sampling against NumPy and stock llama.cpp (in a source checkout)"
EXAMPLES = """  refusal-edge bench --quick
  refusal-edge bench --isa avx2 --json"""

NOT_MEASURED: Final = (
    "Not measured: GPUs, loading, chat templates; the model's own arithmetic only in the rows end to end, which "
    "--quick leaves out."
)
OURS: Final = "refusal-edge"
TARGET_VOCABULARY: Final = 128_256
FOLDER = Path(__file__).resolve().parents[2] / "bench"
FILES: tuple[str, ...] = ("bench_decide.py", "bench_sampling.py", "bench_first_token.py")
QUICK: Final = ("--benchmark-max-time=0.1", "--benchmark-min-rounds=5")


class Target(NamedTuple):
    """A bound on time(ours) / time(contender), or with `faster` on its inverse."""

    bound: float
    faster: bool

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.faster else ours / theirs

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.faster else ratio <= self.bound

    def __str__(self) -> str:
        return f"≥ {self.bound:g}x faster" if self.faster else f"≤ {self.bound:g}x its time"


# What is compared with what; the bounds are the project's, for a vocabulary of TARGET_VOCABULARY tokens.
TARGETS: Final = {
    ("decide", "np.max"): Target(3, faster=False),
    ("first token", "NumPy logits_processor"): Target(12, faster=True),
    ("default chain", "llama_sampler_sample"): Target(8, faster=True),
    ("greedy chain", "llama_sampler_sample"): Target(18, faster=True),
    ("min-p chain", "llama_sampler_sample"): Target(1, faster=True),
}
SCRIPTS: Final = {
    "bench_end_to_end.py": ("tokens 2..n, end to end", "llama-cpp-python alone", "ratio", 1.0),
    "bench_batch.py": ("decide_batch", "decide, one at a time", "ratio to from empty", 3.0),
}


@dataclass(frozen=True)
class Row:
    """One comparison; times in microseconds, None where a script gives the ratio alone."""

    what: str
    logits: str
    isa: str
    contender: str
    ours_us: float | None
    contender_us: float | None
    ratio: float
    target: str
    met: bool | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isa", metavar="NAME", help="only this instruction set (default: all that run here)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one vocabulary, nothing end to end")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    _check_installation()
    isas = _instruction_sets(args.isa)
    report = _measure(isas, args.quick)
    rows = list(compare(report))
    if not args.quick:
        rows += [_run_script(name) for name in SCRIPTS]
    header = environment(report, isas)
    if args.json:
        document = {"not_measured": NOT_MEASURED, "environment": header, "rows": [asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        _show(header, rows)
    return 0


def _check_installation() -> None:
    if not (FOLDER / FILES[0]).is_file():
        raise RefusalEdgeError(
            "bench: the benchmarks are not part of the installed package: run `make bench` in a source checkout"
        )
    for module in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(module) is None:
            raise RefusalEdgeError(f"bench: {module} is not installed: run `pip install 'refusal-edge[test]'`")


def _instruction_sets(wanted: str | None) -> list[str]:
    """Those to measure; "serial" is plain C at -O3 and always a contender."""
    from refusal_edge import _native

    available = [name for name in _native.isa_names() if _native.isa_available(name)]
    if wanted is None:
        return available
    if wanted not in available:
        raise InvalidRequestError(f"--isa: expected one of {', '.join(available)}, got {wanted!r}")
    return [name for name in available if name in ("serial", wanted)]


def _measure(isas: list[str], quick: bool) -> dict[str, Any]:
    """pytest-benchmark's own report; its progress goes to standard error."""
    from refusal_edge import _native

    left_out = [f"not {name}" for name in _native.isa_names() if name not in isas]
    if quick:
        left_out.append(f"({TARGET_VOCABULARY} or recorded)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [*(sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider")]
        command += [str(FOLDER / name) for name in FILES]
        command += ["--benchmark-only", f"--benchmark-json={path}", "--benchmark-columns=median", "--no-header"]
        command += ["-k", " and ".join(left_out)] if left_out else []
        _run(command + list(QUICK if quick else ()), "pytest")
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def _run_script(name: str) -> Row:
    what, contender, key, bound = SCRIPTS[name]
    result = json.loads(_run([sys.executable, str(FOLDER / name), "--json"], name))
    target = Target(bound, faster=True)
    ratio = float(result[key])
    return Row(what, "a model's", "best", contender, None, None, ratio, str(target), target.is_met(ratio))


def _run(command: list[str], name: str) -> str:
    """Standard output of a benchmark, in the environment of this one.

    Raises:
        RefusalEdgeError: it failed; where contenders do not agree, nothing is timed.
    """
    print(f"bench: running {name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write((done.stdout + done.stderr)[-4000:])
        raise RefusalEdgeError(f"bench: {name} failed (its last words are above): contenders disagree, or one crashed")
    return done.stdout


def compare(report: dict[str, Any]) -> Iterator[Row]:
    """The rows of a pytest-benchmark report: each of ours against each contender on the same logits, by median."""
    medians: dict[tuple[str, int, str], dict[tuple[str, str], float]] = {}
    for benchmark in report["benchmarks"]:
        info = benchmark["extra_info"]
        case = (info["what"], info["n_vocab"], info["logits"])
        medians.setdefault(case, {})[info["contender"], info.get("isa", "")] = 1e6 * benchmark["stats"]["median"]
    for (what, n_vocab, logits), times in sorted(medians.items(), key=lambda item: item[0]):
        serial = {("plain C, -O3", ""): times[OURS, "serial"]} if (OURS, "serial") in times else {}
        contenders = {key: us for key, us in {**times, **serial}.items() if not key[0].startswith(OURS)}
        for (name, isa), ours in times.items():
            if name != OURS or isa == "serial":
                continue
            for (contender, _), theirs in contenders.items():
                known = TARGETS.get((what, contender))
                ratio = (known or Target(1, faster=True)).ratio(ours, theirs)
                bound = known if n_vocab == TARGET_VOCABULARY else None
                yield Row(
                    what,
                    f"{n_vocab:,} {logits}",
                    isa,
                    contender,
                    round(ours, 2),
                    round(theirs, 2),
                    round(ratio, 2),
                    str(bound or ""),
                    bound.is_met(ratio) if bound else None,
                )


def environment(report: dict[str, Any], isas: list[str]) -> dict[str, str]:
    """What the numbers must carry to mean anything."""
    cpu, info = report["machine_info"]["cpu"], report["benchmarks"][0]["extra_info"]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "machine": f"{cpu.get('brand_raw') or report['machine_info']['machine']}, {os.cpu_count()} cores{load}",
        "instruction sets": ", ".join(isas),
        "versions": f"Python {info['python']}, NumPy {info['numpy']}, llama-cpp-python {info['llama_cpp_python']}",
        "measured": report["datetime"][:19],
    }


def _show(header: dict[str, str], rows: list[Row]) -> None:
    print(NOT_MEASURED + "\n")
    print(terminal.table([[name, value] for name, value in header.items()]) + "\n")
    titles = ("what", "logits", "ISA", "against", "us", "its us", "ratio", "target", "met")
    print(terminal.table([_cells(row) for row in rows], titles))
    print("\n  ratio: how many times faster than the contender; for np.max, how many times its time")


def _cells(row: Row) -> list[str]:
    times = ["" if us is None else f"{us:.1f}" for us in (row.ours_us, row.contender_us)]
    met = "" if row.met is None else "yes" if row.met else "no"
    return [row.what, row.logits, row.isa, row.contender, *times, f"{row.ratio:.2f}", row.target, met]
