"""tools/predict.py: ``clim predict`` with the demo's model."""

import importlib.util
from pathlib import Path

import pytest

from clim.errors import UserError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "predict.py"
spec = importlib.util.spec_from_file_location("predict_tool", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_the_demos_model_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make demo"):
        tool.main(["--input", __file__])
    calls = []
    monkeypatch.setattr(tool, "predict", lambda args: calls.append((args.config_file, args.weights)))
    tool.DEMO_WEIGHTS.parent.mkdir(parents=True)
    tool.DEMO_WEIGHTS.touch()
    tool.main(["--input", __file__])
    tool.main(["--input", __file__, "--weights", "x.pth"])
    tool.main(["--input", __file__, "--config-file", "x.yaml"])
    tool.main(["--input", __file__, "--opts", "MODEL.WEIGHTS", "y.pth"])
    demo = tool.DEMO_CONFIG
    assert calls == [(demo, str(tool.DEMO_WEIGHTS)), (demo, "x.pth"), (Path("x.yaml"), None), (demo, None)]
