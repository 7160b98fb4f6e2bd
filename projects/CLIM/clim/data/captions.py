"""Image-text pairs of a json or of a user's function → flat records. It cleans texts and reports what it leaves out."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from tqdm import tqdm

from clim.errors import UserError
from clim.files import read_bytes, read_json

from .images import UnreadableImage, image_size
from .readers import image_file, require_folder
from .records import Columns, PairRecords, listed
from .schemas import Caption, Pair, PairFile, RawPairFile, WholePairFile, texts_of

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 1 << 14  # of a caption; text towers read fewer
_FORM = "give file_name, captions, image_id, height, width and perhaps tags, as docs/own_data.md says"


def read_captions(
    json_file: str, image_root: str, *, index: Mapping[int, int] | None = None, remedy: str
) -> PairRecords:
    """Captions and tags of a json like Detic's ``captions_train2017_tags_allcaps.json``, or of COCO's captions.

    Detic's format: {"images": [{id, file_name, height, width, captions [str], pos_category_ids [id]}], "categories":
    [{id, name}]}. Tags are optional. COCO has the captions in "annotations": [{image_id, caption}]. ``index`` {category
    id: contiguous 0-based index}; None: the categories of the file by ascending id. More in :func:`packed`.
    """
    try:
        content = msgspec.json.decode(read_bytes(json_file, remedy=remedy), type=RawPairFile)
    except (msgspec.MsgspecError, RecursionError):  # Python's json reads more files, for example with half an emoji
        content = read_json(json_file, remedy=remedy, kind=WholePairFile)
    require_folder(image_root)
    if index is None:
        index = {key: i for i, key in enumerate(sorted(category.id for category in content.categories or ()))}
    pairs = _with_captions(content, json_file, remedy)
    records = packed(pairs, json_file, image_root=image_root, index=index, remedy=remedy)
    ids, keys = records.column("image_id"), records.keys()
    order = np.argsort(ids, kind="stable")
    twice = (np.diff(ids[order]) == 0) & (np.diff(keys[order]) != 0) & (ids[order[1:]] >= 0)
    if twice.any():
        one, other = (records[i] for i in order[twice.argmax() :][:2])
        both = f"{one['file_name']} and {other['file_name']}"
        raise UserError(f"{json_file} has the id {one['image_id']} twice: {both} need ids of their own: {remedy}")
    return records


def _with_captions(content: PairFile, json_file: str, remedy: str) -> Iterator[Pair]:
    """The images; those without captions of their own get those of the annotations."""
    raw = isinstance(next(iter(content.images or content.annotations or ()), None), msgspec.Raw)
    decode_caption, decode_pair = (
        msgspec.json.Decoder(kind).decode if raw else lambda item: item for kind in (Caption, Pair)
    )
    apart, used = defaultdict(list), set()
    try:
        for annotation in map(decode_caption, content.annotations or ()):
            if annotation.caption is not None:
                apart[annotation.image_id].append(annotation.caption)
        for image in map(decode_pair, content.images):
            if image.captions is None and image.id in apart:
                used.add(image.id)
                image.captions = apart[image.id]
            yield image
    except msgspec.MsgspecError:
        read_json(json_file, remedy=remedy, kind=WholePairFile)  # it tells the place
        raise
    if strays := sum(len(apart[key]) for key in apart.keys() - used):
        logger.warning(f"{json_file}: left out {strays} captions whose image_id is not among its images")


def pairs_of(records: Iterable[Mapping], name: str) -> PairRecords:
    """The records of data set ``name``, which a user's function gives: dicts of Python's or numpy's values.

    Other keys than those of :class:`PairRecords` are left out. UserError for other records.
    """
    if isinstance(records, PairRecords):
        return records

    def pairs() -> Iterator[Pair]:
        for number, record in enumerate(listed(records, "captions", f"DATASETS.CAPTIONS {name}")):
            fields = {key: _plain(record.get(key)) for key in ("file_name", "height", "width", "captions")}
            names = {"id": _plain(record.get("image_id", -1)), "pos_category_ids": _plain(record.get("tags"))}
            try:
                yield msgspec.convert(fields | names, Pair)
            except msgspec.ValidationError as error:
                raise UserError(f"record {number} of data set {name} does not fit ({error}): {_FORM}.") from error

    return packed(pairs(), f"data set {name}", remedy=_FORM)


def _plain(value):
    """The value of Python for one of numpy, and the text of a path; so of all items of a list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def packed(
    pairs: Iterable[Pair], source: str, *, image_root: str = "", index: Mapping[int, int] | None = None, remedy: str
) -> PairRecords:
    """The records of all ``pairs`` of ``source`` with a caption; what is cleaned and what is left out is logged.

    Captions are :func:`cleaned`; blank ones go. An image without a size that its header does not give either is left
    out, and so is one with a name that is not UTF-8. ``index``: {category id: tag}; None: ids are tags. UserError for
    an image without a name, for a tag that is not in ``index``, and if no record is left.
    """
    columns, unreadable, without, changed, folder = Columns(), [], 0, 0, os.path.join(image_root, "")
    headers = tqdm(desc=f"image sizes of {source}", unit="image", leave=False, delay=1)
    for pair in pairs:
        captions, count = _encoded(pair.captions)
        changed += count
        if not captions:
            without += 1
            continue
        name = image_file(pair, folder)
        if not (pair.file_name or pair.coco_url or "").strip():
            raise UserError(f"image {pair.id} of {source} has no file_name: give each image the name of its file.")
        tags = _tags(pair, index, source) if pair.pos_category_ids else ()
        height, width = pair.height, pair.width
        try:
            if not (height and width):
                headers.update()
                height, width = image_size(name)
            number = pair.id if type(pair.id) is int and 0 <= pair.id < 2**63 else -1
            columns.add(name, int(height), int(width), number, captions, tags)
        except UnreadableImage as error:
            unreadable.append(error)
        except ValueError:
            unreadable.append(f"{name!r}: the name is not UTF-8, or has a zero")
    headers.close()
    records = columns.records()
    if changed:
        logger.warning(f"{source}: cleaned {changed} captions (zeros, halves of surrogate pairs, very long ones)")
    if unreadable:
        logger.warning(f"{source}: skipped {len(unreadable)} unreadable images, first {unreadable[0]}")
    if not len(records):
        reason = f"unreadable image {unreadable[0]}" if unreadable else f"none of its {without} images has captions"
        raise UserError(f"{source} gives no image with a caption ({reason}): {remedy}")
    logger.info(f"Loaded {len(records)} images with captions from {source}, skipped {without} without")
    return records


