"""The Python face: the stub says what the module has, models say what they offer, cores behave as objects."""

import ast
import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import turtles.silicon
from tests.silicon.machine import CODE, Machine
from turtles.silicon import (
    Core,
    ExitReason,
    Memory,
    Model,
    Rule,
    Vmcs,
    _silicon,
    encodings,
    entry_rules,
    reasons,
    slots,
)
from turtles.silicon import fields as f

STUB = ast.parse((Path(turtles.silicon.__file__).parent / "_silicon.pyi").read_text())


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or class body of the stub declares, by name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def test_stub_declares_exactly_the_module() -> None:
    assert public(declared(STUB.body)) == public(vars(_silicon))


CLASSES = [node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name != "SiliconError"]


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_stub_declares_exactly_each_class(node: ast.ClassDef) -> None:
    cls = getattr(_silicon, node.name)
    assert public(declared(node.body)) == public(vars(cls))
    for name, member in declared(node.body).items():
        if not isinstance(member, ast.FunctionDef) or (name.startswith("_") and name != "__new__"):
            continue
        if any(isinstance(d, ast.Name) and d.id == "property" for d in member.decorator_list):
            assert inspect.isgetsetdescriptor(vars(cls)[name]), name
            continue
        if name == "__new__":
            continue  # PyO3 gives the signature to the class
        written = [argument.arg for argument in member.args.args]
        assert list(inspect.signature(getattr(cls, name)).parameters) == written, f"{node.name}.{name}"


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_stub_documents_everything(node: ast.ClassDef) -> None:
    for name, member in declared(node.body).items():
        if isinstance(member, ast.FunctionDef) and not name.startswith("_"):
            assert ast.get_docstring(member), f"{node.name}.{name}"


def test_constants_are_those_of_the_module() -> None:
    for name, (slot, encoding) in _silicon.VMCS_FIELDS.items():
        assert getattr(f, name) == slot
        assert getattr(encodings, name) == encoding
        assert encodings.SLOT_OF[encoding] == slot
    for name, (slot, count) in _silicon.STATE_SLOTS.items():
        assert getattr(slots, name.upper()) == slot
        assert slots.COUNTS.get(name.upper(), 1) == count
    assert {reason.name: reason.value for reason in reasons.ExitReason} == _silicon.EXIT_REASONS


def test_rules_are_named_once() -> None:
    rules = entry_rules()
    assert len({rule.name for rule in rules}) == len(rules) > 100
    assert all(isinstance(rule, Rule) and rule.error in (0, 7, 8) for rule in rules)


# --- models ---


def test_model_says_what_cannot_be_had() -> None:
    with pytest.raises(ValueError, match='no processor model is called "z80"; there are: max, base'):
        Model("z80")
    with pytest.raises(ValueError, match='no processor feature is called "mmx5"'):
        Model("max", enable=["mmx5"])
    with pytest.raises(ValueError, match='"unrestricted_guest" needs "ept"'):
        Model("max", enable=["unrestricted_guest"], disable=["ept"])


def test_features_go_with_what_they_need() -> None:
    model = Model("max", disable=["vmx"])
    assert not model.features & {"ept", "vpid", "unrestricted_guest"}
    assert model.vmx_msr(0x480) is None
    assert not model.cpuid(1)[2] & 1 << 5
    assert not model.cr4_bits & 1 << 13


def test_each_feature_is_its_cpuid_bit() -> None:
    """Without the feature its bit is 0, with it 1; nothing else of CPUID's feature leaves changes."""
    leaves = [(1, 0), (6, 0), (7, 0), (13, 1), (0x80000001, 0), (0x80000007, 0)]
    full = Model()
    for name, leaf, subleaf, register, bit in (
        ("smep", 7, 0, 1, 7),
        ("rdrand", 1, 0, 2, 30),
        ("pdpe1gb", 0x80000001, 0, 3, 26),
        ("invtsc", 0x80000007, 0, 3, 8),
        ("xsaves", 13, 1, 0, 3),
    ):
        less = Model("max", disable=[name])
        for at in leaves:
            with_it, without = full.cpuid(*at), less.cpuid(*at)
            changed = [a ^ b for a, b in zip(with_it, without, strict=True)]
            if at == (leaf, subleaf):
                assert changed[register] == 1 << bit
                changed[register] = 0
            if name != "xsaves":
                assert changed == [0, 0, 0, 0], (name, at)


def test_cpuid_describes_the_processor() -> None:
    model = Model()
    _, b, c, d = model.cpuid(0)
    assert b"".join(x.to_bytes(4, "little") for x in (b, d, c)) == b"GenuineIntel"
    a, b, c, _ = model.cpuid(0x15)
    assert c * b // a == 10**9
    assert model.cpuid(0x80000008)[0] == 40 | 48 << 8
    assert model.cpuid(0x99) == model.cpuid(0x16)
    assert model.cpuid(13, 0, 3)[1] == 576
    assert model.arch_capabilities & 3 == 3


KVM_REQUIRES = {
    0x48D: 1 << 0 | 1 << 3,
    0x48E: 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 15 | 1 << 16 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24
    | 1 << 3 | 1 << 29,
    0x48F: 1 << 2 | 1 << 9 | 1 << 15,
    0x490: 1 << 2 | 1 << 9,
}  # fmt: skip


