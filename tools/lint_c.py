"""C rules that no compiler knows: verdicts with reasons, and a licence on every file.

A drop verdict may appear only in the functions named ``hr_drop*`` or ``hr_xdp_drop`` (which take a reason), in a
comparison, as an argument of ``hr_conclude`` (which records it), or on a line that says why:
``/* bare verdict: ... */``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

VERDICT = re.compile(r"(?<![=!]= )\b(XDP_DROP|XDP_ABORTED|TC_ACT_SHOT)\b(?!\s*[=!]=)")
EXCUSE = re.compile(r"/\* bare verdict: \w.*\*/")
FUNCTION = re.compile(r"^(?!#)\w[^;={}]*\b(\w+)\([^;{]*\)\s*\{", re.MULTILINE)
HELPER = re.compile(r"hr_(xdp_)?drop(_\w+)?")
LICENCE = "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)"


def blank_comments(text: str) -> str:
    """The text with comments and strings blanked, every line where it was."""
    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\""
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)


def findings(path: Path) -> list[str]:
    """What is wrong with one file, as ``file:line: text``."""
    text = path.read_text()
    plain = blank_comments(text)
    lines = text.splitlines()
    found = []
    if LICENCE not in (lines[0] if lines else ""):
        found.append(f"{path}:1: the first line must hold `{LICENCE}`")
    for match in VERDICT.finditer(plain):
        number = plain.count("\n", 0, match.start())
        before = plain[plain.rfind("\n", 0, match.start()) + 1 : match.start()]
        owners = [function[1] for function in FUNCTION.finditer(plain, 0, match.start())]
        inside = bool(owners) and HELPER.fullmatch(owners[-1]) is not None
        if inside or EXCUSE.search(lines[number]) or re.match(r"\s*(case\s|hr_conclude\()", before):
            continue
        found.append(f"{path}:{number + 1}: bare {match[1]}; return hr_drop(walk, HR_REASON_...), which counts it")
    return found


def main(paths: list[str]) -> int:
    """Print findings of all files; 1 if there are any."""
    found = [line for path in paths for line in findings(Path(path))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
