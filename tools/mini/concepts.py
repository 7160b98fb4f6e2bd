"""The 65 concepts of the mini benchmark: 48 base, 17 novel, as OV-COCO splits them.

Each concept is one OpenMoji drawing. A novel concept stands next to base concepts of the same kind
(dog among horse and sheep, bus among car and truck), so that its name lies near theirs for a text
tower. None of them shows in the photos that serve as backgrounds.
"""

from typing import NamedTuple


class Concept(NamedTuple):
    """One concept: ``code`` is the emoji's code point in hexadecimal, as OpenMoji names its files."""

    name: str
    code: str
    plural: str
    synonyms: tuple[str, ...]
    novel: bool = False


def plural_of(noun: str) -> str:
    """Regular English plural; the synonyms below are chosen so that it is the right one."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


NOVEL = True

# In the order of the category ids, which start at 1.
CONCEPTS = (
    Concept("horse", "1F40E", "horses", ("stallion", "mare")),
    Concept("dog", "1F415", "dogs", ("hound", "pup"), NOVEL),
    Concept("sheep", "1F411", "sheep", ("ewe", "lamb")),
    Concept("cow", "1F404", "cows", ("heifer", "dairy cow"), NOVEL),
    Concept("pig", "1F416", "pigs", ("hog", "piglet")),
    Concept("rabbit", "1F407", "rabbits", ("hare",)),
    Concept("elephant", "1F418", "elephants", ("african elephant",), NOVEL),
    Concept("giraffe", "1F992", "giraffes", ("tall giraffe",)),
    Concept("zebra", "1F993", "zebras", ("striped zebra",)),
    Concept("camel", "1F42A", "camels", ("desert camel",)),
    Concept("tiger", "1F405", "tigers", ("bengal tiger", "tiger cub")),
    Concept("lion", "1F981", "lions", ("lion head",), NOVEL),
    Concept("bear", "1F43B", "bears", ("brown bear", "grizzly")),
    Concept("duck", "1F986", "ducks", ("mallard",)),
    Concept("penguin", "1F427", "penguins", ("emperor penguin",), NOVEL),
    Concept("owl", "1F989", "owls", ("barn owl", "night owl")),
    Concept("turtle", "1F422", "turtles", ("tortoise",)),
    Concept("crab", "1F980", "crabs", ("king crab",)),
    Concept("lobster", "1F99E", "lobsters", ("langoustine",), NOVEL),
    Concept("bee", "1F41D", "bees", ("honeybee", "bumblebee")),
    Concept("car", "1F697", "cars", ("automobile", "hatchback")),
    Concept("bus", "1F68C", "buses", ("coach", "tour bus"), NOVEL),
    Concept("truck", "1F69A", "trucks", ("van", "delivery van")),
    Concept("train", "1F682", "trains", ("locomotive", "steam engine")),
    Concept("bicycle", "1F6B2", "bicycles", ("bike",)),
    Concept("airplane", "2708", "airplanes", ("plane", "jet"), NOVEL),
    Concept("helicopter", "1F681", "helicopters", ("chopper",)),
    Concept("sailboat", "26F5", "sailboats", ("sailing boat", "yacht")),
    Concept("skateboard", "1F6F9", "skateboards", ("longboard",), NOVEL),
    Concept("kite", "1FA81", "kites", ("toy kite",)),
    Concept("apple", "1F34E", "apples", ("red apple",)),
    Concept("banana", "1F34C", "bananas", ("ripe banana",)),
    Concept("lemon", "1F34B", "lemons", ("citron",), NOVEL),
    Concept("pear", "1F350", "pears", ("green pear",)),
    Concept("strawberry", "1F353", "strawberries", ("garden strawberry",)),
    Concept("pineapple", "1F34D", "pineapples", ("ananas",)),
    Concept("tomato", "1F345", "tomatoes", ("pomodoro",), NOVEL),
    Concept("carrot", "1F955", "carrots", ("garden carrot",)),
    Concept("pizza", "1F355", "pizzas", ("pizza slice",)),
    Concept("hamburger", "1F354", "hamburgers", ("burger", "cheeseburger")),
    Concept("donut", "1F369", "donuts", ("doughnut",)),
    Concept("cake", "1F382", "cakes", ("birthday cake", "gateau"), NOVEL),
    Concept("cookie", "1F36A", "cookies", ("biscuit",)),
    Concept("croissant", "1F950", "croissants", ("butter croissant",)),
    Concept("chair", "1FA91", "chairs", ("dining chair",)),
    Concept("couch", "1F6CB", "couches", ("sofa", "settee"), NOVEL),
    Concept("bed", "1F6CF", "beds", ("single bed",)),
    Concept("clock", "23F0", "clocks", ("alarm clock",)),
    Concept("book", "1F4D5", "books", ("hardback", "paperback")),
    Concept("laptop", "1F4BB", "laptops", ("notebook computer",)),
    Concept("keyboard", "2328", "keyboards", ("computer keyboard",), NOVEL),
    Concept("television", "1F4FA", "televisions", ("tv", "flat screen")),
    Concept("backpack", "1F392", "backpacks", ("rucksack",)),
    Concept("umbrella", "2602", "umbrellas", ("parasol",), NOVEL),
    Concept("handbag", "1F45C", "handbags", ("purse",)),
    Concept("key", "1F511", "keys", ("door key",)),
    Concept("hammer", "1F528", "hammers", ("claw hammer",)),
    Concept("axe", "1FA93", "axes", ("hatchet",), NOVEL),
    Concept("bucket", "1FAA3", "buckets", ("pail",)),
    Concept("teapot", "1FAD6", "teapots", ("tea kettle",)),
    Concept("shoe", "1F45F", "shoes", ("sneaker", "running shoe")),
    Concept("guitar", "1F3B8", "guitars", ("electric guitar",)),
    Concept("violin", "1F3BB", "violins", ("fiddle",), NOVEL),
    Concept("drum", "1F941", "drums", ("snare drum",)),
    Concept("trumpet", "1F3BA", "trumpets", ("bugle", "cornet")),
)

NAMES = tuple(concept.name for concept in CONCEPTS)
