"""``clim serve`` by HTTP: answers equal the detector's own, whoever else asks; bad requests get one sentence."""

import asyncio
import base64
import http.server
import io
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clim_commands.main import main
from clim_commands.responder import kept_vocabulary

pytest.importorskip("fastapi", reason="pip install -r requirements-extras.txt")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from clim_commands.serve import model_names  # noqa: E402
from clim_commands.serve.api import create_app  # noqa: E402
from clim_commands.serve.service import Limits, ServedModel, Service  # noqa: E402
from clim_commands.serve.urls import is_public  # noqa: E402

WORDS = (None, "dog, zebra", "kite", "zebra,dog", "a, b, c, d, e")


@pytest.fixture
def service(detector):
    """``service(limit=…)``, with a new cache of words."""
    return lambda **limits: Service({"tiny": ServedModel(detector)}, Limits(**limits))


def image_bytes(size=(140, 90), *, seed=1, fmt="PNG"):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), fmt)
    return file.getvalue()


def form(words=None, *, seed=1, **fields):
    words = {} if words is None else {"words": words}
    return {"files": {"image": image_bytes(seed=seed)}, "data": {"threshold": "0.3", "top": "5"} | words | fields}


def answer(response):
    assert response.status_code == 200, response.text
    return {key: value for key, value in response.json().items() if key != "milliseconds"}


# ---- answers


def test_an_answer_is_the_detectors_own_in_each_way_of_sending(detector, service):
    own, served, data = detector.names, service(), image_bytes()
    ways = [
        {"files": {"image": data}, "data": {"words": "dog, zebra,", "threshold": "0"}},
        {"files": {"image": data}, "data": {"words": ["dog", "zebra"], "threshold": "0", "model": "tiny"}},
        {"json": {"image": GOOD, "words": ["dog", " zebra", "dog"], "threshold": 0, "top": None}},
        {"json": {"image": f"data:image/png;base64,{GOOD}", "words": "dog, zebra", "threshold": 0.0, "top": 20.0}},
    ]
    with TestClient(create_app(served)) as client:
        first, *others = [answer(client.post("/predict", **way)) for way in ways]
        assert all(other == first for other in others)
        assert client.get("/words").json()["tiny"]["vocabulary"] == own == detector.names
        assert client.get("/openapi.json").json()["paths"].keys() == {"/predict", "/words", "/health"}
        assert client.get("/docs").status_code == 404  # FastAPI's would load from a CDN
    with kept_vocabulary(detector.model.roi_heads):
        detector.set_classes(["dog", "zebra"])
        (alone,) = detector.predict(Image.open(io.BytesIO(data)), threshold=0.0)
    detector.names, detector.novel = served.models["tiny"].names, served.models["tiny"].novel
    expected = {"vocabulary": ["dog", "zebra"], "novel": ["dog"], "height": 90, "width": 140, "model": "tiny"}
    assert first == expected | {"detections": alone.to_dict()["detections"]} and len(alone) > 1


