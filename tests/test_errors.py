"""Error messages follow one form: WHAT is wrong with its value, then what is allowed or what to do.

    name=value: expected ...            of an argument or a field
    path: what is wrong with it ...     of a file
    subject ..., expected ...           of anything else
    subject ...: do this                where that says more

One line that begins with what it is about, no capital letter unless that is a name, no full stop at the end; it shows
the offending value, and says what is allowed, needed, or to be done in words that make sense: "expected less" do not.
"""

import ast
import re
from pathlib import Path

import pytest

from fastaae import config

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "fastaae").glob("**/*.py"), *(ROOT / "kernels").glob("**/*.py")])
HELP = re.compile(  # what is allowed, or an imperative where a part begins; a hint is "did you mean ..." or one
    r"expected|at (?:most|least)|allowed|\bmust\b|\bneeds?\b|\bonly\b|\btakes\b|\bto \{|did you mean|last good|{hint}"
    r"|(?:[:;,.?)] |\b(?:or|and|then) )(?i:ask|call|choose|delete|divide|drop|fill|fit|get|give|go on|leave|lower|make"
    r"|move|name|pass|pip install|put|raise|replace|rescale|resume|run|save|score|set|start|stop|try|use|wait|write)\b"
)
NONSENSE = re.compile(  # nothing follows that such a word could stand before
    r"expected (?:a fit|again|all|another|any|both|each|enough|fewer|it|less|many|more|none|once|ones?|other|others"
    r"|several|so|some|such|that|them|there|these|this|those|two|whole|one of (?:them|these|this|those))(?![ ]?[\w{'])"
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
    if name == "_error" or name.endswith(".not_finite"):  # they add what is expected, or what to do
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
        found.append("it does not say what is allowed, or what to do")
    return found


@pytest.mark.parametrize(
    ("path", "line", "name", "arguments"),
    [pytest.param(*c, id=f"{c[0].parent.name}/{c[0].name}:{c[1]}") for c in CASES],
)
def test_form(path, line, name, arguments):
    assert faults(name, arguments) == [], arguments


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_expected_makes_sense(path):
    found = {line: text for line, _, texts in raised(path) for text in texts if NONSENSE.search(text or "")}
    assert found == {}


def test_what_a_config_expects_makes_sense():
    rows = (*config.FIELDS, *config.ELEMENTS, *config.RULES, *config.UNUSED)
    assert [words for *_, words in rows if not words or NONSENSE.search(f"expected {words}")] == []


@pytest.mark.parametrize(
    "words",
    [
        "less",
        "less: a damaged file?",
        "one",
        "one (mode {mode})",
        "such",
        "none",
        "none: stop it",
        "all",
        "more",
        "both",
    ]
    + ["a fit: call fit first", "fewer", "once", "again: pass them", "another", "some", "one of this"],
)
def test_nonsense_is_seen(words):
    assert NONSENSE.search(f"{{path}}: the file holds {{n}}, expected {words}")


@pytest.mark.parametrize(
    "words",
    ["less than {n}", "one of a, b", "one for each of {n} classes", "more than 3", "both x and y", "all {n} files"]
    + [
        "0 to 3",
        "None",
        "a function of (out, generator)",
        "it to fill its first argument",
        "at least 2",
        "oneDNN",
        "{n}",
    ],
)
def test_sense_is_not(words):
    assert not NONSENSE.search(f"{{path}}: the file holds {{n}}, expected {words}")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Bad epochs={value}, expected more", "capital"),
        ("epochs={value}: expected more.", "full stop"),
        ("epochs={value}", "does not say what"),
        ("epochs={value}: too many", "does not say what"),
        ("epochs={value}: the runs of the morning start", "does not say what"),
        ("epochs: expected more", "no value"),
        ("epochs={value}:\nexpected more", "one line"),
        ("", "capital"),
    ],
)
def test_other_forms_are_seen(message, fault):
    assert any(fault in found for found in faults("ValueError", [message]))


def test_all_modules_are_read():
    assert len(CASES) > 150 and {path.name for path, *_ in CASES} > {"parzen.py", "reference.py", "matfiles.py"}


def test_code_without_a_module_is_warned_as_any_other():
    code = "from fastaae.files import warn_caller\nwarn_caller('odd')"
    with pytest.warns(UserWarning, match="^odd$"):
        exec(compile(code, "page", "exec"), {})
