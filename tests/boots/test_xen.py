"""Xen as L1: Debian's hypervisor, its Linux as dom0, and a PVH domain as L2. A minute: `pytest -m slow`."""

from __future__ import annotations

import pytest

from tests.boots import xen
from tests.boots.machine import boot, kept
from turtles.guests.packages import NoMirror
from turtles.l0.outcome import Ending
from turtles.tools.options import RunOptions


@pytest.mark.slow
def test_a_pvh_domain() -> None:
    try:
        files = xen.obtain()
    except NoMirror as e:
        pytest.skip(f"no packages: {e}")
    options = RunOptions(
        kernel=str(files.hypervisor),
        append="console=com1 com1=115200 dom0_mem=512M loglvl=warning",
        initrds=(f"{files.kernel} console=hvc0 quiet panic=-1", str(files.initrd)),
        memory=1024 << 20,
        timeout=300.0,
    )
    found = boot(options, "host")
    with kept("xen-pvh", found):
        text = found.serial.decode("utf-8", "replace")
        assert "virt_caps              : pv hvm hap" in text
        assert "DomU: xen" in text
        assert "PVH, 30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58" in text
        assert found.outcome.ending is Ending.POWER_OFF
        assert found.exits[2, "VMCALL", "L1"] > 100
