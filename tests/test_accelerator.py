"""Training and generation on a device other than the CPU; see accelerator.py."""

import subprocess
import sys
from pathlib import Path


def test_on_an_accelerator_no_operation_mixes_devices() -> None:
    script = Path(__file__).with_name("accelerator.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
