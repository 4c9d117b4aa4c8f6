"""Scenes of coloured shapes, their captions under the six GenEval tags, and which captions are held out.

An image is 64 x 64 pixels: up to five shapes of one size on a plain background, centres on an 8-pixel lattice, none
touching another. A caption and its requirements are one metadata entry in GenEval's format, the caption as `prompt`.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

SIZE = 64
RADIUS = 8
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (150, 50, 175),
    "black": (30, 30, 30),
}
BACKGROUND = (240, 240, 240)
RELATIONS = ("left of", "right of", "above", "below")
ARTICLES = ("a", "one", "a single")
NUMBERS = ("two", "three", "four")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
SINGULAR = {word: shape for shape, plural in PLURALS.items() for word in (shape, plural)}
LATTICE = np.arange(12, SIZE - 8, 8)
GAP = 2 * RADIUS  # smallest distance of two centres along one axis
EVALUATION_PROMPTS_PER_TAG = 50


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; x, y is its centre in pixels, y downwards."""

    shape: str
    colour: str
    x: int
    y: int


Scene = list[Shape]


def shape_mask(shape: str, radius: int = RADIUS) -> np.ndarray:
    """Bool [2r + 1, 2r + 1]: the pixels of a shape around its centre."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    match shape:
        case "circle":
            return x**2 + y**2 <= (radius - 0.5) ** 2
        case "square":
            return np.maximum(abs(x), abs(y)) <= radius - 2
        case "triangle":
            return (abs(x) <= (y + radius - 1) / 2) & (y <= radius - 2)
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 2) & (np.maximum(abs(x), abs(y)) < radius)
    raise ValueError(f"unknown shape {shape!r}")


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8 [64, 64, 3]."""
    image = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    for s in scene:
        window = image[s.y - RADIUS : s.y + RADIUS + 1, s.x - RADIUS : s.x + RADIUS + 1]
        window[shape_mask(s.shape)] = COLOURS[s.colour]
    return image


def captions() -> dict[bool, dict[str, list[dict]]]:
    """All metadata entries, by whether they are held out and by tag.

    Held out are fixed combinations, chosen so that every word occurs in training: no held-out caption is ever shown in
    pretraining, SFT or RL.
    """
    split: dict[bool, dict[str, list[dict]]] = {True: {}, False: {}}

    def add(held_out: bool, tag: str, prompt: str, *include: dict, exclude: tuple[dict, ...] = ()) -> None:
        entry = {"tag": tag, "include": list(include), "prompt": prompt}
        split[held_out].setdefault(tag, []).append(entry | ({"exclude": list(exclude)} if exclude else {}))

    shapes, colours = list(enumerate(SHAPES)), list(enumerate(COLOURS))
    for (i, a), (n, article) in product(shapes, enumerate(ARTICLES)):
        add((i - n) % 3 == 0, "single_object", f"{article} {a}", _required(a))
    for (i, a), (j, b) in product(shapes, shapes):
        if a != b:
            add((j - i) % 4 == 1, "two_object", f"a {a} and a {b}", _required(a), _required(b))
    for (i, a), (n, number) in product(shapes, enumerate(NUMBERS)):
        plural = PLURALS[a]
        too_many = {"class": a, "count": n + 3}
        add(i == n, "counting", f"{number} {plural}", _required(a, n + 2), exclude=(too_many,))
    for (i, a), (k, colour) in product(shapes, colours):
        add((k - i) % 4 == 0, "colors", f"a {colour} {a}", _required(a, 1, colour))
    for (i, a), (j, b), (r, relation) in product(shapes, shapes, enumerate(RELATIONS)):
        if a != b:
            include = _required(b), _required(a) | {"position": [relation, 0]}
            add((i + j + r) % 4 == 0, "position", f"a {a} {relation} a {b}", *include)
    for (i, a), (j, b), (k, first), (m, second) in product(shapes, shapes, colours, colours):
        if a != b and first != second:
            include = _required(a, 1, first), _required(b, 1, second)
            add((i + 2 * j + k + 3 * m) % 5 == 0, "color_attr", f"a {first} {a} and a {second} {b}", *include)
    return split


def _required(shape: str, count: int = 1, colour: str | None = None) -> dict:
    return {"class": shape, "count": count} | ({"color": colour} if colour else {})


def metadata() -> list[dict]:
    """The entries of all captions, held out or not."""
    return [entry for tags in _CAPTIONS.values() for entries in tags.values() for entry in entries]


def evaluation_prompts() -> list[dict]:
    """300 held-out prompts, 50 per tag; where a tag has fewer captions they repeat (each time with other samples)."""
    random = np.random.default_rng(20250415)
    prompts = []
    for entries in _CAPTIONS[True].values():
        order = random.permutation(len(entries))
        prompts += [entries[order[i % len(entries)]] for i in range(EVALUATION_PROMPTS_PER_TAG)]
    return prompts


def rl_prompts() -> list[str]:
    """The training captions, each tag about equally often."""
    tags = _CAPTIONS[False].values()
    longest = max(len(entries) for entries in tags)
    return [entry["prompt"] for entries in tags for entry in entries * round(longest / len(entries))]


