"""Collect the nouns of captions, the vocabulary of pseudo-labels and of VLDet.

    python tools/parse_nouns.py --captions coco_caption_train_tags --output datasets/metadata/coco_nouns.json
    python tools/build_text_embeddings.py classes --dataset datasets/metadata/coco_nouns.json \\
        --tower ViT-B-16-quickgelu --output datasets/metadata/coco_nouns_vitb16.npy
    python tools/index_pairs.py json --json datasets/coco/annotations/captions_train2017.json \\
        --nouns datasets/metadata/coco_nouns.json --output datasets/coco/nouns_captions.json

It writes {"categories": [{"id": 1…N, "name": noun, "count": uses}]}, frequent nouns first.
"""

import argparse
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from arguments import captions_in, new_parser, registered_captions
from clim.errors import UserError, run_cleanly
from clim.files import resolve, write_json
from clim_commands.inputs import count, output_file, require_other

MIN_BARE = 2  # rule 1
MIN_BARE_SHARE = 0.02
MIN_END_SHARE = 0.3  # rule 3
MIN_PAIR_SHARE = 0.25  # of the first word's uses, for a fixed pair
MIN_ING_SHARE = 0.1  # of the uses of a word in -ing
MIN_SINGULAR_SHARE = 0.05  # uses of a singular, relative to its plural's: rarer ones are misspellings

_DETERMINERS = frozenset(
    """a an the this that these those some any each every another no both all many several few various
    one two three four five six seven eight nine ten eleven twelve dozen my your his her its our their 's""".split()
)
_SUBJECTS = frozenset("i he she we they you who it there".split())
_MODALS = frozenset("to can could will would should may might must not n't don't doesn't".split())
_ENDS = frozenset(
    """. about above across after against along alongside amid among around as at atop before behind below
    beneath beside besides between beyond by down during for from in inside into near nearby next of off on onto
    opposite out outside over past since through throughout to toward towards under underneath until up upon via
    while with within without is are was were be been being am has have had do does did can could will would
    should may might must that which who whom whose where when what because if than then so but""".split()
)
_OTHERS = frozenset(
    """, and or & nor not n't it he she they them him we us you i me itself himself herself themselves there
    here how very just too also only even still other others same own more most less such together away back
    else each's someone something somebody anyone everyone nothing well much yet it's there's""".split()
)
_JOINTS = frozenset(("and", "or", "&", ","))
_FUNCTION = _DETERMINERS | _SUBJECTS | _MODALS | _ENDS | _OTHERS

