"""Write the English text in Python's own documentation as JSON lines, one document per line, for experiments/smoke.py.

    python experiments/python_docs.py demo/text.jsonl

Documents are the topics of the language reference (`pydoc_data.topics`) and, module by module, the docstrings of the
standard library, read from its source without importing it. Code examples are dropped. About 2 MB.
"""

import ast
import inspect
import json
import pydoc_data.topics
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "config-3"}


def documents() -> Iterator[str]:
    """Yield the text of each document, one paragraph per line."""
    for _, topic in sorted(pydoc_data.topics.topics.items()):
        yield from _document([topic])
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            yield from _document(list(_docstrings(path)))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # files that the library keeps to test with
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _document(texts: list[str]) -> Iterator[str]:
    paragraphs = [" ".join(block.split()) for text in texts for block in re.split(r"\n\s*\n", inspect.cleandoc(text))]
    prose = [paragraph for paragraph in paragraphs if _is_prose(paragraph)]
    if prose:
        yield "\n".join(prose)


def _is_prose(paragraph: str) -> bool:
    """Return whether a paragraph is prose, mostly letters and spaces, and not code, a table or a rule."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return ">>>" not in paragraph and len(paragraph.split()) >= 4 and letters > 0.85 * len(paragraph)


def main() -> None:
    """Write the documents to the file given on the command line."""
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with out.open("w", encoding="utf-8") as file:
        for text in documents():
            file.write(json.dumps({"text": text}) + "\n")
            count, size = count + 1, size + len(text)
    print(f"{out}: {count:,} documents, {size:,} characters")


if __name__ == "__main__":
    main()
