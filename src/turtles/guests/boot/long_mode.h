/*
 * The way into long mode of our freestanding guests, as macros for their start.S: a Multiboot 1 header, 2 GiB
 * identity-mapped in 2-MiB pages, flat segments, a stack. Not here: what a guest does then.
 */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00000003      /* modules on page boundaries, memory information */
#define STACK_BYTES 32768
#define MAPPED_PAGES 1024               /* two page directories */

    .macro multiboot_header
    .section .multiboot, "a"
    .align 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .endm

/* From Multiboot's protected mode; what follows is 64-bit code. Leaves EBX, EBP and ESI alone. */
    .macro enter_long_mode
    .code32
    movl $pdpt + 3, pml4
    movl $pd + 3, pdpt
    movl $pd + 4096 + 3, pdpt + 8
    movl $pd, %edi
    movl $0x83, %eax
    movl $MAPPED_PAGES, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $0x20, %eax                    /* CR4.PAE */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              /* IA32_EFER.LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000031, %eax              /* CR0: PG, NE, ET, PE */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq $stack_top, %rsp
    .endm

/* Descriptors, page tables and the stack. */
    .macro long_mode_data
    .data
    .align 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* 08: 64-bit code */
    .quad 0x00cf93000000ffff            /* 10: data */
    .quad 0, 0                          /* 18: a TSS, for guests that have one */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .bss
    .align 4096
    .globl pml4, stack_top
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 8 * MAPPED_PAGES
    .align 16
    .skip STACK_BYTES
stack_top:
    .endm
