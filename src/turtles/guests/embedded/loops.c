/*
 * The guest on top when the command line says loops=1: one kind of exit again and again, each kind between
 * two marks, for `turtles bench exits`. A mark is a byte written to PORT_MARK: the row's number, then 0.
 */
#include "vmx.h"

enum { CPUID = 1, OUT, IN, RDMSR, EOI, DEADLINE, SELF_IPI, TIMER, HALT, VMREAD, VMWRITE };

static void take_cpuid(void) { u32 r[4]; cpuid(0, 0, r); }
static void take_out(void) { outb(PORT_NOBODY, 0); }
static void take_in(void) { inb(PORT_SERIAL_STATUS); }
static void take_eoi(void) { wrmsr(0x80b, 0); }
static void take_deadline(void) { wrmsr(0x6e0, rdtsc() + 1000000000ull); }
static void take_rdmsr(void) { rdmsr(0x808); }     /* x2APIC: task priority */

static void take_self_ipi(void)
{
    u64 before = ticks;
    wrmsr(0x83f, TIMER_VECTOR);
    asm volatile("sti; nop");
    while (ticks == before)
        ;
    asm volatile("cli");
}

static void take_timer(void)
{
    u64 before = ticks;
    wrmsr(0x6e0, rdtsc() + 5000);
    asm volatile("sti");
    while (ticks == before)
        ;
    asm volatile("cli");
}

static void take_halt(void)
{
    wrmsr(0x6e0, rdtsc() + 20000);
    wait_for_interrupt();
}

static void row(u8 number, u64 rounds, void (*take)(void))
{
    for (u64 i = 0; i < rounds / 8; i++)     /* until everything that happens here is translated */
        take();
    outb(PORT_MARK, number);
    for (u64 i = 0; i < rounds; i++)
        take();
    outb(PORT_MARK, 0);
}

static void take_vmread(void) { vmread(GUEST_RFLAGS); }
static void take_vmwrite(void) { vmwrite(EXCEPTION_BITMAP, 0); }

/* In a hypervisor, with a VMCS current. */
void run_vmcs_loops(void)
{
    row(VMREAD, 20000, take_vmread);
    row(VMWRITE, 20000, take_vmwrite);
}

void run_loops(void)
{
    row(CPUID, 20000, take_cpuid);
    row(OUT, 20000, take_out);
    row(IN, 20000, take_in);
    if (level > 1)
        return;                              /* no local APIC up here */
    row(RDMSR, 20000, take_rdmsr);
    row(EOI, 20000, take_eoi);
    row(DEADLINE, 20000, take_deadline);
    row(SELF_IPI, 5000, take_self_ipi);
    row(TIMER, 2000, take_timer);
    row(HALT, 500, take_halt);
}