def _tags(pair: Pair, index: Mapping[int, int] | None, source: str) -> Sequence[int]:
    tags = pair.pos_category_ids
    if index is None:
        if not 0 <= min(tags) <= max(tags) < 2**31:
            raise UserError(f"image {pair.id} of {source} has tags {tags}: they must be indices of classes, from 0.")
        return list(map(int, tags))
    try:
        return [index[tag] for tag in tags]
    except KeyError as error:
        wrong = f"image {pair.id} of {source} has {error} in pos_category_ids, but it is none of the {len(index)}"
        raise UserError(f"{wrong} categories of this data set: correct it, or remove it.") from error


def _encoded(captions: Sequence[str] | str | None) -> tuple[bytes, int]:
    """The captions that are not blank as texts of :class:`PairRecords`, and how many of them are cleaned."""
    texts = [text for text in texts_of(captions) if text.strip()]
    try:
        data = "\0".join(texts).encode()
        if not texts or len(data) <= MOST_CHARACTERS and data.count(0) == len(texts) - 1:
            return data, 0
    except UnicodeEncodeError:
        pass
    clean = [cleaned(text) for text in texts]
    return "\0".join(text for text in clean if text.strip()).encode(), sum(map(str.__ne__, texts, clean))


def cleaned(caption: str) -> str:
    """A text that every reader takes: no zeros, no halves of surrogate pairs, at most MOST_CHARACTERS."""
    whole = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole[:MOST_CHARACTERS].replace("\0", " ")
