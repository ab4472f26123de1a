"""Writes the tests' corpus: plain sentences, drawn from the words below with a fixed seed. Public domain (CC0).

`python tests/data/write_corpus.py` writes the same files every time. Runs of today and of a year from now train on one text,
whatever happens to the source code beside it.
"""

from __future__ import annotations

import random
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
FILES, PARAGRAPHS, SENTENCES = 36, 12, 8


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.replace("\n", " ").split(";")]


PEOPLE = _listed(
    """
the baker; the ferryman; our neighbour; an old teacher; the youngest of the sisters; the smith; a tired nurse;
the postman; the whole choir; a stranger from the valley; the carpenter; the fisherman's son; everybody on the
street; the gardener; two students; the woman at the mill; the night watchman; a painter; the bus driver; my
grandmother
"""
)
VERBS = _listed(
    """
carries; mends; borrows; paints; forgets; finds; counts; sells; lifts; cleans; measures; hides; draws;
remembers; buys; breaks; turns over; looks at; gives away; asks for
"""
)
THINGS = _listed(
    """
the long ladder; a bucket of tar; three planks; the red boat; an empty barrel; the village clock; a bag of
nails; the oldest map; warm bread; the broken fence; a wheel of cheese; the keys of the barn; two lamps; the
heavy table; a letter from the harbour; the blue door; wool for the winter; a basket of apples; the roof of
the school; the last of the firewood
"""
)
PLACES = _listed(
    """
behind the church; at the harbour; under the bridge; beside the river; in the cold barn; on the market square;
near the mill; at the end of the road; in the kitchen; on the northern slope; between two houses; by the well
"""
)
TIMES = _listed(
    """
Before sunrise; On Saturday; After the storm; In the first week of May; When the bell rings; Late in the
evening; Once a year; During the harvest; Every second morning; As soon as the ice is gone
"""
)
REASONS = _listed(
    """
because the rain will not wait; so that nobody has to do it alone; although the work is never paid; until the
light is gone; since the tide is low today; as their parents did before them; if there is coffee afterwards;
while the children watch; and nobody says a word; for it has to be ready by Sunday
"""
)
ADDITIONS = _listed(
    """
It takes {n} hours.; There were {n} of them in the end.; Only {n} years ago this was forest.; Nobody had asked
for it.; The dog sleeps through all of it.; Then they eat soup together.; It costs {n} crowns and a promise.;
The wind turns to the west.
"""
)


def sentence(draw: random.Random) -> str:
    who, does, what, where = (draw.choice(words) for words in (PEOPLE, VERBS, THINGS, PLACES))
    match draw.randrange(5):
        case 0:
            return f"{draw.choice(TIMES)} {who} {does} {what} {where}."
        case 1:
            return f"{who.capitalize()} {does} {what}, {draw.choice(REASONS)}."
        case 2:
            return (
                f"{who.capitalize()} {does} {what} {where}, and {draw.choice(PEOPLE)} {draw.choice(VERBS)} {draw.choice(THINGS)}."
            )
        case 3:
            return f'"Who {does} {what}?" asks {who}. {draw.choice(PEOPLE).capitalize()} points to a place {where}.'
        case _:
            return draw.choice(ADDITIONS).format(n=draw.randrange(2, 60))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for number in range(FILES):
        draw = random.Random(number)
        paragraphs = (" ".join(sentence(draw) for _ in range(SENTENCES)) for _ in range(PARAGRAPHS))
        (FOLDER / f"{number:02d}.txt").write_text("\n\n".join(paragraphs) + "\n")


if __name__ == "__main__":
    main()
