"""The page's HTML: places to draw in, and what an answer looks like."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Iterator

import numpy as np
from PIL import Image

from .answers import LINE, SKETCH, Answer

#: A JavaScript function that is to be called once, when the page is there.
SCRIPT = (Path(__file__).parent / "pads.js").read_text(encoding="utf-8")
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def pads(places: int) -> str:
    """The places to draw in: one for an example of each character, and one for the new character."""
    many = "two" if places == 2 else f"two to {('three', 'four', 'five')[places - 3]}"
    examples = "".join(_pad(str(number), f"example of character {number}") for number in range(1, places + 1))
    return (
        f"<style>{STYLE}</style><div class='maml-pads'>"
        f"<section><h3>An example each of {many} characters</h3><div>{examples}</div></section>"
        f"<section><h3>A new one</h3><div>{_pad('?', 'the new character')}</div></section></div>"
    )


def _pad(title, description):
    return (
        f"<figure><canvas class='maml-pad' width='{SKETCH}' height='{SKETCH}' data-line='{LINE}' role='img' "
        f"aria-label='{description}'></canvas><figcaption>{title} "
        f"<button type='button' aria-label='clear {description}'>clear</button></figcaption></figure>"
    )


def refusal(sentence: str) -> str:
    """Why there is no answer."""
    return f"<p class='maml-refusal' role='alert'>{html.escape(sentence)}</p>"


def answered(answer: Answer, sketches: list[np.ndarray]) -> str:
    """An answer.

    Args:
        answer: of `sketches`.
        sketches: uint8 (H, W), as they were given to `answers.answer`.
    """
    best = answer.probabilities.max()
    heads = [f"{_picture(sketches[number - 1])}{number}" for number in answer.characters]
    return (
        f"<p class='maml-answer' role='status'>{_picture(sketches[-1])} is character "
        f"<b>{answer.character}</b>, with probability {best:.0%}.</p><div class='maml-tables'>"
        + _table("With each example", "examples", heads, _rows_by_example(answer))
        + (_table("With each inner step", "steps", heads, _rows_by_step(answer)) if answer.by_step else "")
        + "</div>"
    )


def _rows_by_example(answer: Answer) -> Iterator[tuple]:
    for row in answer.by_example:
        yield ", ".join(map(str, answer.characters[: len(row)])), row, row is answer.by_example[-1]


def _rows_by_step(answer: Answer) -> Iterator[tuple]:
    for step, row in enumerate(answer.by_step):
        yield str(step), row, step == answer.steps


def _table(title, corner, heads, rows):
    """A table of probabilities; rows are (name, values, whether it is the answer)."""
    lines = [f"<tr><th>{corner}</th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for name, values, chosen in rows:
        cells = [f"<td style='--p:{value:.3f}'>{value:.1%}</td>" for value in values]
        cells += ["<td></td>"] * (len(heads) - len(cells))
        lines.append(f"<tr{' class=maml-chosen' * chosen}><th>{name}</th>{''.join(cells)}</tr>")
    return f"<table><caption>{title}</caption>{''.join(lines)}</table>"


def _picture(sketch):
    file = io.BytesIO()
    Image.fromarray(sketch).resize((56, 56), Image.BOX).save(file, "PNG")
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"
