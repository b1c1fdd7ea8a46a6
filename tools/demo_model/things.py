"""The closed world of the drawn scenes: things, shapes, colours and printed words.

Every plural is regular and no name is contained in another, so "is the name in the answer?" is a
fair test of a caption.
"""

# Plain English name -> glyph of Noto Color Emoji.  Chosen to look different when only a few
# centimetres of screen, or two or three patches of the vision tower, are left for each.
THINGS = {
    "dog": "🐶", "cat": "🐱", "rabbit": "🐰", "fox": "🦊", "panda": "🐼", "koala": "🐨",
    "tiger": "🐯", "lion": "🦁", "cow": "🐮", "pig": "🐷", "frog": "🐸", "monkey": "🐵",
    "chicken": "🐔", "penguin": "🐧", "owl": "🦉", "unicorn": "🦄", "bee": "🐝", "snail": "🐌",
    "turtle": "🐢", "octopus": "🐙", "crab": "🦀", "whale": "🐳", "elephant": "🐘", "flamingo": "🦩",
    "rose": "🌹", "sunflower": "🌻", "cactus": "🌵", "tree": "🌳", "mushroom": "🍄",
    "apple": "🍎", "banana": "🍌", "watermelon": "🍉", "lemon": "🍋", "carrot": "🥕",
    "pizza": "🍕", "burger": "🍔", "donut": "🍩", "cake": "🎂", "egg": "🍳", "cookie": "🍪",
    "taxi": "🚕", "bus": "🚌", "tractor": "🚜", "bicycle": "🚲", "airplane": "✈", "rocket": "🚀",
    "boat": "⛵", "house": "🏠", "umbrella": "☔", "clock": "⏰", "book": "📕", "guitar": "🎸",
    "trumpet": "🎺", "drum": "🥁", "balloon": "🎈", "gift": "🎁", "hammer": "🔨", "bulb": "💡",
    "camera": "📷", "phone": "📱", "hat": "🎩", "shoe": "👟", "crown": "👑", "football": "⚽",
    "robot": "🤖", "ghost": "👻", "snowman": "⛄", "pumpkin": "🎃", "moon": "🌙", "rainbow": "🌈",
    "flame": "🔥",
}

SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring"]

COLOURS = {
    "red": (214, 30, 36), "orange": (245, 135, 15), "yellow": (248, 222, 30),
    "green": (30, 150, 55), "blue": (28, 80, 214), "purple": (130, 40, 165),
    "black": (18, 18, 20), "white": (250, 250, 250),
}

WORDS = [
    "stop", "open", "exit", "sale", "push", "pull", "cafe", "hotel", "bank", "park", "zoo",
    "shop", "hello", "yes", "no", "left", "right", "up", "down", "danger", "slow", "fast", "hot",
    "cold", "free", "new", "old", "milk", "tea", "coffee", "water", "love", "peace", "home",
    "school", "music", "happy", "go", "wait", "lunch", "sport", "gold", "lucky", "winter", "summer",
    "magic", "rain",
]

NUMBERS = ["zero", "one", "two", "three", "four", "five"]


def plural(name):
    if name.endswith(("s", "x", "sh", "ch")):
        return name + "es"
    return name + "s"


def article(name):
    return ("an " if name[0] in "aeio" or name == "umbrella" else "a ") + name


def check():
    names = list(THINGS) + SHAPES + list(COLOURS)
    for a in names:
        for b in names + WORDS:
            assert a is b or a not in b, (a, b)
    assert not set(WORDS) & set(names)


check()