def sample_scene(entry: dict, random: np.random.Generator, clutter: int = 0) -> Scene:
    """A scene that meets a metadata entry, with `clutter` more shapes that it does not speak of."""
    while True:
        required = [r for r in entry["include"] for _ in range(r["count"])]
        excluded = {r["class"] for r in entry.get("exclude", [])}
        extra = [{"class": str(random.choice([s for s in SHAPES if s not in excluded]))} for _ in range(clutter)]
        places = _places(len(required) + clutter, random)
        if places is None or not _relation_holds(entry, places):
            continue
        return [
            Shape(r["class"], r.get("color") or str(random.choice(list(COLOURS))), x, y)
            for r, (x, y) in zip(required + extra, places, strict=True)
        ]


def crowded_images(number: int, seed: int) -> np.ndarray:
    """Images with as many shapes as fit easily, uint8 [number, 64, 64, 3]: what the tokenizer learns most from."""
    random = np.random.default_rng((seed, 3))
    entry = {"tag": "single_object", "include": []}
    return np.stack([render(sample_scene(entry, random, clutter=5)) for _ in range(number)])


def _places(number: int, random: np.random.Generator) -> list[tuple[int, int]] | None:
    """Centres that keep their distance, or None if the draw ran into a corner."""
    places: list[tuple[int, int]] = []
    for _ in range(20 * number):
        x, y = (int(v) for v in random.choice(LATTICE, 2))
        if all(max(abs(x - u), abs(y - v)) >= GAP for u, v in places):
            places.append((x, y))
        if len(places) == number:
            return places
    return None


def _relation_holds(entry: dict, places: list[tuple[int, int]]) -> bool:
    """Whether the second place stands to the first as the entry asks, clearly: more along the axis than across."""
    if entry["tag"] != "position":
        return True
    relation = entry["include"][1]["position"][0]
    dx, dy = places[1][0] - places[0][0], places[1][1] - places[0][1]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return sign * along >= GAP and abs(across) < abs(along)


def pretrain_samples(number: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Broad, noisy data: a third of the scenes hold a shape that the caption leaves out, one caption in seven is wrong.

    Returns captions and images, uint8 [number, 64, 64, 3].
    """
    random = np.random.default_rng((seed, 1))
    entries, others = _drawn(number, random), _drawn(number, random)
    scenes = [sample_scene(entry, random, clutter=int(random.choice([0, 0, 1]))) for entry in entries]
    wrong = random.random(number) < 1 / 7
    texts = [(other if w else entry)["prompt"] for w, entry, other in zip(wrong, entries, others, strict=True)]
    return texts, np.stack([render(scene) for scene in scenes])


def sft_samples(number: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Clean, curated data: every scene holds exactly what its caption says. Returns captions and images."""
    random = np.random.default_rng((seed, 2))
    entries = _drawn(number, random)
    return [entry["prompt"] for entry in entries], np.stack([render(sample_scene(e, random)) for e in entries])


def pair_samples(number: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Pairs for preferences: of each caption a scene that holds what it says, and the same scene with one thing wrong.

    Returns captions and the images of both.
    """
    random = np.random.default_rng((seed, 4))
    entries = _drawn(number, random)
    good = [sample_scene(entry, random) for entry in entries]
    bad = [spoiled(entry, scene, random) for entry, scene in zip(entries, good, strict=True)]
    chosen, rejected = (np.stack([render(scene) for scene in scenes]) for scenes in (good, bad))
    return [entry["prompt"] for entry in entries], chosen, rejected


def spoiled(entry: dict, scene: Scene, random: np.random.Generator) -> Scene:
    """The scene without a shape that is counted, with two places exchanged, or with another colour or shape."""
    first, *others = scene
    if entry["tag"] == "counting":
        return others
    if entry["tag"] == "position":
        second = others[0]
        return [replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)]
    if "color" in entry["include"][0]:
        return [replace(first, colour=str(random.choice([c for c in COLOURS if c != first.colour]))), *others]
    asked = {required["class"] for required in entry["include"]}
    return [replace(first, shape=str(random.choice([s for s in SHAPES if s not in asked]))), *others]


def _drawn(number: int, random: np.random.Generator) -> list[dict]:
    """Training entries, every tag equally often; half of them with the long caption (SimpleAR draws 50 : 50 too)."""
    tags = list(_CAPTIONS[False].values())
    short = [tags[t][int(random.integers(len(tags[t])))] for t in random.integers(len(tags), size=number)]
    return [detailed(entry, random) if random.random() < 0.5 else entry for entry in short]


def detailed(entry: dict, random: np.random.Generator) -> dict:
    """The entry with a colour for every shape that had none, in its caption too, unless that caption is held out."""
    colours = {r["class"]: r.get("color") or str(random.choice(list(COLOURS))) for r in entry["include"]}
    words = [
        f"{colours[SINGULAR[word]]} {word}" if word in SINGULAR and SINGULAR[word] in colours else word
        for word in entry["prompt"].split()
    ]
    if any("color" in r for r in entry["include"]) or " ".join(words) in _HELD_OUT:
        return entry
    return entry | {
        "prompt": " ".join(words),
        "include": [r | {"color": colours[r["class"]]} for r in entry["include"]],
    }


_CAPTIONS = captions()
_HELD_OUT = {entry["prompt"] for entries in _CAPTIONS[True].values() for entry in entries}
WORDS = sorted(
    {word for tags in _CAPTIONS.values() for es in tags.values() for e in es for word in e["prompt"].split()}
)
