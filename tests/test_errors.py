"""Error messages follow one form: WHAT is wrong with its value, then what was expected or what to do.

    name=value: expected ...            of an argument or a field
    path: what is wrong with it ...     of a file
    subject ..., expected ...           of anything else

One line that begins with what it is about, no capital letter unless that is a name, no full stop at the end; it shows
the offending value, and says what was expected, needed, or to be done.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "fastaae").glob("**/*.py"), *(ROOT / "kernels").glob("**/*.py")])
HELP = re.compile(  # a hint is "did you mean ..." or what to do
    r"expected|at most|allowed are|needs|[Pp]ut |delete|move it|go on|start it again|resume it|last good|save it|{hint}"
)
HANDED_ON = re.compile(  # what another error says
    r"\{(error|message|word|lines\[-1\]|'; '\.join\(failures\))[^{}]*\}\)?( \{.*)?$|^\{lines"
)
NAMES = {"MNIST", "SVHN", "TFD", "SHA-256", "X"}


def text_of(node):
    """The message of an expression: placeholders as {expression}, choices as their alternatives."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None or right is None else left + right
    return f"{{{ast.unparse(node)}}}"


def raised(path):
    """(line, name of the error, message or None) of every raise statement that makes an error."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            yield node.lineno, name, [text_of(a) for a in node.exc.args]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit" and node.args:
            if not isinstance(node.args[0], ast.Call) or ast.unparse(node.args[0].func) != "main":
                yield node.lineno, "sys.exit", [text_of(node.args[0])]


CASES = [(path, *case) for path in FILES for case in raised(path)]


def faults(name, arguments):
    if name == "_error":
        return []
    message = arguments[0] if arguments else ""
    found = []
    if "\n" in message or "  " in message:
        found.append("one line, single spaces")
    if message.endswith((".", "!")):
        found.append("a full stop at the end")
    first = message.split()[0].strip(":,") if message.split() else ""
    if not message or (first[0].isupper() and first not in NAMES):
        found.append("it begins with a capital letter")
    if "{" not in message:
        found.append("no value is shown")
    if not HELP.search(message) and not HANDED_ON.search(message):
        found.append("it does not say what was expected, or what to do")
    return found


@pytest.mark.parametrize(
    ("path", "line", "name", "arguments"),
    [pytest.param(*c, id=f"{c[0].parent.name}/{c[0].name}:{c[1]}") for c in CASES],
)
def test_form(path, line, name, arguments):
    assert faults(name, arguments) == [], arguments


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Bad epochs={value}, expected more", "capital"),
        ("epochs={value}: expected more.", "full stop"),
        ("epochs={value}", "does not say what"),
        ("epochs: expected more", "no value"),
        ("epochs={value}:\nexpected more", "one line"),
        ("", "capital"),
    ],
)
def test_other_forms_are_seen(message, fault):
    assert any(fault in found for found in faults("ValueError", [message]))


def test_all_modules_are_read():
    assert len(CASES) > 150 and {path.name for path, *_ in CASES} > {"parzen.py", "reference.py", "matfiles.py"}
