"""What users see of bad input, as a table: `python tests/bad_input_table.py` writes it into docs/reliability.md."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- made by tests/bad_input_table.py -->\n", "<!-- end of what is made -->\n"


def main() -> None:
    from bad_input_cases import TABLE
    from bad_input_world import build, row, run

    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        world = build(Path(scratch) / "world")
        for section, cases in TABLE.items():
            parts.append(f"\n### {section}\n\n| what is wrong | command | what you see |\n|:--|:--|:--|\n")
            for number, case in enumerate(cases):
                here = shutil.copytree(world, Path(scratch) / f"{section}{number}")
                with contextlib.chdir(here):
                    parts.append(row(case, run(case)) + "\n")
                shutil.rmtree(here)
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(head + BEGIN + "".join(parts) + "\n" + END + tail, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
