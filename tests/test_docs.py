"""Everything the pages of docs/ tell a user to run, runs; what they name is there; what has to be listed is."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from pages import ROOT, blocks, commands, run_command, run_python

import fastaae
from fastaae import cli, config

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
WIDE = (
    "bench",
    "docs",
    "examples",
    "fastaae",
    "kernels",
    "tests",
)  # folders, by which a path of the repository is known
COMMANDS = r"`((?:fastaae|python|make|pip|torchrun|bench/gpu\.sh)[ ][^`]*)`"


def test_every_page_is_in_the_navigation_and_opens_with_what_it_is_for():
    nav = re.findall(r": (\w+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(nav) == sorted(PAGES)
    for name, text in PAGES.items():
        title, _, first, *_ = text.split("\n")
        assert title.startswith("# ") and first.startswith("This page "), name


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run(name, quick):
    """In their order, those of Python as one program; a block of text shows what the one before it prints."""
    found, names = [*blocks(PAGES[name]), ("", "")], {"__name__": name}
    for (kind, text), (then, shown) in itertools.pairwise(found):
        assert kind in ("python", "sh", "text"), f"{name}: a block of {kind or 'no language'}"
        if kind == "python":
            run_python(text, names, shown if then == "text" else None, f"docs/{name}.md")
        for line in commands(text) if kind == "sh" else []:
            run_command(line)


def test_inline_commands_run(quick):
    """Those with all that they need; a name alone has to be that of a command."""
    prose = re.sub(r"^```.*?^```$", "", "\n".join(PAGES.values()), flags=re.MULTILINE | re.DOTALL)
    found = {" ".join(line.split()) for line in re.findall(COMMANDS, prose)}
    assert len(found) > 25
    for line in sorted(found):
        program, *words = line.split()
        if program == "fastaae" and len(words) == 1:
            assert words[0] in {*cli.COMMANDS, *cli.ON_RUNS, *cli.ON_EXAMPLES}, line
        else:
            (quick / "runs").mkdir(exist_ok=True)
            run_command(line)


def test_checkers_of_blocks_see_what_is_wrong(quick):
    with pytest.raises(AssertionError, match="expected\n2\n"):
        run_python("print(1 + 2)", {}, "2\n")
    for wrong in ("python bench/nothing.py", "make nothing", "pip install 'fastaae[nothing]'", "rm -r runs"):
        with pytest.raises(AssertionError):
            run_command(wrong)
    with pytest.raises(AssertionError):
        run_command("fastaae train nothing")


def test_paths_named_exist():
    for name, text in PAGES.items():
        told = re.findall(rf"`((?:{'|'.join(WIDE)})/[\w./*-]*|[A-Z]+\.md)`", text)
        for path in told:
            assert [*ROOT.glob(path)], f"{name}: {path}"
    assert len(re.findall(r"`bench/LOG\.md`", "".join(PAGES.values()))) > 5


def test_links_lead_to_pages_and_headings():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https://)([^)]+)\)", text):
            if target.endswith((".png", ".ipynb")):
                assert (ROOT / "docs" / target).is_file(), f"{name}: {target}"
                continue
            page, _, anchor = target.partition("#")
            assert page.removesuffix(".md") in PAGES, f"{name}: {target}"
            heads = re.findall(r"^#+ (.+)$", PAGES[page.removesuffix(".md")], re.MULTILINE)
            slugs = {re.sub(r"[^\w]+", "-", head.lower()).strip("-") for head in heads}
            assert not anchor or anchor in slugs, f"{name}: {target}"


def test_every_picture_is_shown_and_has_its_origin():
    shown = {target for text in PAGES.values() for target in re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", text)}
    made = {row["file"] for row in json.loads((ROOT / "bench" / "results" / "pictures.json").read_text("utf-8"))}
    there = {path.name for path in (ROOT / "docs" / "pictures").glob("*")}
    assert shown == there == made | {"hero.png"}


def test_days_of_the_log_that_are_named_have_entries():
    months = {"November": 11}
    log = (ROOT / "bench" / "LOG.md").read_text(encoding="utf-8")
    for name, text in PAGES.items():
        for day, month in re.findall(r"`bench/LOG\.md`,? (\d+)\s+(\w+)", text):
            assert f"-{months[month]}-{int(day):02} " in log, f"{name}: {day} {month}"


def test_experiments_name_every_preset():
    named = set(re.findall(r"`([\w-]+)`", PAGES["experiments"]))
    assert named >= set(fastaae.presets())


def test_reference_names_everything_public():
    listed = re.findall(r"^::: fastaae\.(\w+)$", PAGES["api"], re.MULTILINE)
    assert {*listed} == {*fastaae.__all__, "data", "figures", "estimators"} - {"__version__"}
    assert len(listed) == len({*listed}) and "`fastaae.__version__`" in PAGES["api"]
    for module, members in re.findall(
        r"^::: fastaae\.(data|figures|estimators|Config)\n.*\n +members: \[(.*)\]", PAGES["api"], re.M
    ):
        assert all(hasattr(getattr(fastaae, module), member) for member in members.split(", ")), module
    assert set(config.TYPES) <= set(re.findall(r"^\| [\w ]*\| `(\w+)` \|", PAGES["api"], re.MULTILINE))


def test_code_lists_every_file_once():
    folders = ("fastaae", "kernels", "bench", "examples")
    files = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).glob("**/*.py")}
    files = {path for path in files if not path.startswith("fastaae/kernels/")}  # a link, in some checkouts
    listed = re.findall(r"^- `([\w/.]+)`: ", PAGES["code"], re.MULTILINE)
    assert {*listed} == files and len(listed) == len(files)


def test_data_names_every_array_and_scale():
    assert all(f'`"{scale}"`' in PAGES["data"] for scale in config.CHOICES["scale"])
    assert all(f"`{name}`" in PAGES["data"] for name in fastaae.data.opened.__globals__["USUAL"])


def test_commands_are_all_shown():
    shown = "".join(PAGES.values())
    assert all(re.search(rf"fastaae {name}\b", shown) for name in (*cli.COMMANDS, *cli.ON_RUNS, *cli.ON_EXAMPLES))
