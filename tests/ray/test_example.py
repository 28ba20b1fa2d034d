"""The documentation's example runs as it stands."""

import re
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/first_run.md"

pytestmark = pytest.mark.ray


def test_first_run(
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(EXAMPLE), "exec"), names)
    output = capsys.readouterr().out
    assert "(48, 48, 48) (48, 48, 48)" in output
    assert "fitted on stroke/threshold" in output
    assert (tmp_path / "predicted/patient_T1w/summary.json").exists()
    assert (tmp_path / "models/3D-Cube-n/MODEL_CARD.md").exists()
