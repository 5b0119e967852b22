"""What the code has, the pages have: generated pages are fresh, and nothing that a reader could meet is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import msgspec
import pytest
from click.testing import CliRunner

from p2pkv import config, errors, local_wire
from p2pkv.cli.main import cli
from p2pkv.demo import report
from p2pkv.metrics import Metrics
from p2pkv.transport import wire

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return [line.lstrip("#").strip() for line in FENCE.sub("", text).splitlines() if line.startswith("#")]


def commands(command: click.Command, path: str = "p2pkv") -> dict[str, click.Command]:
    found = {path: command}
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found |= commands(child, f"{path} {name}")
    return found


def prose_pages() -> list[Path]:
    pages = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts and REFERENCE not in path.parents]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(pages)]


# -- freshness ------------------------------------------------------------------------------------------------------


def test_generated_pages_are_fresh(generate: ModuleType) -> None:
    assert generate.stale() == [], "run make generated"


def test_the_check_says_in_one_line_what_to_run(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "run make generated" in said
    assert list(tmp_path.iterdir()) == []


def test_writing_makes_the_check_pass(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "reference")
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert generate.stale() == []


def test_pages_do_not_depend_on_the_terminal_or_the_environment() -> None:
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    odd = {"COLUMNS": "40", "LINES": "3", "TERM": "dumb", "P2PKV_NODE_NAME": "x", "FORCE_COLOR": "1", "LANG": "C"}
    result = subprocess.run(command, env=os.environ | odd, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


# -- completeness ---------------------------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    text = text_of("config.md")
    for name, section in config.sections().items():
        part = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for field, _, _, description in config.describe(section):
            assert f"| `{field}` |" in part, f"{name}.{field}"
            assert description, f"{name}.{field} has no description"


def test_every_command_and_option_is_documented() -> None:
    text = text_of("cli.md")
    for path, command in commands(cli).items():
        assert path in headings(text)
        part = text.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert option in part, f"{path} {option}"


@pytest.mark.parametrize("path", commands(cli))
def test_the_help_in_the_page_is_what_the_command_prints(path: str) -> None:
    arguments = [*path.split()[1:], "--help"]
    result = CliRunner().invoke(cli, arguments, prog_name="p2pkv", terminal_width=100)
    assert result.exit_code == 0
    assert f"```text\n{result.stdout.rstrip()}\n```" in text_of("cli.md")


def test_every_metric_is_documented() -> None:
    text = text_of("metrics.md")
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}` |" in text
        assert family.documentation in text


@pytest.mark.parametrize("module", [wire, local_wire])
def test_every_message_is_documented(module: ModuleType) -> None:
    names = headings(text_of("wire.md"))
    structs = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
    ]
    assert structs
    for struct in structs:
        if struct not in {wire.Message, local_wire.LocalMessage}:
            assert struct.__name__ in names
            assert struct.__doc__


def test_every_error_is_documented() -> None:
    text = text_of("errors.md")
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 10
    for error in classes:
        assert f"| `{error.__name__}` |" in text
        assert error.__doc__


def test_every_error_is_in_the_tree_that_its_module_shows() -> None:
    assert errors.__doc__ is not None
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert re.search(rf"\b{name}\b", errors.__doc__), name


def test_every_fact_and_claim_of_the_demo_is_explained() -> None:
    text = (DOCS / "benchmarks" / "demo.md").read_text(encoding="utf-8")
    for struct in (report.Facts, report.Claims):
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"^\| .*`{field.name}`.* \|", text, re.MULTILINE), field.name


def test_the_values_of_every_label_are_explained() -> None:
    labels = {label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())}
    text = (DOCS / "guides" / "operating.md").read_text(encoding="utf-8")
    for label in sorted(labels):
        assert f"| `{label}` |" in text


# -- what people type -----------------------------------------------------------------------------------------------


def console_lines(page: Path) -> list[str]:
    blocks = CONSOLE.findall(page.read_text(encoding="utf-8"))
    joined = "".join(blocks).replace("\\\n", " ")
    return [line[2:].split(" #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("page", prose_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    known = commands(cli)
    for line in console_lines(page):
        words = line.replace(".venv/bin/p2pkv", "p2pkv").split()
        if words[0] != "p2pkv":
            continue
        path = "p2pkv"
        while len(words) > 1 and f"{path} {words[1]}" in known:
            path = f"{path} {words.pop(1)}"
        assert path != "p2pkv" or words[1].startswith("-"), line
        options = {option for parameter in known[path].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options | {"--help", "-"}, line  # -: standard input


@pytest.mark.parametrize("page", prose_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_in_pages_exist(page: Path) -> None:
    files = [ROOT / "Makefile", *(ROOT / "make").glob("*.mk")]
    targets = {match for file in files for match in re.findall(r"^([a-z-]+):", file.read_text(), re.MULTILINE)}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("page", prose_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_named_in_pages_exist(page: Path) -> None:
    sections = config.sections()
    known = {f"{name}.{field}" for name, section in sections.items() for field, *_ in config.describe(section)}
    pattern = rf"`((?:{'|'.join(sections)})\.(?!py`)[a-z_]+)(?: = [^`]*)?`"
    assert set(re.findall(pattern, page.read_text(encoding="utf-8"))) <= known


def test_the_first_screen_of_the_readme_has_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24]
    assert any(line.startswith("$ make demo") for line in lines)
    assert any(line.startswith("$ make test") for line in lines)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "changes" / "README.md"])
def test_links_outside_the_built_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_fragment_of_the_changelog_has_a_kind() -> None:
    kinds = {"breaking", "feature", "fix", "doc", "misc"}
    for fragment in (ROOT / "changes").iterdir():
        if fragment.name != "README.md":
            assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(kinds)})\.md", fragment.name), fragment.name
            assert fragment.read_text(encoding="utf-8").strip()
