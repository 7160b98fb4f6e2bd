"""The index of tar shards: damaged members and shards, interrupted builds, tags; the json of a TSV; the command."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

import index_pairs as tool
from clim.data.captions import read_captions
from clim.data.shards import read_shards
from clim.errors import UserError
from shards import build
from shards.build import Tagging, build_index, read_shard

CLASS = {category["name"]: category["id"] - 1 for category in LVIS_CATEGORIES}  # contiguous index
DOGS = Tagging("dogs", [{"id": 5, "name": "dog"}], lambda captions: [5] if "dog" in captions[0] else [], False)


@pytest.fixture
def read(tmp_path, write_shard):
    """``read((name, bytes), …, damage=function of a bytearray)``: members, captions and {member: reason}."""

    def result(*members, damage=None, tagging=build.NO_TAGS):
        path = tmp_path / "a.tar"
        write_shard(path, *members)
        if damage:
            content = bytearray(path.read_bytes())
            changed = damage(content)
            path.write_bytes(content if changed is None else changed)
        pairs, texts, faults = read_shard(path, tagging)
        names = [texts[p["start"] : p["start"] + p["member"]].decode() for p in pairs]
        data = [path.read_bytes()[p["offset"] : p["offset"] + p["size"]] for p in pairs]
        assert data == [dict(members)[name] for name in names]
        return names, dict(faults)

    return result


def test_members_that_are_no_pair_are_named_with_their_reason(read, pair, encoded):
    image = encoded()
    names, faults = read(
        ("1.txt", b"a dog"), ("1.jpg", image),  # the text may come first
        ("2.jpg", image), ("3.txt", b"no image"), ("4.jpg", image), ("4.txt", b" \n"),
        ("5.jpg", b"<html>"), ("5.txt", b"x"), ("6.jpg", b""), ("6.txt", b"x"), *pair("7", size=(300, 6)),
        ("8.jpg", image), ("8.txt", b"\xff"), ("9.JPG", image), ("9.txt", b"x"), ("9.png", encoded(fmt="PNG")),
        ("10.jpg", image), ("10.json", b'{"status": "failed_to_resize", "caption": "x"}'), ("readme.md", b"x"),
        ("11.jpg", image), ("11.txt", b"x"), ("11.json", b"{broken"), ("12.jpg", image), ("12.json", b"[]"),
        *pair("folder.x/15"),
    )  # fmt: skip
    assert names == ["1.jpg", "9.JPG", "11.jpg", "folder.x/15.jpg"]
    assert faults == {
        "2.jpg": "without text", "3": "text without an image", "4.jpg": "empty text", "5.jpg": "not an image",
        "6.jpg": "empty", "7.jpg": "tiny (300x6)", "8.jpg": "text is not UTF-8", "9.png": "second image of its key",
        "10.jpg": "status (failed_to_resize)", "12.jpg": "without text",
    }  # fmt: skip


def test_images_without_a_tag_are_left_out_if_asked(read, pair):
    members = pair("1") + pair("2", "a cat")
    assert read(*members, tagging=DOGS) == (["1.jpg"], {"2.jpg": "no tag"})
    assert read(*members, tagging=DOGS._replace(keep_untagged=True)) == (["1.jpg", "2.jpg"], {})


def header_of(content, name):
    return content.index(name.encode() + bytes(90))


def test_damaged_shards_give_what_is_whole(read, pair):
    members = [m for key in "abcd" for m in pair(key)]

    def spoiled(name):
        def damage(content):
            content[header_of(content, name)] ^= 0x55

        return damage

    # A damaged header hides its member only.
    for name, alone, reason in (("b.jpg", "b", "text without an image"), ("b.txt", "b.jpg", "without text")):
        names, faults = read(*members, damage=spoiled(name))
        assert names == ["a.jpg", "c.jpg", "d.jpg"]
        assert faults.pop(alone) == reason and list(faults.values()) == ["damaged header"]
    names, faults = read(*members, damage=spoiled("a.jpg"))
    assert names == ["b.jpg", "c.jpg", "d.jpg"] and faults == {"byte 0": "damaged header", "a": "text without an image"}
    # Cut inside an image, inside a header, and between two members.
    for cut, whole, others in ((600, "abc", {"d.jpg"}), (100, "abc", {"byte"}), (0, "abc", {"byte"})):
        names, faults = read(*members, damage=lambda content, cut=cut: content[: header_of(content, "d.jpg") + cut])
        assert names == [f"{key}.jpg" for key in whole]
        assert set(faults.values()) == {"truncated shard"} and {f.split()[0] for f in faults} == others
    for rubbish in (b"<html>no shard</html>" * 99, b""):
        names, faults = read(damage=lambda _, rubbish=rubbish: rubbish)
        assert names == [] and len(faults) == 1
    for start in (b"\x1f\x8b", b"BZh"):
        with pytest.raises(UserError, match="a.tar is compressed"):
            read(damage=lambda _, start=start: start + bytes(999))


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"S"])
@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\0", b"\x80\x40" + bytes(10), b"00000000000\0"])
def test_senseless_headers_end_and_give_other_members(read, pair, kind, size):
    """Sizes of -256 and 2^86 bytes, and none, of a file, a long name, PAX headers and a sparse file."""
    block = bytearray(tarfile.TarInfo("x.jpg").tobuf()[:512])
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)

    def damage(content):
        at = header_of(content, "b.jpg")
        return content[:at] + block + content[at:]

    assert read(*pair("a"), *pair("b"), damage=damage)[0] in (["a.jpg"], ["a.jpg", "b.jpg"])


def test_only_own_files_are_deleted_and_pipes_are_refused(shards, tmp_path):
    command = ["shards", "--shards", str(shards), "--output", str(tmp_path / "index"), "--workers", "0"]
    (tmp_path / "index.parts").mkdir()
    (tmp_path / "index.parts" / "mine").write_text("x")
    tool.main(command)
    (tmp_path / "index" / "mine").write_text("x")
    with pytest.raises(UserError, match="index exists and is not an index"):
        tool.main(command)
    assert (tmp_path / "index" / "mine").is_file() and (tmp_path / "index.parts" / "mine").is_file()
    os.mkfifo(shards / "z.tar")
    with pytest.raises(UserError, match="z.tar is no file"):
        tool.main([*command[:3], "--output", str(tmp_path / "other"), "--workers", "0"])
    with pytest.raises(UserError, match="--pattern /x is no pattern"):
        tool.main([*command, "--pattern", "/x"])


def test_long_names_and_appended_tars_are_no_damage(read, tmp_path, pair, encoded):
    """GNU and PAX headers; two tars in a row have end marks in the middle."""
    for fmt in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = b""
        for key in ("x" * 150, "ключ"):
            with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=fmt) as tar:
                for name, data in pair(key):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            content += file.getvalue()
        (tmp_path / "b.tar").write_bytes(content)
        pairs, texts, faults = read_shard(tmp_path / "b.tar", build.NO_TAGS)
        assert len(pairs) == 2 and faults == [] and "ключ.jpg".encode() in texts


# ---- the whole index


@pytest.fixture
def shards(tmp_path, write_shard, pair):
    """A folder of three shards of four pairs; the last one has a text without an image."""
    for i in range(3):
        members = [m for k in range(4) for m in pair(f"{9 - i}{k}", "a dog" if k % 2 else "the cat")]
        write_shard(tmp_path / "shards" / f"{i}.tar", *members, *[("lost\n.txt", b"x")] * (i == 2))
    return tmp_path / "shards"


NAMES = ["0.tar", "1.tar", "2.tar"]


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def asked(monkeypatch):
    """The shards that are read; the first reading of ``asked.stop`` raises."""

    class Asked(list):
        stop = None

    asked, real = Asked(), build.read_shard

    def reading(path, tagging):
        asked.append(path.name)
        if path.name == asked.stop:
            asked.stop = None
            raise KeyboardInterrupt
        return real(path, tagging)

    monkeypatch.setattr(build, "read_shard", reading)
    return asked


@pytest.mark.parametrize("change", ["nothing", "shard", "tagging"])
def test_an_interrupted_build_goes_on_with_the_next_shard(shards, tmp_path, asked, change):
    """A finished shard is read again if it has changed since, or if tags are made in another way."""
    asked.stop, index = "2.tar", tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build_index(shards, NAMES, index, tagging=DOGS)
    assert not index.exists()
    (tmp_path / "index.parts" / "2.tar.npz.partial").write_bytes(b"a kill in the middle of a write")
    asked.clear()
    tagging = DOGS._replace(keep_untagged=change == "tagging")
    if change == "shard":
        (shards / "1.tar").write_bytes((shards / "0.tar").read_bytes())
    build_index(shards, NAMES, index, tagging=tagging)
    assert asked == {"nothing": ["2.tar"], "shard": ["1.tar", "2.tar"], "tagging": NAMES}[change]
    build_index(shards, NAMES, tmp_path / "whole", tagging=tagging)
    assert content_of(index) == content_of(tmp_path / "whole")
    assert not (tmp_path / "index.parts").exists()


def test_workers_make_the_same_index_and_the_log_names_each_member(shards, tmp_path):
    facts = build_index(shards, NAMES, tmp_path / "one")
    (tmp_path / "many").mkdir()
    with pytest.raises(UserError, match="many exists and is not an index"):
        build_index(shards, NAMES, tmp_path / "many", workers=2)
    (tmp_path / "many").rmdir()
    build_index(shards, NAMES, tmp_path / "many", workers=2)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "many")
    assert (facts["images"], facts["skipped"]) == (12, {"text without an image": 1})
    assert (tmp_path / "one/skipped.tsv").read_text() == "2.tar\tlost\\n\ttext without an image\n"


# ---- the command


def test_shards_are_indexed_with_lvis_tags(shards, tmp_path, capsys):
    command = ["shards", "--shards", str(shards), "--output", str(tmp_path / "index")]
    captions = {"a dog": [CLASS["dog"]], "the cat": [CLASS["cat"]]}
    tool.main([*command, "--pattern", "[01].tar"])
    records = read_shards(str(tmp_path / "index"), str(shards), remedy="")
    assert [r["tags"] for r in records] == [captions[r["captions"][0]] for r in records] and len(records) == 8
    assert sorted({int(i) for i in np.unique(records.column("image_id"))}) == [80, 81, 82, 83, 90, 91, 92, 93]
    for rule, tags in (("words", [CLASS["cat"]]), ("none", [])):
        tool.main([*command, "--tag-rule", rule])  # replaces the index
        records = read_shards(str(tmp_path / "index"), str(shards), remedy="")
        assert len(records) == 12 and records[0]["tags"] == tags
    assert "12 image-text pairs of 3 shards\n  1 left out: text without an image" in capsys.readouterr().out
    (tmp_path / "nouns.txt").write_text("cat\nA_dog (pet),7\nthe cat")
    tool.main([*command, "--nouns", f"{tmp_path}/nouns.txt"])  # one whole caption is no noun
    with pytest.raises(UserError, match="no.txt not found: --nouns takes a .txt .* or a json"):
        tool.main([*command, "--nouns", "no.txt"])
    records = read_shards(str(tmp_path / "index"), str(shards), remedy="")
    assert len(records) == 6 and {tuple(r["tags"]) for r in records} == {(0,)}
    mistakes = ((["--pattern", "x*"], "no file there is named x"), (["--output", str(shards)], "not an index"))
    for options, message in mistakes:
        with pytest.raises(UserError, match=message):
            tool.main([*command, *options])
    (shards / "2.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"No image-text pair in \S+\.tar \(1 times unreadable rest\): give"):
        tool.main([*command, "--pattern", "2.tar"])


def test_a_tsv_becomes_a_pairs_json(tmp_path, encoded, capsys):
    for name, size in (("a.jpg", (40, 30)), ("sub/b.jpg", (20, 50))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(size))
    lines = ['a.jpg\ta "dog" and a cat', "sub/b.jpg\tnothing", "a.jpg\tthe same dog", "gone.jpg\ta dog", "a.jpg\t "]
    output = tmp_path / "pairs.json"

    def converted(text, *options):
        (tmp_path / "p.tsv").write_text(text, encoding="utf-8")
        tool.main(["tsv", "--tsv", f"{tmp_path}/p.tsv", "--images", str(tmp_path), "--output", str(output), *options])
        return list(read_captions(str(output), str(tmp_path), remedy=""))

    (record,) = converted("\n".join(lines))
    assert (record["captions"], record["tags"]) == (['a "dog" and a cat', "the same dog"], [CLASS["cat"], CLASS["dog"]])
    assert "1 left out: no tag\n  1 left out: missing" in capsys.readouterr().out
    for options in (["--keep-untagged"], ["--tag-rule", "none"]):
        first, second = converted("\n".join(lines), *options)
        assert (second["height"], second["width"], second["captions"]) == (50, 20, ["nothing"])
        assert bool(first["tags"]) == (options == ["--keep-untagged"])
    exchanged = ["caption\tfile", *("\t".join(line.split("\t")[::-1]) for line in lines)]
    assert converted("\n".join(exchanged)) == [record]
    for text, message in (
        ("a.jpg dog", "line 1 of .*p.tsv has 1 columns"),
        ("x.jpg\ta dog", "gives no image-text pair"),
    ):
        with pytest.raises(UserError, match=message):
            converted(text)
    output.unlink()
    with pytest.raises(UserError, match="no.tsv not found: correct --tsv"):
        tool.main(["tsv", "--tsv", "no.tsv", "--images", ".", "--output", str(output)])
    assert not output.exists()


def test_a_json_of_captions_gets_nouns(tmp_path, capsys):
    """vldet §2: nouns numbered by line, from 1; images without a noun go; fields of the images stay."""
    size = {"height": 3, "width": 4}
    images = [{"id": i, "file_name": f"{i}.jpg", "license": i, **size} for i in (7, 2, 5, 9)]
    coco = {7: ["Two dogs on", "the hot dog"], 2: ["a cat."], 5: ["a tree"]}
    texts = [{"image_id": i, "caption": caption} for i, captions in coco.items() for caption in captions]
    with_captions = [image | {"captions": coco.get(image["id"], [])} for image in images]
    nouns, output = tmp_path / "nouns.json", tmp_path / "out.json"
    nouns.write_text(json.dumps({"categories": [{"id": 4, "name": "hot_dog"}, {"id": 2, "name": "dog"}]}))
    (tmp_path / "nouns.txt").write_text("dog,1\nhot dog\ncat")
    sources = {"coco": {"images": images, "annotations": texts}}
    sources["pairs"] = {
        "images": [i | {"pos_category_ids": [9]} for i in with_captions],
        "categories": [{"id": 9, "name": "dog"}],
    }

    def made(source, *options):
        (tmp_path / "in.json").write_text(json.dumps(sources[source]))
        tool.main(["json", "--json", f"{tmp_path}/in.json", "--output", str(output), *options])
        return json.loads(output.read_text())

    for source in sources:
        found = made(source, "--nouns", str(nouns))
        assert found["images"] == [with_captions[0] | {"pos_category_ids": [1, 2]}] and found["annotations"] == []
        assert found["categories"][1] == {
            "id": 2, "name": "hot_dog", "synonyms": ["hot_dog"], "frequency": "f", "supercategory": "hot_dog"
        }  # fmt: skip
        assert "2 left out: no tag\n  1 left out: no caption" in capsys.readouterr().out
        kept = made(source, "--nouns", f"{tmp_path}/nouns.txt", "--tag-rule", "words", "--keep-untagged")["images"]
        tags = {7: [1, 2], 2: [3], 5: []}  # "dogs" is a dog, "hot dog" is not
        assert kept == [image | {"pos_category_ids": tags[image["id"]]} for image in with_captions[:3]]
        records = read_captions(str(output), str(tmp_path), remedy="")
        assert [r["tags"] for r in records] == [[0, 1], [2], []]
        (lvis,) = made(source)["images"]
        assert lvis["pos_category_ids"] == [CLASS["dog"] + 1]
        assert made(source, "--tag-rule", "none")["images"] == with_captions[:3]
    sources["text"] = {"images": [images[0] | {"captions": "a dog"}]}
    assert made("text", "--tag-rule", "none")["images"][0]["captions"] == ["a dog"]
    for content, message in (
        ([], r"in.json is \[\]: it must be an object"),
        ({"images": [{"id": 1}]}, "no image-text pair: {'no caption': 1}"),
        ({"images": [{"id": 1, "captions": [5]}]}, r"images\[0\].captions of .*\(id 1\) is \[5\]"),
    ):
        sources["bad"] = content
        with pytest.raises(UserError, match=message):
            made("bad")
