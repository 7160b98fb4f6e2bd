"""YAML of configs is read without running code; damaged files are told with file and line, quickly."""

import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.config_files import parse_yaml, read_config, read_yaml
from clim.engine import load_config
from clim.errors import UserError


@pytest.fixture
def written(tmp_path):
    def write(content, name="x.yaml"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return write


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "x.yaml holds nothing, not sections of keys"),
        ("# only a comment", "x.yaml holds nothing"),
        ("[]", "x.yaml holds a list"),
        ("3", "x.yaml holds one value"),
        ("text", "x.yaml holds one value"),
        ("MODEL: [1,", "x.yaml is not valid YAML .line"),
        ("MODEL:\n\tDEVICE: cpu", "x.yaml is not valid YAML .line 2"),
        ("SEED: 1\n\nSEED: 2", "line 3: SEED is given twice, first in line 1"),
        ("SOLVER: {STEPS: [1], STEPS: [2]}", "STEPS is given twice"),
        ("SEED: !!python/object/apply:os.system ['false']", "line 1: the tag python/object/apply:os.system could run"),
        ("SEED: !mine 3", "could not determine a constructor"),
        ("SEED: !!int x", "x.yaml is not valid YAML"),
        ("SEED: 2020-99-99", "x.yaml is not valid YAML"),
        ("SEED: 2020-01-01", "SEED is datetime.date.*x.yaml.: it must be a whole number"),
        (BOMB, "aliases stand for too many values"),
        ("SEED: &a [*a]", "aliases stand for too many values"),
        ("SEED: " + "[" * 100_000, "more than 50 levels|x.yaml is not valid YAML"),
        ("- " * 60 + "1", "more than 50 levels"),
        ("SEED: 1\n---\nSEED: 2", "x.yaml is not valid YAML"),
        ("1: 2", "x.yaml has the key 1"),
        ("MODEL: {null: 2}", "x.yaml has the key None in MODEL"),
        ("[a]: 2", "x.yaml is not valid YAML"),
        ("MODEL:", "MODEL is None .*x.yaml.: it is a section"),
        ("MODEL:\n  FOO: 1\n", "MODEL.FOO is no key of the config .*x.yaml"),
        ("FOO: {}", "FOO is no key of the config .*x.yaml"),
        ("MODEL: {RPN: 5}", "MODEL.RPN is 5 .*x.yaml.: it is a section"),
        ("OUTPUT_DIR: 2024", "OUTPUT_DIR is 2024 .*x.yaml.: it must be a text, in quotes"),
        ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan .*x.yaml.: it must be a number, 0 or more"),
        ("SOLVER: {BASE_LR: -1.0}", "SOLVER.BASE_LR is -1.0 .*x.yaml"),
        ("INPUT: {MOSAIC: {GROUPS: 0}}", "renamed .*x.yaml"),
        ("MODEL: {TRUST_WEIGHTS: True}", "MODEL.TRUST_WEIGHTS is True .*x.yaml.: it must be False in files"),
        (b"\x80\x81\x00", "x.yaml is not text in UTF-8"),
        ("SEED: 1".encode("utf-16"), "x.yaml is not text in UTF-8"),
        (b"SEED: '\x01'", "x.yaml is not valid YAML"),
        (b"#" * (2**22 + 1), "x.yaml is no regular file of at most 4 MB"),
        ("_BASE_: 3", "_BASE_ of .*x.yaml is 3: give the path"),
        ("_BASE_: [3]", "_BASE_ of .*x.yaml is .3.: give the path"),
        ("_BASE_: {a: b}", "_BASE_ of .*x.yaml is"),
        ("_BASE_: x.yaml", "_BASE_ of .*x.yaml leads back to .*x.yaml"),
        ("_BASE_: none.yaml", "none.yaml not found: correct _BASE_ of .*x.yaml"),
        ("_BASE_: .", "is no regular file .*: correct _BASE_ of .*x.yaml"),
        ("_BASE_: http://localhost/x.yaml", "http://localhost/x.yaml is an address"),
        ("_BASE_: detectron2://x.yaml", "is an address"),
    ],
)
def test_a_damaged_config_is_one_sentence(written, content, words):
    file = written(content)
    with pytest.raises(UserError, match=words) as caught:
        load_config(file, [])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("fifo", "folder", "none"):
        with pytest.raises(UserError, match=f"{name}.yaml"):
            load_config(str(tmp_path / f"{name}.yaml"), [])
    with pytest.raises(UserError, match="is no regular file"):
        read_yaml("/dev/zero", remedy="name another")
    with pytest.raises(UserError, match="is an address"):
        load_config("https://localhost/x.yaml", [])


def test_bases_come_first_in_their_order(written, tmp_path):
    """One or a list, relative to the file, absolute, of other files; the last one that names a key wins."""
    (tmp_path / "deep").mkdir()
    first = written("SEED: 1\nSOLVER: {BASE_LR: 0.5, MAX_ITER: 7}")
    written("_BASE_: ../x.yaml\nSOLVER: {BASE_LR: 2}", "deep/y.yaml")
    last = written(f"\ufeffSOLVER: {{STEPS: '(3,)'}}\n_BASE_: [deep/y.yaml, {first}]\nSEED: 4\n", "z.yaml")
    cfg = load_config(last, ["SEED", 5])
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (5, 0.5, 7, (3,))
    assert [value for key, value, _ in read_config(last) if key == "SEED"] == [1, 1, 4]


def test_many_bases_end(written):
    for i in range(30):
        written(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\nSEED: 1", f"{i}.yaml")
    file = written("SEED: 1", "30.yaml").replace("30.yaml", "0.yaml")
    with pytest.raises(UserError, match="too many files"):
        load_config(file, [])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_sound_yaml_is_read_as_pyyaml_reads_it(content):
    text = yaml.safe_dump(content)
    assert parse_yaml(text, source="x") == yaml.safe_load(text)
