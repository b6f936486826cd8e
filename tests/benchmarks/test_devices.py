import json

import pytest

from benchmarks import devices

PROGRAM = """
  %a = f32[8,100]{1,0} all-reduce(%x), metadata={op_name="jit(run_chunk)/while/body/dot"}
  %b = (f64[]{:T(8)}, s32[5]{0}) all-gather(%y), metadata={op_name="jit(run_chunk)/while/body/add"}
  %c = pred[] all-reduce(%z), metadata={op_name="jit(run_chunk)/reduce_and"}
"""


def test_messages_are_those_of_a_step():
    assert devices.messages(PROGRAM) == {"count": 2, "bytes": 3200 + 8 + 20}


@pytest.mark.slow
def test_two_devices_exchange_a_gradient(tmp_path, monkeypatch):
    out = tmp_path / "devices.json"
    monkeypatch.setattr(devices, "CASES", {"rows": 640})
    devices.main(["--rounds=1", "--devices=1", "--devices=2", "--out", str(out)])
    one, two = json.loads(out.read_text())["cases"][0]["rows"]
    assert one["messages"] == {"count": 0, "bytes": 0}
    # Of eight draws the gradient in 100 weights and the log joint, in single precision.
    assert two["messages"] == {"count": 1, "bytes": 4 * 8 * 101}
    assert one["device_mb"] > 1.8 * two["device_mb"]
    assert one["speedup"]["median"] == 1.0
    assert "| 2 |" in out.with_suffix(".md").read_text()
