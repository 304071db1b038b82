//! Pages that never take the fast path: breakpoints, the bus, the APIC-access page.

use std::sync::{Arc, Mutex};

use silicon::memory::BusRegion;

use crate::machine::*;

#[test]
fn data_breakpoints_leave_pending_debug_exceptions() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.write(0x1000, 0).unwrap();
    // DR1: writes to 4 bytes at 0x1010; DR2: reads and writes of 1 byte at 0x1021.
    m.cpu.state.dr[1] = 0x1010;
    m.cpu.state.dr[2] = 0x1021;
    m.cpu.state.dr7 = 1 << 2 | 1 << 5 | 0b1101 << 20 | 0b0011 << 24;
    m.cpu.mmu_debug_changed();
    let hits = |m: &mut Machine| std::mem::take(&mut m.cpu.state.pending_debug);
    m.read(0x1010).unwrap();
    assert_eq!(hits(&mut m), 0);
    m.cpu.write(0x100f, 0u16).unwrap();
    assert_eq!(hits(&mut m), 1 << 12 | 2);
    m.read(0x101c).unwrap();
    assert_eq!(hits(&mut m), 1 << 12 | 4);
    m.cpu.update::<u64>(0x1019, true, |_| None).unwrap();
    assert_eq!(hits(&mut m), 0);
    m.cpu.update::<u64>(0x101a, true, |_| None).unwrap();
    assert_eq!(hits(&mut m), 1 << 12 | 4);
    assert!(m.cpu.host_write_ptr(0x1800, 8).is_none());
    let mut out = [0; 64];
    m.cpu.read_bytes(0x1000, &mut out).unwrap();
    assert_eq!(hits(&mut m), 1 << 12 | 4);
    // Disarmed, the page is fast again.
    m.cpu.state.dr7 = 0x400;
    m.cpu.mmu_debug_changed();
    m.write(0x1010, 0).unwrap();
    assert_eq!(hits(&mut m), 0);
    assert!(m.cpu.host_write_ptr(0x1800, 8).is_some());
}

#[derive(Default)]
struct Log(Mutex<Vec<(u64, u32, Option<u64>)>>);

impl BusRegion for Log {
    fn read(&self, offset: u64, width: u32) -> u64 {
        self.0.lock().unwrap().push((offset, width, None));
        0x1_0000_00ab
    }
    fn write(&self, offset: u64, width: u32, value: u64) {
        self.0.lock().unwrap().push((offset, width, Some(value)));
    }
}

#[test]
fn physical_devices_are_upcalls() {
    let mut m = Machine::long();
    let log = Arc::new(Log::default());
    m.cpu.memory.bus().add(0xe000_0000, 0x1000, Arc::clone(&log) as Arc<dyn BusRegion>);
    m.map(0x1000, 0xe000_0000 | P | W, 1);
    m.map(0x2000, 0xe000_1000 | P | W, 1);
    assert_eq!(m.cpu.read::<u32>(0x1004), Ok(0xab));
    assert_eq!(m.cpu.write(0x1008, 0x77u16), Ok(()));
    assert_eq!(m.cpu.update::<u8>(0x100c, true, |v| Some(v + 1)), Ok(0xab));
    assert_eq!(m.cpu.read::<u32>(0x2000), Ok(!0), "nobody there");
    assert_eq!(m.cpu.write(0x2000, 0u32), Ok(()));
    let expected = [(4, 4, None), (8, 2, Some(0x77)), (12, 1, None), (12, 1, Some(0xac))];
    assert_eq!(*log.0.lock().unwrap(), expected);
}

#[test]
fn the_apic_access_page_is_virtualized() {
    const TPR_SHADOW: u32 = 1 << 21;
    const APIC_ACCESS: u32 = 44;
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.write(0x1000, 0x1122).unwrap();
    m.cpu.ctl.apic_access_pa = 0x5000;
    m.cpu.ctl.virtual_apic_pa = 0x6000;
    m.cpu.ctl.primary |= TPR_SHADOW;
    m.cpu.mmu_enter();
    m.poke(0x6080, 0x60);
    assert_eq!(m.cpu.read::<u32>(0x1080), Ok(0x60), "TPR comes from the virtual-APIC page");
    let r = m.cpu.read::<u32>(0x1300);
    assert_eq!(m.exit(r), (APIC_ACCESS, 0x300));
    m.cpu.state.assist_done = 1;
    m.cpu.state.assist_result = 0x99;
    m.cpu.replay_begin();
    assert_eq!(m.cpu.read::<u32>(0x1300), Ok(0x99));
    m.cpu.replay_end();
    let r = m.cpu.write(0x1300, 5u32);
    assert_eq!(m.exit(r), (APIC_ACCESS, 0x1300));
    assert_eq!((m.cpu.state.assist_kind, m.cpu.state.assist_data), (4, 5));
    let r = m.cpu.fetch(0x1300);
    assert_eq!(m.exit(r), (APIC_ACCESS, 0x2300));
}
