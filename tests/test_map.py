"""The map of the package: every file with its first line, as the file says it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ftsuite"
HEAD = """# The files of the package

Read `recipe.py` first: a cell's stages and how they are wired. Imports point down; `stages.py` says
what each stage reads, `store/stage.py` how a key comes of it. Each line is the first of its file;
`python tests/test_map.py` writes this page again.
"""


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def page() -> str:
    lines = [HEAD]
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    for folder in folders:
        name = folder.relative_to(PACKAGE)
        if folder != PACKAGE:
            said = first_line(folder / "__init__.py")
            lines.append(f"\n**{name}/** {said}\n")
        lines += [
            f"- `{path.name}`: {first_line(path)}"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
    return "\n".join(lines) + "\n"


def test_the_map_shows_every_file_as_it_is() -> None:
    assert (PACKAGE / "README.md").read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    (PACKAGE / "README.md").write_text(page(), encoding="utf-8")