@pytest.mark.parametrize("msr", KVM_REQUIRES, ids=hex)
def test_controls_that_kvm_requires(msr: int) -> None:
    value = Model().vmx_msr(msr)
    assert value is not None
    assert value >> 32 & KVM_REQUIRES[msr] == KVM_REQUIRES[msr]
    older = Model().vmx_msr(msr - 12)
    assert older is not None
    assert older >> 32 == value >> 32
    assert older & value & 0xFFFFFFFF == value & 0xFFFFFFFF, "TRUE controls need no more ones"


# --- cores ---


def test_state_is_one_view() -> None:
    machine = Machine()
    assert machine.core.slots is machine.core.slots
    assert machine.core.slots.format == "Q"
    assert len(machine.core.slots) == _silicon.STATE_SIZE
    assert len(machine.slots) == _silicon.SLOTS == 512
    view = machine.core.slots
    del machine
    assert view[slots.XCR0] == 1  # the view keeps the state


def test_vmcs_must_be_a_page_of_the_same_memory() -> None:
    machine = Machine()
    with pytest.raises(ValueError, match="is not a page of memory"):
        Vmcs(machine.memory, 0x123)
    with pytest.raises(ValueError, match="is not a page of memory"):
        Vmcs(machine.memory, 1 << 40)
    with pytest.raises(ValueError, match="another memory"):
        machine.core.enter(Machine().vmcs)
    with pytest.raises(ValueError, match="holds no VMCS"):
        machine.core.enter(Vmcs(machine.memory, machine.page()))


def test_copy_from() -> None:
    one, other = Machine(), Machine()
    one.slots[f.GUEST_RSP] = 0x77
    other.vmcs.copy_from(one.vmcs, f.GUEST_AREA.start, f.GUEST_AREA.stop)
    assert other.slots[f.GUEST_AREA] == one.slots[f.GUEST_AREA]
    with pytest.raises(ValueError, match="no slots"):
        other.vmcs.copy_from(one.vmcs, 3, 513)


def test_another_thread_cannot_run_a_running_core() -> None:
    machine = Machine(b"\xeb\xfe", clock="host")
    thread = threading.Thread(target=lambda: machine.core.enter(machine.vmcs))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                machine.core.digest()
            except RuntimeError as error:
                assert "another thread runs this core" in str(error)
                break
        else:
            pytest.fail("the core never ran")
        assert machine.core.now() > 0
    finally:
        machine.core.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert machine.core.digest() != 0


def test_wait_is_ended_by_a_kick_and_by_the_deadline() -> None:
    machine = Machine(clock="host")
    threading.Timer(0.02, machine.core.kick).start()
    assert machine.core.wait(machine.core.now() + 10 * 10**9)
    before = machine.core.now()
    assert not machine.core.wait(before + 1_000_000)
    assert machine.core.now() >= before + 1_000_000
    assert machine.run() == ExitReason.HLT  # the kick was taken


def test_virtual_time_warps() -> None:
    machine = Machine()
    assert not machine.core.wait(1000)
    assert machine.core.now() == 1000
    with pytest.raises(ValueError, match="no end to wait for"):
        machine.core.wait()


def test_an_instruction_with_many_device_accesses_completes() -> None:
    """FXSAVE to a page without memory: every access is an exit, and each is done once."""
    machine = Machine(bytes.fromhex("90 0f ae 07 f4"))  # nop; fxsave [rdi]; hlt
    machine.memory.store(machine.ept_4k + 8 * 0x30, 8, 0)
    machine.state[slots.RDI] = 0x30000
    addresses = []
    while (reason := machine.run()) == ExitReason.EPT_VIOLATION:
        assert machine.rip == CODE + 1
        addresses.append(machine.state[slots.ASSIST_ADDRESS])
        machine.state[slots.ASSIST_DONE] = 1
    assert reason == ExitReason.HLT
    assert addresses == sorted(set(addresses)) and len(addresses) > 20
    assert machine.state[slots.REPLAY_COUNT] == 0


def test_equal_runs_have_equal_digests() -> None:
    def run(rounds: int) -> tuple[int, bytes]:
        machine = Machine(bytes.fromhex("48 ff c0 0f a2 eb f9"))  # inc rax; cpuid; jmp
        for _ in range(rounds):
            assert machine.run() == ExitReason.CPUID
            machine.advance()
        return machine.core.digest(), bytes(machine.core.slots)

    assert run(100) == run(100)
    assert run(100)[0] != run(101)[0]


def test_two_cores_share_memory() -> None:
    memory = Memory(1 << 20)
    model = Model()
    one, two = Core(memory, model), Core(memory, model)
    assert one.model is two.model is model
    one.slots[slots.RAX] = 1
    assert two.slots[slots.RAX] == 0


def test_host_clock_has_an_origin() -> None:
    origin = time.monotonic_ns() - 10**9
    core = Core(Memory(1 << 20), Model(), "host", origin)
    assert 10**9 <= core.now() < 20 * 10**9
    with pytest.raises(ValueError, match="a clock is"):
        Core(Memory(1 << 20), Model(), "sundial")  # type: ignore[arg-type]


def test_rip_is_reported() -> None:
    machine = Machine(b"\x90\xf4")
    assert machine.run() == ExitReason.HLT
    assert machine.rip == CODE + 1


def test_stubtest_agrees(tmp_path: Path) -> None:
    """mypy's stubtest: every name, signature and default."""
    source = str(Path(turtles.silicon.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--concise", "turtles.silicon._silicon"],
        env=dict(os.environ, MYPYPATH=source, PYTHONPATH=source),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
