"""Writes docs/attacks: a page per attack from its docstring and options, with a picture of it at work on `digits`.

python docs/attack_pages.py              # the words; a test asks that they are up to date
python docs/attack_pages.py --pictures   # trains a small network first; a few minutes
"""

import inspect
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pellucid import registry

HERE = Path(__file__).parent / "attacks"
MODEL = Path("runs/docs/model")
QUICK = {  # where the default would take minutes on a laptop
    "ensemble": "ensemble(ball=Linf(0.15), queries=500)",
    "square": "square(ball=Linf(0.15), queries=1000)",
}


def page(name: str, function: Callable[..., Any]) -> str:
    """The Markdown of one attack."""
    doc = inspect.cleandoc(function.__doc__ or "")
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in registry.NOT_OPTIONS
    ]
    rows = [f"| `{p.name}` | `{registry.describe(p.default)}` | {_kind(p.annotation)} |" for p in parameters]
    table = ["| option | default | kind |", "|---|---|---|", *rows] if rows else ["No options."]
    command = f'pellucid attack --model runs/a --data digits --attack "{spec(name, function)}"'
    source = f"src/{function.__module__.replace('.', '/')}.py"
    return "\n".join(
        [
            f"# {name}",
            "",
            doc,
            "",
            *table,
            "",
            f"    {command}",
            "",
            f"![images, perturbations and attacked images]({name}.png)",
            "",
            f"Code: [`{source}`](../../{source}). This page is written by `docs/attack_pages.py` from the docstring.",
            "",
        ]
    )


def spec(name: str, function: Callable[..., Any]) -> str:
    """A specification to show: a radius of 0.15 in Linf where the attack takes a ball."""
    if name in QUICK:
        return QUICK[name]
    parameter = inspect.signature(function).parameters.get("ball")
    return f"{name}(ball=Linf(0.15))" if parameter is not None and parameter.default is not None else name


def _kind(annotation: Any) -> str:
    """An annotation in words: `float or None`, `'ce' or 'margin'`, `Ball`."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value!r}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in typing.get_args(annotation)))
    name = getattr(annotation, "__name__", str(annotation)).replace("NoneType", "None")
    return str(annotation).replace("|", "or") if typing.get_args(annotation) else name


def index() -> str:
    """The list of all attacks, one line each."""
    lines = []
    for name, function in registry.public("attacks").items():
        first = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"- [`{name}`]({name}.md): {first}")
    intro = "Every attack, by name. `pellucid list attacks` shows the same list with the options."
    return "\n".join(["# Attacks", "", intro, "", *lines, ""])


def pages() -> dict[str, str]:
    """File name to text."""
    found = {f"{name}.md": page(name, function) for name, function in registry.public("attacks").items()}
    return found | {"README.md": index()}


def _draw() -> None:
    pellucid = str(Path(sys.executable).parent / "pellucid")
    if not (MODEL / "model.safetensors").is_file():
        train = "train --data digits --arch small --steps 600 --seed 0 --quiet --out"
        subprocess.run([pellucid, *train.split(), str(MODEL)], check=True)
    for name, function in registry.public("attacks").items():
        picture = str(HERE / f"{name}.png")
        words = ["--model", str(MODEL), "--data", "digits", "--images", "8", "--picture", picture]
        subprocess.run([pellucid, "attack", *words, "--attack", spec(name, function)], check=True)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
    if "--pictures" in sys.argv[1:]:
        _draw()


if __name__ == "__main__":
    main()
