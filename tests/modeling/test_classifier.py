"""The text classifier: values, the background column, the bias that only training sees."""

import math

import pytest
import torch

from clim.modeling.classifier import CosineClassifier


def classifier(**kwargs):
    torch.manual_seed(0)
    embeddings = torch.randn(4, 6) * torch.tensor([[1.0], [5.0], [0.1], [10.0]])  # not normalised, as Detic's files
    arguments = {"class_embeddings": embeddings, "temperature": 50.0} | kwargs
    return CosineClassifier(8, **arguments), embeddings


def slow_logits(module, embeddings, x):
    """temperature · cos(Wx + b, t) by loops, and 0 for background."""
    weight, bias = module.linear.weight.tolist(), module.linear.bias.tolist()
    rows = []
    for features in x.tolist():
        v = [sum(w * f for w, f in zip(row, features, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        cosines = [
            sum(a * b for a, b in zip(v, t, strict=True)) / (math.hypot(*v) * math.hypot(*t))
            for t in embeddings.tolist()
        ]
        rows.append([module.temperature * c for c in cosines] + [0.0])
    return torch.tensor(rows)


def test_logits_are_temperature_times_cosine_and_zero_for_background():
    module, embeddings = classifier()
    x = torch.randn(5, 8)
    torch.testing.assert_close(module(x), slow_logits(module, embeddings, x), rtol=1e-4, atol=1e-4)
    assert (module(x)[:, -1] == 0).all()


def test_the_bias_is_added_in_training_only():
    module, embeddings = classifier(temperature=25.0, train_bias=-20.0)
    x = torch.randn(5, 8)
    expected = slow_logits(module, embeddings, x)
    torch.testing.assert_close(module.train()(x), expected - 20, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert module.cls_bias.shape == (1,) and module.cls_bias.requires_grad


def test_without_a_bias_there_is_no_parameter_for_it():
    module, _ = classifier()
    assert set(module.state_dict()) == {"zs_weight", "linear.weight", "linear.bias"}
    assert module.zs_weight.shape == (6, 5)
    x = torch.randn(3, 8)
    assert torch.equal(module.train()(x), module.eval()(x))


def test_class_embeddings_are_unit_rows_and_a_zero():
    module, embeddings = classifier()
    assert module.class_embeddings.shape == (5, 6)
    torch.testing.assert_close(module.class_embeddings[:4], embeddings / embeddings.norm(dim=1, keepdim=True))
    assert (module.class_embeddings[4] == 0).all()


def test_projections_are_not_normalised():
    module, _ = classifier()
    x = torch.randn(3, 8)
    assert torch.equal(module.project(x), module.linear(x))
    assert (module.project(x).norm(dim=1) - 1).abs().min() > 1e-3


def test_gradients_reach_the_projection_and_the_bias_but_no_text():
    module, _ = classifier(train_bias=-20.0)
    x = torch.randn(3, 8, requires_grad=True)
    module(x)[:, :-1].sigmoid().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (module.linear.weight, module.linear.bias, module.cls_bias, x))
    assert not module.zs_weight.requires_grad and not module.class_embeddings.requires_grad


def test_another_vocabulary():
    module, _ = classifier(train_bias=-20.0)
    others = torch.randn(7, 6) * 3
    module.eval().set_vocabulary(others)
    x = torch.randn(2, 8)
    torch.testing.assert_close(module(x), slow_logits(module, others, x), rtol=1e-4, atol=1e-4)
    assert module.state_dict()["zs_weight"].shape == (6, 8)


def test_no_region():
    module, _ = classifier()
    assert module(torch.zeros(0, 8)).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_embeddings_of_any_precision(dtype):
    embeddings = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    module, _ = classifier(class_embeddings=embeddings)
    assert module.zs_weight.dtype == torch.float32
    torch.testing.assert_close(module.zs_weight.norm(dim=0), torch.tensor([1.0, 1, 1, 1, 0]))


def test_a_learned_background_is_one_direction_more():
    module, embeddings = classifier(learned_background=True)
    x = torch.randn(5, 8)
    weight, bias = module.background.weight[:, 0].tolist(), module.background.bias.tolist()
    rows = torch.cat([embeddings, torch.tensor([[w + b for w, b in zip(weight, bias, strict=True)]])])
    torch.testing.assert_close(module(x), slow_logits(module, rows, x)[:, :-1], rtol=1e-4, atol=1e-4)
    module(x)[:, -1].sum().backward()
    assert module.background.weight.grad.abs().sum() > 0
    module.set_vocabulary(torch.randn(2, 6))
    assert module(x).shape == (5, 3)