def test_requests_at_the_same_time_do_not_mix_their_words(service):
    """15 of 5 vocabularies and 3 images at once: each answer is that of a server that had one request."""
    asked = [(WORDS[i % 5], i % 3) for i in range(15)]

    async def at_once():
        transport = httpx.ASGITransport(create_app(service(waiting=15)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/predict", **form(w, seed=s)) for w, s in asked))

    together = list(map(answer, asyncio.run(at_once())))
    for words, seed in {pair: None for pair in asked}:
        alone = answer(TestClient(create_app(service())).post("/predict", **form(words, seed=seed)))
        assert alone["detections"] and (
            words is None or set(alone["vocabulary"]) == set(words.replace(" ", "").split(","))
        )
        assert all(other == alone for other, pair in zip(together, asked, strict=True) if pair == (words, seed))


def test_synonyms_share_a_class_as_in_predict(detector, service):
    """In a text and in a list; the score of a class is the highest of its words'."""
    client = TestClient(create_app(service()))
    ways = ("dog: zebra, dog; kite", ["dog: zebra", " kite"])
    first, second = [answer(client.post("/predict", json={"image": GOOD, "words": w, "threshold": 0})) for w in ways]
    assert first == second and first["vocabulary"] == ["dog", "kite"]
    with kept_vocabulary(detector.model.roi_heads):
        own = detector.names, detector.novel
        detector.set_classes({"dog": ["zebra"], "kite": []})
        (alone,) = detector.predict(Image.open(io.BytesIO(image_bytes())), threshold=0.0)
    detector.names, detector.novel = own
    assert first["detections"] == alone.to_dict()["detections"] and len(alone) > 1


def test_a_word_is_embedded_once(detector, service):
    detector.model.text_encoder.asked.clear()
    client = TestClient(create_app(service()))
    for words in ("dog, cat", "cat, kite", "dog"):
        answer(client.post("/predict", **form(words)))
    assert detector.model.text_encoder.asked == [["a dog"], ["a cat"], ["a kite"]]


# ---- what is refused


def base64_of(data):
    return base64.b64encode(data).decode()


GOOD = base64_of(image_bytes())
JSON = {"content-type": "application/json"}
BAD_FIELDS = [
    ({"image": base64_of(image_bytes(fmt="JPEG")[:800])}, 422, "truncated"),
    ({"image": base64_of(b"hello")}, 422, "not an image"),
    ({"image": "hello!"}, 422, "base64"),
    ({"image": 7}, 422, "base64"),
    ({"image": base64_of(image_bytes((1200, 12)))}, 422, "50 times"),
    ({"image": base64_of(image_bytes((300, 200), fmt="JPEG"))}, 413, "0.05 million"),
    ({}, 422, "either"),
    ({"image": GOOD, "url": "http://a.b/c.png"}, 422, "either"),
    ({"url": "http://127.0.0.1/c.png"}, 403, "URLs"),
    ({"image": GOOD, "words": [f"word {i}" for i in range(10_000)]}, 413, "10000 words"),
    *(({"image": GOOD, "words": words}, 422, "words") for words in ("", [" "], [1], {"a": []}, "x" * 101, ["a\nb"])),
    *(({"image": GOOD, "threshold": value}, 422, '"threshold": ') for value in ("high", 2, [0.1])),
    *(({"image": GOOD, "top": value}, 422, '"top": ') for value in (0, 2.5, 10**30)),
    ({"image": GOOD, "words": "lemon, dog: puppy"}, 422, "'lemon, dog' as the name of one class"),
    ({"image": GOOD, "model": "other"}, 422, "tiny"),
    *(({"image": GOOD, name: True}, 422, f'"{name[:40]}" is no field') for name in ("word", "", "x" * 9999)),
    ({"image": GOOD, "words": "a," * 50_000}, 413, "50000 words"),
    ({"image": GOOD, "words": ["a: b, c"] * 101}, 413, "303 words"),
    ([1], 422, "object"),
]
BAD_REQUESTS = [
    ({"files": {"image": b""}}, 422, "not an image"),
    ({"data": {"image": "text"}, "files": {"url": b""}}, 422, "either"),
    ({"files": {"image": image_bytes((400, 400))}}, 413, "0.2 MB"),
    ({"content": iter([b"x" * 100_000] * 3), "headers": JSON}, 413, "0.2 MB"),
    ({"content": "{", "headers": JSON}, 400, "JSON"),
    ({"content": "[" * 100_000, "headers": JSON}, 400, "JSON"),
    *(
        ({"content": content, "headers": JSON}, 400, "JSON")
        for content in (
            '{"threshold": NaN}',
            '{"words": ["\\ud800"]}',
            '{"\\ud800": true}',
            '{"top": ' + "9" * 5000 + "}",
        )
    ),
    ({"content": "dog", "headers": {"content-type": "text/plain"}}, 415, "multipart"),
    ({"content": "dog", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ({"files": [("image", b"1"), ("image", b"2")]}, 400, "files"),
]


def test_a_bad_request_gets_a_sentence_and_harms_no_other(service):
    requests = [({"json": fields}, *expected) for fields, *expected in BAD_FIELDS] + BAD_REQUESTS
    with TestClient(create_app(service(bytes=200_000, pixels=50_000))) as client:
        before = answer(client.post("/predict", **form("dog")))
        for request, status, part in requests:
            response = client.post("/predict", **request)
            assert response.status_code == status and part in response.json()["detail"], (response.text, part)
        assert answer(client.post("/predict", **form("dog"))) == before
        assert client.get("/health").json()["requests"] == 0


def test_a_mistake_of_our_own_is_a_500_and_the_server_goes_on(service):
    served = service()
    served.models["tiny"].find = lambda *_, **__: 1 / 0
    with TestClient(create_app(served), raise_server_exceptions=False) as client:
        assert client.post("/predict", **form("dog")).status_code == 500
        assert client.get("/health").json()["requests"] == 0


def test_an_upload_that_breaks_off_is_no_mistake_of_the_server(service):
    served, sent = service(), []
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "http_version": "1.1"}

    async def run(kind):
        messages = iter([{"type": "http.request", "body": b'{"ima', "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(messages)

        async def send(message):
            sent.append(message)

        await create_app(served)(scope | {"headers": [(b"content-type", kind)]}, receive, send)

    for kind in (b"application/json", b"multipart/form-data; boundary=x"):
        asyncio.run(run(kind))
    assert [part["status"] for part in sent if "status" in part] == [499, 400] and not served.taken


# ---- waiting


@contextmanager
def slow(served):
    """A model that waits for ``go.set()``; ``called`` lists the words of the calls that have begun."""
    go, called, find = threading.Event(), [], served.models["tiny"].find

    def waits(image, query, **options):
        called.append(list(query.words))
        go.wait(10)
        return find(image, query, **options)

    served.models["tiny"].find = waits
    yield go, called
    go.set()


def test_too_many_wait_and_a_client_that_goes_away_frees_its_place(service):
    app, left = create_app(served := service(waiting=1)), asyncio.Event()
    body = {"type": "http.request", "body": json.dumps({"image": GOOD, "words": "second"}).encode()}
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "http_version": "1.1"}
    messages = iter([body])

    async def receive():  # of a client that sends a whole request and goes away later
        if message := next(messages, None):
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    async def until_taken(count):
        while served.taken != count or not called:
            await asyncio.sleep(0.01)

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

            def post(words):
                return asyncio.ensure_future(client.post("/predict", **form(words)))

            first = post("first")
            await until_taken(1)
            headers = [(b"content-type", b"application/json")]
            second = asyncio.ensure_future(app(scope | {"headers": headers}, receive, send))
            await until_taken(2)
            refused = await post("refused")
            left.set()
            await second
            third = post("third")
            await until_taken(2)
            go.set()
            return refused, answer(await first)["vocabulary"], answer(await third)["vocabulary"]

    with slow(served) as (go, called):
        refused, *vocabularies = asyncio.run(run())
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "2"
    assert vocabularies == called == [["first"], ["third"]]  # the second was never looked for


def test_a_request_ends_in_time_and_its_call_does_not_block_the_next(service):
    served = service(seconds=0.3)
    with TestClient(create_app(served)) as client, slow(served) as (go, called):
        late = client.post("/predict", **form("dog"))
        assert late.status_code == 504 and "0.3 s" in late.json()["detail"]
        assert client.get("/health").json()["requests"] == 0 and called == [["dog"]]
        go.set()
        assert client.post("/predict", **form("cat")).status_code in (200, 504)  # 504: on a slow machine
    with pytest.raises(TimeoutError):
        served.models["tiny"].embed(["a new word"], until=time.monotonic() - 1)


# ---- URLs


@pytest.mark.parametrize(
    "address, public",
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("::1", False), ("fd00::1", False),
        ("fe80::1%eth0", False), ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


class Files(http.server.BaseHTTPRequestHandler):
    """/image: an image; /away: a redirect to it; /large: over 0.2 MB; others: 404."""

    def do_GET(self):
        content = {"/image": image_bytes(), "/large": b"x" * 300_000}.get(self.path)
        self.send_response(302 if self.path == "/away" else 200 if content else 404)
        if self.path == "/away":
            self.send_header("Location", "/image")
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


def test_images_at_urls(service):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{files.server_port}"
        with TestClient(create_app(service(bytes=200_000), urls="any")) as client:

            def post(url):
                return client.post("/predict", json={"url": url, "words": "dog", "threshold": 0.3, "top": 5})

            assert answer(post(here + "/image")) == answer(client.post("/predict", **form("dog")))
            for url, status in [
                (here + "/large", 413), (here + "/gone", 422), (here + "/away", 422), ("file:///etc/passwd", 422),
                ("http://", 422), ("http://[", 422), ("http://127.0.0.1:9/", 422), (f"http://{'a' * 300}.org", 422),
            ]:  # fmt: skip
                assert post(url).status_code == status, url
        with TestClient(create_app(service(), urls="public")) as client:
            for host in ("127.0.0.1", "localhost", "2130706433", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"):
                response = client.post("/predict", json={"url": f"http://{host}:{files.server_port}/image"})
                assert response.status_code == 403, (host, response.text)
        files.shutdown()


# ---- the command


def test_arguments_are_checked_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "model.pth").write_bytes(b"")
    for arguments, part in [
        (["--weights", str(tmp_path / "gone.pth")], "does not exist"),
        (["--weights", str(tmp_path / "model.pth"), "--examples", str(tmp_path)], "no image"),
        (["--weights", str(tmp_path / "model.pth"), "--port", "99999"], "--port: '99999' is not"),
        *(
            (["--weights", str(tmp_path / "model.pth"), "--host", host], f"--host {host} ")
            for host in ("", "x" * 300, "ä..b", "256.1.1.1")
        ),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["serve", *arguments])
        assert end.value.code == 2 and part in capsys.readouterr().err


def test_names_of_models_differ():
    paths = ["a/x.pth", "a/model_final.pth", "b/model_final.pth", "b/x.pth"]
    assert model_names(list(map(Path, paths))) == ["x", "a", "b", "x 4"]
