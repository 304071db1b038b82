//! The Python constants in `src/turtles/silicon/` say what the Rust tables say.
//!
//! `UPDATE_PYTHON=1 cargo test --test python_constants` writes them.

use std::fmt::Write as _;
use std::path::PathBuf;

use silicon::slots::STATE_FIELDS;
use silicon::vmx::bits;
use silicon::vmx::fields::{Area, FIELDS, GROUPS, area_range, header};
use silicon::vmx::reasons::REASONS;

fn head(text: &str) -> String {
    format!(
        "\"\"\"{text}\n\nGenerated from the tables of the Rust crate by its test `python_constants`; do not edit.\n\"\"\"\n"
    )
}

fn screaming(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i != 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// One constant a line: a name and what follows ` = `.
fn constants<N: AsRef<str>>(lines: impl IntoIterator<Item = (N, String)>) -> String {
    lines.into_iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{}: Final = {value}", name.as_ref());
        out
    })
}

fn fields() -> String {
    let mut out = head("VMCS fields by slot number: `vmcs.slots[GUEST_RIP]`, and the slices of its areas.");
    out += "\nfrom typing import Final\n\n";
    out += &constants([
        ("REVISION", header::REVISION.to_string()),
        ("LAUNCH_STATE", header::LAUNCH_STATE.to_string()),
        ("WRITTEN", header::WRITTEN.to_string()),
        ("FIRST_FREE", header::FIRST_FREE.to_string()),
        ("FIRST_FIELD", header::FIRST_FIELD.to_string()),
    ]);
    out += "\n";
    out += &constants(FIELDS.iter().map(|f| (f.name, f.slot.to_string())));
    out += "\n# Areas (SDM 25.3).\n";
    for (name, area) in [
        ("GUEST_AREA", Area::Guest),
        ("HOST_AREA", Area::Host),
        ("CONTROL_AREA", Area::Control),
        ("EXIT_AREA", Area::Exit),
    ] {
        let (first, end) = area_range(area);
        let _ = writeln!(out, "{name}: Final = slice({first}, {end})");
    }
    out += "\n# Groups: bits of the slot WRITTEN, and the slots that each stands for.\n";
    for &(group, name) in GROUPS {
        let slots: Vec<_> = FIELDS.iter().filter(|f| f.group == group).map(|f| f.slot).collect();
        let name = screaming(name);
        let _ = writeln!(out, "WRITTEN_{name}: Final = 1 << {}", group as u8);
        let _ = writeln!(out, "{name}_SLOTS: Final = slice({}, {})", slots[0], slots[slots.len() - 1] + 1);
    }
    out
}

fn encodings() -> String {
    let mut out = head("VMCS fields by SDM encoding (appendix B), as VMREAD and VMWRITE name them.");
    out += "\nfrom typing import Final\n\n";
    out += &constants(FIELDS.iter().map(|f| (f.name, format!("0x{:04X}", f.encoding))));
    out += "\n# Slot of each encoding (full access; bit 0 set names the high half of a 64-bit field).\n";
    out += "SLOT_OF: Final[dict[int, int]] = {\n";
    for f in FIELDS {
        let _ = writeln!(out, "    0x{:04X}: {},  # {}", f.encoding, f.slot, f.name);
    }
    out += "}\n";
    out
}

fn slots() -> String {
    const GPR: [&str; 16] =
        ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"];
    let mut out = head("The flat state by slot number: `core.slots[slots.RAX]`; arrays start at their slot.");
    out += "\nfrom typing import Final\n\n";
    out += &constants(GPR.iter().enumerate().map(|(i, name)| (*name, i.to_string())));
    out += "\n";
    out += &constants(STATE_FIELDS.iter().map(|f| (f.name.to_uppercase(), f.slot.to_string())));
    out += "\n# Slots of each array.\n";
    out += "COUNTS: Final[dict[str, int]] = {\n";
    for f in STATE_FIELDS.iter().filter(|f| f.count > 1) {
        let _ = writeln!(out, "    \"{}\": {},", f.name.to_uppercase(), f.count);
    }
    out += "}\n";
    out += "\n# Offsets in a segment register's four slots, and the registers' numbers (slot = SEG + 4 * number).\n";
    out += "SELECTOR: Final = 0\nBASE: Final = 1\nLIMIT: Final = 2\nACCESS: Final = 3\n";
    out += &constants(
        ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"].iter().enumerate().map(|(i, n)| (*n, i.to_string())),
    );
    out
}

fn reasons() -> String {
    let mut out = head("Basic exit reasons (SDM appendix C).");
    out += "\nfrom enum import IntEnum\nfrom typing import Final\n\n";
    out += "ENTRY_FAILURE: Final = 1 << 31\n\"\"\"Bit of the exit reason: the VM entry failed.\"\"\"\n\n\n";
    out += "class ExitReason(IntEnum):\n    \"\"\"Basic exit reason: bits 15:0 of the exit reason.\"\"\"\n\n";
    for (name, number) in REASONS {
        let _ = writeln!(out, "    {name} = {number}");
    }
    out
}

fn controls() -> String {
    let mut out = head("Bits of VM-execution, VM-exit and VM-entry controls (SDM 25.6 to 25.8) and of guest states.");
    out += "\nfrom typing import Final\n";
    for (prefix, title, table) in [
        ("PIN", "Pin-based controls.", bits::pin::ALL),
        ("PRIMARY", "Primary processor-based controls.", bits::primary::ALL),
        ("SECONDARY", "Secondary processor-based controls.", bits::secondary::ALL),
        ("EXIT", "VM-exit controls.", bits::exit::ALL),
        ("ENTRY", "VM-entry controls.", bits::entry::ALL),
        ("BLOCKING", "Guest interruptibility state.", bits::interruptibility::ALL),
    ] {
        let _ = writeln!(out, "\n# {title}");
        out += &constants(
            table.iter().map(|(name, value)| (format!("{prefix}_{name}"), format!("1 << {}", value.trailing_zeros()))),
        );
    }
    out += "\n# Guest activity state.\n";
    out += &constants(bits::activity::ALL.iter().map(|(name, value)| (format!("ACTIVITY_{name}"), value.to_string())));
    out
}

#[test]
fn python_constants_are_current() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../src/turtles/silicon");
    let update = std::env::var_os("UPDATE_PYTHON").is_some();
    for (file, expected) in [
        ("fields.py", fields()),
        ("encodings.py", encodings()),
        ("slots.py", slots()),
        ("reasons.py", reasons()),
        ("controls.py", controls()),
    ] {
        let path = folder.join(file);
        if update {
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "{file} is out of date: UPDATE_PYTHON=1 cargo test --test python_constants");
    }
}
