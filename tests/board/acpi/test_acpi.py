"""ACPI tables: structure by the specification, AML by iasl where it is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from turtles.board import layout
from turtles.board.acpi import aml
from turtles.board.acpi.tables import Tables, build


@pytest.fixture(scope="module")
def tables() -> Tables:
    return build()


def test_the_root_pointer_leads_to_everything(tables: Tables) -> None:
    rsdp = tables.part("RSDP")
    assert rsdp[:8] == b"RSD PTR "
    assert tables.base % 16 == 0
    assert layout.ACPI_TABLES <= tables.base < layout.LEGACY_END
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    rsdt, xsdt = struct.unpack("<I", rsdp[16:20])[0], struct.unpack("<Q", rsdp[24:32])[0]
    assert (rsdt, xsdt) == (tables.parts["RSDT"][0], tables.parts["XSDT"][0])
    narrow = struct.unpack("<3I", tables.part("RSDT")[36:])
    assert narrow == struct.unpack("<3Q", tables.part("XSDT")[36:])
    assert narrow == tuple(tables.parts[name][0] for name in ("FACP", "APIC", "MCFG"))
    fadt = tables.part("FACP")
    assert struct.unpack("<II", fadt[36:44]) == (tables.parts["FACS"][0], tables.parts["DSDT"][0])


@pytest.mark.parametrize("name", ["RSDT", "XSDT", "FACP", "DSDT", "APIC", "MCFG"])
def test_lengths_and_checksums(tables: Tables, name: str) -> None:
    part = tables.part(name)
    assert part[:4] == name.encode()
    assert struct.unpack("<I", part[4:8])[0] == len(part)
    assert sum(part) & 0xFF == 0


def test_fadt_is_of_its_revision(tables: Tables) -> None:
    fadt = tables.part("FACP")
    assert len(fadt) == 244
    assert fadt[48:52] == bytes(4)  # no SMI command port: always in ACPI mode
    assert struct.unpack("<I", fadt[76:80])[0] == layout.PORT_ACPI_PM + 8
    assert not struct.unpack("<I", fadt[112:116])[0] & 1 << 20  # not hardware-reduced


def test_facs_is_aligned(tables: Tables) -> None:
    assert tables.parts["FACS"][0] % 64 == 0
    assert len(tables.part("FACS")) == 64


def test_package_length_encodings() -> None:
    assert aml.package_length(bytes(62)) == b"\x3f"
    assert aml.package_length(bytes(63)) == bytes((0x41, 0x04))
    assert aml.package_length(bytes(4093)) == bytes((0x4F, 0xFF))
    assert aml.package_length(bytes(4094)) == bytes((0x81, 0x00, 0x01))


def test_names_and_constants() -> None:
    assert aml.name_string("\\_SB") == b"\\_SB_"
    assert aml.name_string("^A.B") == b"^\x2eA___B___"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert aml.integer(0x12345) == b"\x0c\x45\x23\x01\x00"
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_iasl_reads_and_recompiles_the_tables(tables: Tables, tmp_path: Path) -> None:
    for name in ("DSDT", "FACP", "APIC", "MCFG", "RSDT", "XSDT", "FACS"):
        binary = tmp_path / f"{name}.dat"
        binary.write_bytes(tables.part(name))
        done = subprocess.run(
            ["iasl", "-d", binary.name], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said = done.stdout + done.stderr
        assert "rror" not in said, said
        assert "arning" not in said, said
    done = subprocess.run(["iasl", "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "0 Errors, 0 Warnings" in done.stdout + done.stderr, done.stdout + done.stderr
    source = (tmp_path / "DSDT.dsl").read_text()
    for text in ("PNP0A03", "PNP0501", "_S5", "MaxFixed", "0x0000008000000000"):
        assert text in source
