"""The C tests, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

from pathlib import Path

import c_build


def test_c_tests_under_address_and_undefined_behaviour_sanitizer(tmp_path: Path) -> None:
    c_build.build(tmp_path, "-DREFUSAL_EDGE_SANITIZE=address,undefined")
    assert "100% tests passed" in c_build.run_ctest(tmp_path)
