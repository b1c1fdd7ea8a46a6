"""Questions about a scene, with answers that are true by construction."""

from .things import COLOURS, NUMBERS, SHAPES, THINGS, WORDS, article, plural

CAPTION = ["Describe the image.", "Describe the picture.", "What is in the image?",
           "What do you see?", "What is in the picture?", "What does the image show?"]
KINDS = ["caption", "what", "colour", "shape", "count", "presence", "where", "read"]


def full_name(o):
    if o["kind"] == "shape":
        return f"{o['colour']} {o['name']}"
    return o["name"]


def said(o):
    """An object as it appears in an answer."""
    if o["kind"] == "word":
        return f"the word {o['name']}"
    return article(full_name(o))


def groups(objects):
    """Equal objects together, ordered from left to right by their leftmost member."""
    table = {}
    for o in sorted(objects, key=lambda o: o["x"]):
        table.setdefault((o["kind"], full_name(o)), []).append(o)
    return list(table.values())


def caption(objects):
    parts = []
    for g in groups(objects):
        parts.append(said(g[0]) if len(g) == 1 else f"{NUMBERS[len(g)]} {plural(full_name(g[0]))}")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def required_names(objects):
    """What a caption must name; plurals contain the singular, so this is a substring test."""
    return [full_name(g[0]) for g in groups(objects)]


def side_word(value, low, high, margin=0.045):
    """low, high or '' for one axis; None when the object is too near a border to say."""
    for border in (0.36, 0.64):
        if abs(value - border) < margin:
            return None
    return low if value < 0.36 else high if value > 0.64 else ""


def where(o):
    vertical, horizontal = side_word(o["y"], "top", "bottom"), side_word(o["x"], "left", "right")
    if vertical is None or horizontal is None:
        return None
    return " ".join(w for w in (vertical, horizontal) if w) or "center"


def ask(rng, objects, count=8, kinds=None, captions=1):
    """Returns a list of (kind, question, answer): `captions` captions, then `count` others.

    Kinds that a scene cannot answer without doubt are not asked about it.
    """
    out = [("caption", q, caption(objects)) for q in rng.sample(CAPTION, captions)]
    shapes = [o for o in objects if o["kind"] == "shape"]
    things = [o for o in objects if o["kind"] == "thing"]
    word = next((o for o in objects if o["kind"] == "word"), None)
    names = [o["name"] for o in objects if o["kind"] != "word"]
    counts = {n: names.count(n) for n in names}
    single = [o for o in objects if o["kind"] == "word" or counts[o["name"]] == 1]
    makers = {}

    def what():
        axis, low, high = rng.choice([("x", "left", "right"), ("y", "top", "bottom")])
        first, second = rng.choice([(low, 1), (high, -1)])
        order = sorted(objects, key=lambda o: second * o[axis])
        if len(order) < 2 or abs(order[0][axis] - order[1][axis]) < 0.12:
            return None
        side = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}[first]
        return rng.choice([f"What is {side}?", f"What do you see {side}?", f"What is {side} of the image?"]), said(order[0])

    def colour():
        unique = [o for o in shapes if counts[o["name"]] == 1]
        same = [o for o in shapes if len({p["colour"] for p in shapes if p["name"] == o["name"]}) == 1]
        pool = unique or same
        if not pool:
            return None
        o = rng.choice(pool)
        if counts[o["name"]] == 1:
            return rng.choice(["What colour is the {}?", "What color is the {}?", "Which colour is the {}?",
                               "Which color is the {}?"]).format(o["name"]), o["colour"]
        return rng.choice(["What colour are the {}?", "What color are the {}?"]).format(plural(o["name"])), o["colour"]

    def shape():
        unique = [o for o in shapes if sum(p["colour"] == o["colour"] for p in shapes) == 1]
        if not unique:
            return None
        o = rng.choice(unique)
        return rng.choice(["Which shape is {}?", "What shape is {}?", "What is the {} shape?"]).format(o["colour"]), o["name"]

    def how_many():
        if rng.random() < 0.12:
            return rng.choice(["How many objects are there?", "How many objects are in the image?"]), NUMBERS[len(objects)]
        if not names or rng.random() < 0.08:
            name = rng.choice([n for n in list(THINGS) + SHAPES if n not in counts])
        else:
            name = rng.choice(list(counts))
        return rng.choice(["How many {} are there?", "How many {} are in the image?", "How many {} do you see?"]).format(
            plural(name)), NUMBERS[counts.get(name, 0)]

    def presence():
        yes = rng.random() < 0.5
        if yes:
            o = rng.choice(objects)
            name = full_name(o) if rng.random() < 0.5 or o["kind"] != "shape" else o["name"]
            if o["kind"] == "word":
                name = "word"
        else:
            present = {full_name(o) for o in objects}
            kind = rng.random()
            if shapes and kind < 0.35:
                # The hardest kind of no: the shape is there, but in another colour.
                o = rng.choice(shapes)
                name = f"{rng.choice(list(COLOURS))} {o['name']}"
            elif kind < 0.55:
                name = rng.choice(SHAPES)
                if rng.random() < 0.5:
                    name = f"{rng.choice(list(COLOURS))} {name}"
            elif kind < 0.62 and not word:
                name = "word"
            else:
                name = rng.choice(list(THINGS))
            if name in present or name in counts:
                return None
        q = rng.choice(["Is there {} in the image?", "Is there {}?", "Do you see {}?", "Can you see {}?"])
        return q.format(article(name)), "yes" if yes else "no"

    def position():
        pool = [(o, where(o)) for o in single]
        pool = [(o, w) for o, w in pool if w]
        if not pool:
            return None
        o, w = rng.choice(pool)
        name = "word" if o["kind"] == "word" else o["name"]
        return rng.choice(["Where is the {}?", "Where is the {} in the image?", "In which part of the image is the {}?"]).format(name), w

    def read():
        if not word and rng.random() < 0.8:
            return None
        return rng.choice(["What does it say?", "What word is written?", "What does the text say?", "Read the word."]), \
            word["name"] if word else "nothing"

    makers = {"what": what, "colour": colour, "shape": shape, "count": how_many,
              "presence": presence, "where": position, "read": read}
    order = list(kinds or makers)
    # Counting and presence apply to every scene; weights keep the rarer kinds from starving.
    weights = [{"count": 1.4, "presence": 1.4, "read": 1.2, "colour": 1.2}.get(k, 1.0) for k in order]
    seen = {q for _, q, _ in out}
    for attempt in range(count * 12):
        if len(out) >= count + captions:
            break
        kind = rng.choices(order, weights)[0]
        made = makers[kind]()
        if made and made[0] not in seen:
            seen.add(made[0])
            out.append((kind, *made))
    return out
