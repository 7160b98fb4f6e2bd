"""What the HTTP interface and the page share: limits, the fields of a request, one detection at a time.

The vocabulary of a detector is a state that its requests would share. So all calls of all models run in one thread,
one after another, and each call sets its own words first.
"""

import asyncio
import io
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from clim.data.images import UnreadableImage, decode_image, image_size
from clim.errors import UserError
from clim.results import Result
from clim_commands.responder import Responder, kept_vocabulary
from clim_commands.words import parted, with_synonyms

CACHED_WORDS = 10_000  # embeddings of words that a model remembers
LONGEST = 50  # times the short side of an image
LETTERS = 100  # of a word
WORDS = '"dog, cat", "dog: puppy, hound; cat" with synonyms, or a list of these; by default the model\'s own'


class Refused(UserError):
    """A request that is not answered, and the HTTP status that says so."""

    def __init__(self, sentence: str, status: int = 422):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of a request: bytes of its body or of an image at a URL, pixels, words, seconds; of all: how many wait."""

    bytes: int = 16_000_000
    pixels: int = 50_000_000
    words: int = 300
    seconds: float = 30.0
    waiting: int = 8


def _classes(entries: list[str]) -> dict[str, list[str]]:
    """{name: its words, the name first}."""
    classes = {name: list(dict.fromkeys([name, *others])) for name, others in map(with_synonyms, entries) if name}
    if not classes:
        raise ValueError('there is no word: write "dog, cat", or leave it out to look for the model\'s own words')
    if any(len(word) > LETTERS for words in classes.values() for word in words):
        raise ValueError(f"a word has over {LETTERS} letters")
    return classes


def _count(words, most: int) -> int:
    """How many words there are, or may be, if over ``most``: quick for millions, which would hold up all requests."""
    texts = words if isinstance(words, list) else [words]
    marks = (text.strip(" ,;:").count(mark) for text in texts[:most] if isinstance(text, str) for mark in ",;:")
    return len(texts) + sum(marks)


Entry = Annotated[str, StringConstraints(strip_whitespace=True)]
Split = BeforeValidator(lambda words: parted(words, option='"words"') if isinstance(words, str) else words)
Words = Annotated[list[Entry], Split, AfterValidator(_classes)]


class Query(BaseModel):
    """What a request asks about its image. Words are never a file's name, as they may be in commands."""

    words: Words = Field(default_factory=dict, description=WORDS)
    threshold: float = Field(0.05, ge=0, le=1, allow_inf_nan=False, description="lowest score")
    top: int = Field(20, ge=1, le=1000, description="most boxes")
    model: str | None = Field(None, description="one of /health; the first by default")

    @classmethod
    def read(cls, limits: "Limits", fields: Mapping) -> "Query":
        """From fields of any type. Raises Refused."""
        if unknown := fields.keys() - cls.model_fields.keys():
            raise Refused(f'"{min(unknown)[:40]}" is no field: there are image, url, {", ".join(cls.model_fields)}.')
        if wrong := next((name for name, value in fields.items() if isinstance(value, bool)), None):
            raise Refused(f'"{wrong}": it is true or false, which no field is.')
        if (count := _count(fields.get("words"), limits.words)) > limits.words:
            raise Refused(f"There are {count} words: at most {limits.words} are allowed.", 413)
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            names, reason = map(str, first["loc"]), first["msg"].removeprefix("Value error, ")
            raise Refused(f'"{".".join(names)[:40]}": {reason}.') from error


def decode(data: bytes, limits: Limits) -> np.ndarray:
    """Upright uint8 (H, W, 3) RGB of an image file's content. Raises Refused."""
    try:
        height, width = image_size(io.BytesIO(data))
        if height * width > limits.pixels:
            most = f"{limits.pixels / 1e6:g} million"
            raise Refused(f"The image has {width} x {height} pixels: at most {most} are allowed.", 413)
        if max(height, width) > LONGEST * min(height, width):
            raise Refused(f"The image is {width} x {height}: one side is over {LONGEST} times as long as the other.")
        return decode_image(data, file_name="image", fmt="RGB").image
    except UnreadableImage as error:
        raise Refused(f"The image cannot be read: {error.reason}.") from error


class Found(NamedTuple):
    """What a model finds in the image of a request."""

    model: str
    result: Result
    milliseconds: float


class ServedModel:
    """A detector that looks for other words in each call. Calls of its methods never overlap."""

    def __init__(self, detector):
        self.detector, self.names, self.novel = detector, detector.names, detector.novel
        self._row = lru_cache(CACHED_WORDS)(lambda word: detector.embed([word])[0])

    def embed(self, words: Sequence[str], *, until: float = math.inf) -> torch.Tensor:
        """(K, D), word by word, so that a row is the same whatever else is asked. TimeoutError after ``until``."""
        rows = []
        for word in words:
            if time.monotonic() > until:
                raise TimeoutError
            rows.append(self._row(word))
        return torch.stack(rows)

    def find(self, image: np.ndarray, query: Query, *, until: float = math.inf) -> Result:
        """Detections in an image (H, W, 3) RGB; the vocabulary is the model's own again afterwards."""
        try:
            with kept_vocabulary(self.detector.model.roi_heads):
                if query.words:
                    words = [word for of_class in query.words.values() for word in of_class]
                    self.detector.set_classes(query.words, self.embed(words, until=until))
                return self.detector.predict([image], threshold=query.threshold, top=query.top)[0]
        finally:
            self.detector.names, self.detector.novel = self.names, self.novel

    def respond(self, image: np.ndarray, word: str) -> torch.Tensor:
        """(1, h, w) cosines of the image's locations and a word. UserError from a model without such maps."""
        return Responder(self.detector.cfg, detector=self.detector)(image, self.embed([word]))


class Service:
    """Models by name, and the thread that runs them.

    A request holds a place until it is answered, or until its client goes away. There are ``limits.waiting`` places
    and one for the request that is being answered.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits):
        self.models, self.limits, self.taken = dict(models), limits, 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")

    @asynccontextmanager
    async def place(self):
        """Hold a place in this block, for at most ``limits.seconds``. Raises Refused."""
        if self.taken > self.limits.waiting:
            raise Refused(f"{self.taken} requests are waiting already: try again in a few seconds.", 503)
        self.taken += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError as error:
            raise Refused(f"The request took over {self.limits.seconds:g} s: send less, or try again.", 504) from error
        finally:
            self.taken -= 1

    async def call(self, function, *args):
        """Call ``function`` in the thread, in turn. A caller that is cancelled leaves the queue; a call goes on."""
        await self._turn.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *args))
        running.add_done_callback(lambda _: self._turn.release())
        running.add_done_callback(asyncio.Future.exception)  # it counts as told, where the caller has left
        return await asyncio.shield(running)

    async def find(self, data: bytes, query: Query, names: Sequence[str]) -> list[Found]:
        """What the models of these ``names`` find in an image file's content. Raises UserError, TimeoutError."""
        return await self.call(self._find, data, query, names, time.monotonic() + self.limits.seconds)

    def _find(self, data: bytes, query: Query, names: Sequence[str], until: float) -> list[Found]:
        image, found = decode(data, self.limits), []
        for name in names:
            start = time.perf_counter()
            result = self.models[name].find(image, query, until=until)
            found.append(Found(name, result, round(1000 * (time.perf_counter() - start), 1)))
        return found
