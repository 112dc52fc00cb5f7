"""The documentation says what the code does."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from pellucid import registry

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def attack_pages() -> ModuleType:
    """The script that writes the attacks' pages."""
    spec = importlib.util.spec_from_file_location("attack_pages", DOCS / "attack_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_attack_has_a_page_that_is_up_to_date(attack_pages: ModuleType) -> None:
    """Word for word what `python docs/attack_pages.py` would write, and a picture beside it."""
    for name, text in attack_pages.pages().items():
        path = DOCS / "attacks" / name
        assert path.is_file(), f"python docs/attack_pages.py writes {name}"
        assert path.read_text(encoding="utf-8") == text, f"python docs/attack_pages.py brings {name} up to date"
    for name in registry.public("attacks"):
        assert (DOCS / "attacks" / f"{name}.png").is_file(), "python docs/attack_pages.py --pictures"


def test_the_shown_commands_can_be_parsed(attack_pages: ModuleType) -> None:
    """Each page's specification names an attack and options that exist."""
    for name, function in registry.public("attacks").items():
        assert callable(registry.parse(attack_pages.spec(name, function), "attacks"))


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("**/*.md")), DOCS.parent / "README.md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    """Relative links and pictures exist."""
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_docstrings_of_attacks_name_a_source() -> None:
    """Every attack says where it comes from, or that it is ours."""
    for name, function in registry.public("attacks").items():
        assert re.search(r"\bSources?\b|\bDeviations?\b|\bours\b", function.__doc__ or ""), name


def test_every_objective_in_the_docs_can_be_given() -> None:
    """What stands behind --objective parses; a sweep's {} is a number. But for what is the reader's own, in a file."""
    found = [
        spec for page in sorted(DOCS.glob("*.md")) for spec in re.findall(r'--objective "(.*?)"', page.read_text())
    ]
    assert len(found) > 10
    for spec in found:
        if ":" in spec.partition("(")[0]:
            continue
        registry.parse(spec.replace("{}", "1"), "objectives")
