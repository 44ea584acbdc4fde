"""The C rules, on good and bad snippets."""

from __future__ import annotations

from pathlib import Path

import pytest

import lint_c

LICENCE = f"/* {lint_c.LICENCE} */\n"


@pytest.mark.parametrize(
    "body",
    [
        "static int hr_drop(struct hr_walk *walk, __u32 reason)\n{\n\tcount(reason);\n\treturn TC_ACT_SHOT;\n}\n",
        "static int hr_drop_xdp(__u32 reason)\n{\n\treturn XDP_DROP;\n}\n",
        "static int a(int verdict)\n{\n\treturn verdict == TC_ACT_SHOT ? 1 : 0;\n}\n",
        "static int a(void)\n{\n\treturn TC_ACT_SHOT; /* bare verdict: nothing to count it by */\n}\n",
        "static int a(void)\n{\n\thr_conclude(HR_REASON_FLOODED, TC_ACT_SHOT);\n\treturn 0;\n}\n",
        '/* return XDP_DROP; */\nstatic const char *a = "XDP_DROP";\n',
        "static int a(int v)\n{\n\tswitch (v) {\n\tcase XDP_DROP:\n\t\treturn 0;\n\t}\n\treturn 1;\n}\n",
    ],
)
def test_accepted(tmp_path: Path, body: str) -> None:
    path = tmp_path / "a.h"
    path.write_text(LICENCE + body)
    assert lint_c.findings(path) == []


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("static int a(void)\n{\n\treturn XDP_DROP;\n}\n", 4),
        ("static int a(int b)\n{\n\treturn b ? TC_ACT_OK : TC_ACT_SHOT;\n}\n", 4),
        ("static int hr_drop(void)\n{\n\treturn 0;\n}\n\nstatic int a(void)\n{\n\treturn XDP_ABORTED;\n}\n", 9),
        ("#define OUT TC_ACT_SHOT\n", 2),
        ("static int a(void)\n{\n\treturn TC_ACT_SHOT; /* bare verdict: */\n}\n", 4),
    ],
)
def test_refused_with_its_line(tmp_path: Path, body: str, line: int) -> None:
    path = tmp_path / "a.h"
    path.write_text(LICENCE + body)
    (found,) = lint_c.findings(path)
    assert found.startswith(f"{path}:{line}: bare ")


def test_licence_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.h"
    path.write_text("int a;\n")
    assert lint_c.findings(path) == [f"{path}:1: the first line must hold `{lint_c.LICENCE}`"]
    assert lint_c.main([str(path)]) == 1
