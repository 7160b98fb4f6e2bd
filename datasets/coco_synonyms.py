"""WordNet synset of each COCO category and the words by which LVIS v1 calls that synset: facts, not code.

The category-to-synset mapping is lvis-api's ``coco_to_synset``; the words are the ``synonyms`` of LVIS v1.
With one exception every COCO synset is an LVIS synset: hot dog (``frank.n.02``) is not, and Detic's rule
takes ``sausage.n.01`` in its place, so that "hot dog" itself is not among its words.

Words are as LVIS writes them: "_" for a space and a remark in brackets ("mouse_(computer_equipment)");
:func:`tags.spoken_name` turns them into what a caption says.
"""

from typing import NamedTuple

from clim.data.categories import COCO_CATEGORIES


class Synset(NamedTuple):
    """One WordNet synset and its LVIS words."""

    synset: str
    synonyms: tuple[str, ...]


COCO_SYNSETS: dict[int, Synset] = {
    1: Synset("person.n.01", ("person", "baby", "child", "boy", "girl", "man", "woman", "human")),
    2: Synset("bicycle.n.01", ("bicycle", "bike_(bicycle)")),
    3: Synset("car.n.01", ("car_(automobile)", "auto_(automobile)", "automobile")),
    4: Synset("motorcycle.n.01", ("motorcycle",)),
    5: Synset("airplane.n.01", ("airplane", "aeroplane")),
    6: Synset("bus.n.01", ("bus_(vehicle)", "autobus", "charabanc", "double-decker", "motorbus", "motorcoach")),
    7: Synset("train.n.01", ("train_(railroad_vehicle)", "railroad_train")),
    8: Synset("truck.n.01", ("truck",)),
    9: Synset("boat.n.01", ("boat", "ship_(boat)")),
    10: Synset("traffic_light.n.01", ("traffic_light",)),
    11: Synset("fireplug.n.01", ("fireplug", "fire_hydrant", "hydrant")),
    13: Synset("stop_sign.n.01", ("stop_sign",)),
    14: Synset("parking_meter.n.01", ("parking_meter",)),
    15: Synset("bench.n.01", ("bench",)),
    16: Synset("bird.n.01", ("bird",)),
    17: Synset("cat.n.01", ("cat",)),
    18: Synset("dog.n.01", ("dog",)),
    19: Synset("horse.n.01", ("horse",)),
    20: Synset("sheep.n.01", ("sheep",)),
    21: Synset("beef.n.01", ("cow",)),
    22: Synset("elephant.n.01", ("elephant",)),
    23: Synset("bear.n.01", ("bear",)),
    24: Synset("zebra.n.01", ("zebra",)),
    25: Synset("giraffe.n.01", ("giraffe",)),
    27: Synset("backpack.n.01", ("backpack", "knapsack", "packsack", "rucksack", "haversack")),
    28: Synset("umbrella.n.01", ("umbrella",)),
    31: Synset("bag.n.04", ("handbag", "purse", "pocketbook")),
    32: Synset("necktie.n.01", ("necktie", "tie_(necktie)")),
    33: Synset("bag.n.06", ("suitcase", "baggage", "luggage")),
    34: Synset("frisbee.n.01", ("frisbee",)),
    35: Synset("ski.n.01", ("ski",)),
    36: Synset("snowboard.n.01", ("snowboard",)),
    37: Synset("ball.n.06", ("ball",)),
    38: Synset("kite.n.03", ("kite",)),
    39: Synset("baseball_bat.n.01", ("baseball_bat",)),
    40: Synset("baseball_glove.n.01", ("baseball_glove", "baseball_mitt")),
    41: Synset("skateboard.n.01", ("skateboard",)),
    42: Synset("surfboard.n.01", ("surfboard",)),
    43: Synset("tennis_racket.n.01", ("tennis_racket",)),
    44: Synset("bottle.n.01", ("bottle",)),
    46: Synset("wineglass.n.01", ("wineglass",)),
    47: Synset("cup.n.01", ("cup",)),
    48: Synset("fork.n.01", ("fork",)),
    49: Synset("knife.n.01", ("knife",)),
    50: Synset("spoon.n.01", ("spoon",)),
    51: Synset("bowl.n.03", ("bowl",)),
    52: Synset("banana.n.02", ("banana",)),
    53: Synset("apple.n.01", ("apple",)),
    54: Synset("sandwich.n.01", ("sandwich",)),
    55: Synset("orange.n.01", ("orange_(fruit)",)),
    56: Synset("broccoli.n.01", ("broccoli",)),
    57: Synset("carrot.n.01", ("carrot",)),
    58: Synset("sausage.n.01", ("sausage",)),
    59: Synset("pizza.n.01", ("pizza",)),
    60: Synset("doughnut.n.02", ("doughnut", "donut")),
    61: Synset("cake.n.03", ("cake",)),
    62: Synset("chair.n.01", ("chair",)),
    63: Synset("sofa.n.01", ("sofa", "couch", "lounge")),
    64: Synset("pot.n.04", ("flowerpot",)),
    65: Synset("bed.n.01", ("bed",)),
    67: Synset("dining_table.n.01", ("dining_table",)),
    70: Synset("toilet.n.02", ("toilet",)),
    72: Synset("television_receiver.n.01", ("television_set", "tv", "tv_set")),
    73: Synset("laptop.n.01", ("laptop_computer", "notebook_computer")),
    74: Synset("mouse.n.04", ("mouse_(computer_equipment)", "computer_mouse")),
    75: Synset("remote_control.n.01", ("remote_control",)),
    76: Synset("computer_keyboard.n.01", ("computer_keyboard", "keyboard_(computer)")),
    77: Synset(
        "cellular_telephone.n.01", ("cellular_telephone", "cellular_phone", "cellphone", "mobile_phone", "smart_phone")
    ),
    78: Synset("microwave.n.02", ("microwave_oven",)),
    79: Synset("oven.n.01", ("oven",)),
    80: Synset("toaster.n.02", ("toaster",)),
    81: Synset("sink.n.01", ("sink",)),
    82: Synset("electric_refrigerator.n.01", ("refrigerator",)),
    84: Synset("book.n.01", ("book",)),
    85: Synset("clock.n.01", ("clock", "timepiece", "timekeeper")),
    86: Synset("vase.n.01", ("vase",)),
    87: Synset("scissors.n.01", ("scissors",)),
    88: Synset("teddy.n.01", ("teddy_bear",)),
    89: Synset("hand_blower.n.01", ("hair_dryer",)),
    90: Synset("toothbrush.n.01", ("toothbrush",)),
}


def lvis_words() -> dict[int, tuple[str, ...]]:
    """COCO category id -> LVIS words of its synset: the table of the released rule (Detic)."""
    return {identifier: entry.synonyms for identifier, entry in COCO_SYNSETS.items()}


def all_words() -> dict[int, tuple[str, ...]]:
    """:func:`lvis_words` with COCO's own name in front where LVIS lacks it ("hot dog", "laptop")."""
    words = lvis_words()
    names = ((identifier, name.replace(" ", "_")) for identifier, name in COCO_CATEGORIES)
    return {key: words[key] if name in words[key] else (name, *words[key]) for key, name in names}