_NOT_THINGS = frozenset(
    """front back side top bottom middle center centre left right end edge corner inside outside background
    foreground distance way place close position direction picture photo photograph image view shot closeup
    close-up group couple bunch pile stack lot number variety row pair set piece part half rest bit amount type
    kind sort assortment collection array line style time day one ones thing""".split()
)
_IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "kids": "kid",
    "feet": "foot", "teeth": "tooth", "mice": "mouse", "geese": "goose", "oxen": "ox", "skis": "ski",
    "cacti": "cactus",
}  # fmt: skip
_INVARIABLE = frozenset(
    """glasses sunglasses eyeglasses goggles pants jeans shorts trousers scissors binoculars pajamas clothes tongs
    headphones series species news""".split()
)  # fmt: skip
_ENDINGS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("s", ""), ("es", ""), ("men", "man"))
_STOPS = dict.fromkeys('!?;:()[]|/"#*', ".")
_WORD = re.compile(r"['’]s\b|[^\W\d_]+(?:[-'’](?!s\b)[^\W\d_]+)*|\d+|[^\w\s]")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--captions", nargs="+", required=True, metavar="SET",
        help="registered caption sets, or jsons: COCO's (annotations[*].caption) or Detic's (images[*].captions)",
    )  # fmt: skip
    parser.add_argument("--min-count", type=count, default=100, help="rarer nouns are dropped (%(default)s)")
    parser.add_argument("--output", type=output_file, required=True, help="the json to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    require_other(args.output, *map(resolve, args.captions))
    captions = [caption for name in args.captions for caption in captions_of(name)]
    nouns = parse_nouns(captions, min_count=args.min_count)
    if not nouns:
        raise UserError(f"No noun occurs {args.min_count} times in these {len(captions)} captions: lower --min-count.")
    write_list(args.output, nouns)
    most = ", ".join(f"{noun} {count}" for noun, count in list(nouns.items())[:8])
    print(f"{args.output}: {len(nouns)} nouns of {len(captions)} captions ({most}, …)")


def write_list(path: Path, nouns: Mapping[str, int]) -> None:
    """Write {noun: number of its uses} as categories with ids from 1, in this order."""
    categories = [{"id": i, "name": n, "count": c} for i, (n, c) in enumerate(nouns.items(), start=1)]
    write_json(path, {"categories": categories})


def captions_of(name: str) -> Iterable[str]:
    """Captions of a registered set or a json file."""
    if (captions := registered_captions(name)) is not None:
        return captions
    return captions_in(resolve(name), remedy="--captions takes registered sets and jsons of captions")


def parse_nouns(captions: Iterable[str], *, min_count: int = 100) -> dict[str, int]:
    """{noun: number of its uses} for the nouns that ``captions`` use at least ``min_count`` times, most used first.

    The rules need no tagger and no dictionary, so the list is the same on every machine. Function words (the lists
    above) cut a caption into phrases. Plurals count with their singular: a form loses -s, -es, -ies or -ves if the
    captions contain the rest as a word; irregular plurals are listed. DET is a determiner ("a", "the", "two", "his").
    END ends a phrase: a preposition, an auxiliary, a verb in -ing, a stop, or "and" and "," before a DET. A word is a
    noun if

    1. it stands bare, DET word END ("a dog on"), at least twice and in 1 of 50 uses. Verbs do not, adjectives rarely;
    2. it does so more often than it follows "to", a modal or a subject pronoun ("to walk");
    3. END, or a word that 1 and 2 exclude, follows it in 3 of 10 uses. Adjectives mostly precede a noun.

    A word in -ing is a verb if fewer than 1 of 10 uses follow a DET ("sitting", not "building"). Of adjacent nouns, the
    last one counts ("kitchen table": table). Determiners and adjectives do not belong to a name. But if a quarter of a
    word's uses stand before one noun ("hot dog"), the pair is a name beside the noun. Words of place, amount and
    depiction ("front", "group", "photo") do not count.

    The published comparator uses other lists: 4,764 concepts of RegionCLIP's parser, which exist as a download only,
    and for CLIM's authors 1,152 entity heads of SceneGraphParser (RegionCLIP, issue 48).
    """
    sentences = [tokens(caption) for caption in captions]
    lemmas = word_lemmas(sentences)
    nouns = noun_lemmas(sentences, lemmas)
    pairs = fixed_pairs(sentences, lemmas, nouns)
    counts = Counter()
    for before, word, after, _ in windows(sentences):
        noun = lemmas.get(word)
        if noun in nouns and noun not in _NOT_THINGS and lemmas.get(after) not in nouns:
            counts.update([noun, f"{before} {noun}"] if (before, noun) in pairs else [noun])
    kept = [(noun, count) for noun, count in counts.items() if count >= min_count]
    return dict(sorted(kept, key=lambda item: (-item[1], item[0])))


def tokens(caption: str) -> list[str]:
    """Lower-case words, with their hyphens; numbers and marks stand alone; "." ends every caption."""
    words = [word.replace("’", "'") for word in _WORD.findall(caption.lower())]
    return ["two" if word.isdigit() else _STOPS.get(word, word) for word in words] + ["."]


def windows(sentences: Iterable[Sequence[str]]) -> Iterator[tuple[str, str, str, str]]:
    """Every word with one word before and two words after it; "." stands beyond both ends of a sentence."""
    for words in sentences:
        yield from zip([".", *words], words, [*words[1:], "."], [*words[2:], ".", "."], strict=False)


def word_lemmas(sentences: Sequence[Sequence[str]]) -> dict[str, str]:
    """{form: singular} of all words, also verbs and adjectives, but not of function words and verbs in -ing."""
    uses = Counter(word for words in sentences for word in words if word[0].isalpha() and word not in _FUNCTION)
    determined = Counter(word for before, word, _, _ in windows(sentences) if before in _DETERMINERS)
    verbs = {w for w in uses if w.endswith("ing") and determined[w] < MIN_ING_SHARE * uses[w]}
    return {word: singular(word, uses) for word in uses if word not in verbs}


def singular(word: str, uses: Mapping[str, int]) -> str:
    """The singular if ``word`` looks like the plural of a word of ``uses`` (a Counter), or else ``word``."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _INVARIABLE or word.endswith(("ss", "us")):
        return word
    forms = [word.removesuffix(end) + new for end, new in _ENDINGS if word.endswith(end)]
    least = max(1, MIN_SINGULAR_SHARE * uses[word])
    return next((form for form in forms if uses[form] >= least), word)


def noun_lemmas(sentences: Sequence[Sequence[str]], lemmas: Mapping[str, str]) -> set[str]:
    """The nouns of this corpus among ``lemmas``, by rules 1 to 3."""

    def ends(after: str, then: str) -> bool:
        """END of :func:`parse_nouns`: a phrase cannot go on with ``after``."""
        verb = after.endswith("ing") and after not in lemmas
        return verb or after in _ENDS or (after in _JOINTS and then in _DETERMINERS)

    def count(fits) -> Counter:
        return Counter(lemmas[w[1]] for w in windows(sentences) if w[1] in lemmas and fits(*w))

    uses = count(lambda *_: True)
    bare = count(lambda before, _, after, then: before in _DETERMINERS and ends(after, then))
    verbal = count(lambda before, *_: before in _SUBJECTS or before in _MODALS)
    candidates = {
        lemma for lemma in bare
        if bare[lemma] >= max(MIN_BARE, MIN_BARE_SHARE * uses[lemma]) and bare[lemma] > verbal[lemma]
    }  # fmt: skip
    others = {form for form, lemma in lemmas.items() if lemma not in candidates}
    closing = count(lambda _before, _word, after, then: after in others or ends(after, then))
    return {lemma for lemma in candidates if closing[lemma] >= MIN_END_SHARE * uses[lemma]}


def fixed_pairs(
    sentences: Sequence[Sequence[str]], lemmas: Mapping[str, str], nouns: Collection[str]
) -> set[tuple[str, str]]:
    """(word, noun) where the noun, in either number, follows in ``MIN_PAIR_SHARE`` of the word's uses."""
    uses = Counter(word for words in sentences for word in words)
    followed = Counter((w, lemmas[after]) for _, w, after, _ in windows(sentences) if w in lemmas and after in lemmas)
    return {
        (word, noun)
        for (word, noun), count in followed.items()
        if noun in nouns and count >= max(MIN_BARE, MIN_PAIR_SHARE * uses[word])
    }


if __name__ == "__main__":
    run_cleanly(main)
