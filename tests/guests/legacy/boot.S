/*
 * A disk for SeaBIOS: boot sector and 16 sectors behind it. The processor's modes one after the other, with what software of
 * their time does in them; each that is done puts a digit on the debug console, and the last ends QEMU by its debug-exit device.
 */
    .code16
    .set PORT, 0xe9
    .global _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    ljmp $0, $1f
1:  movb %dl, drive
    movw $0x0210, %ax            # read 16 sectors behind this one
    movw $0x0002, %cx
    xorb %dh, %dh
    movw $0x7e00, %bx
    sti
    int $0x13
    cli
    jc fail16
    movb $'0', %al
    outb %al, $PORT
    jmp more
fail16:
    movb $'F', %al
    outb %al, $PORT
2:  hlt
    jmp 2b
drive: .byte 0
    .org 510
    .word 0xaa55
more:
    # real mode: software interrupt, #DE through the IVT, string operations backwards, segment wrap
    movw $rm_int, 0x60*4
    movw $0, 0x60*4+2
    xorw %cx, %cx
    int $0x60
    cmpw $0x60, %cx
    jne fail16
    movw $rm_de, 0
    movw $0, 2
    xorw %dx, %dx
    xorw %bx, %bx
    movw $1, %ax
    divw %bx
    cmpw $0xde, %cx
    jne fail16
    movb $'1', %al
    outb %al, $PORT
    # INT3, INTO, BOUND
    movw $rm_count, 3*4
    movw $0, 3*4+2
    movw $rm_count, 4*4
    movw $0, 4*4+2
    xorw %cx, %cx
    int3
    movb $0x7f, %al
    addb $1, %al
    into
    cmpw $2, %cx
    jne fail16
    # single step: TF in real mode
    movw $rm_count, 1*4
    movw $0, 1*4+2
    xorw %cx, %cx
    pushfw
    popw %ax
    orw $0x100, %ax
    pushw %ax
    popfw
    nop
    nop
    pushfw
    popw %ax
    andw $0xfeff, %ax
    pushw %ax
    popfw
    cmpw $4, %cx
    jb fail16
    movb $'2', %al
    outb %al, $PORT
    # A20 by port 92H, then big real mode
    inb $0x92, %al
    orb $2, %al
    outb %al, $0x92
    lgdtl gdtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    jmp 1f
1:  movw $0x10, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    ljmp $0, $1f
1:  xorw %ax, %ax
    movw %ax, %fs
    movl $0x200000, %edi
    movl $0x12345678, %fs:(%edi)
    movl %fs:(%edi), %eax
    cmpl $0x12345678, %eax
    jne fail16
    # 32-bit stack and addresses in real mode: beyond 64K of DS it is #GP
    movw $rm_gp, 13*4
    movw $0, 13*4+2
    xorw %cx, %cx
    movl $0x20000, %esi
    movb (%esi), %al
    nop
    cmpw $0x0d, %cx
    jne fail16
    movb $'3', %al
    outb %al, $PORT
    # 16-bit protected mode
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmp $0x18, $pm16
rm_int:
    movw $0x60, %cx
    iretw
rm_de:
    movw $0xde, %cx
    popw %ax
    addw $2, %ax
    pushw %ax
    iretw
rm_count:
    incw %cx
    iretw
rm_gp:
    movw $0x0d, %cx
    popw %ax
    addw $3, %ax
    pushw %ax
    iretw
pm16:
    movw $0x20, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    lidtl idtr
    movw $0x40, %ax
    ltr %ax
    xorl %ecx, %ecx
    int $0x30
    cmpl $0x30, %ecx
    jne fail16
    movb $'4', %al
    outb %al, $PORT
    ljmpl $0x08, $pm32
    .code32
pm32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl $0x7c00, %esp
    # hardware task switches: JMP there and back, CALL with IRET
    movl $task, tss2+0x20
    movl $0x2, tss2+0x24
    movl $0x7a00, tss2+0x38
    movl $0, tss2+0x1c
    ljmp $0x48, $0
    cmpl $0x7a5c, shared
    jne fail32
    movl $task, tss2+0x20
    movl $0, shared
    lcall $0x48, $0
    cmpl $0x7a5c, shared
    jne fail32
    movb $'5', %al
    outb %al, $PORT
    # a task gate for #UD
    movl $task_ud, tss2+0x20
    movl $0x2, tss2+0x24
    movl $0x7a00, tss2+0x38
    movl $0, shared
    ud2
    cmpl $0x0d0d, shared
    jne fail32
    movb $'6', %al
    outb %al, $PORT
    # virtual-8086 mode: CLI and INT fault into the handler at IOPL 0
    movl $0x7800, tss1+4
    movw $0x10, tss1+8
    movl $0, shared
    movl %esp, saved
    pushl $0                     # GS FS DS ES
    pushl $0
    pushl $0
    pushl $0
    pushl $0                     # SS
    pushl $0x7600
    pushl $0x20002               # VM
    pushl $0
    pushl $v86
    iret
after_v86:
    movl saved, %esp
    cmpl $3, shared
    jne fail32
    movb $'7', %al
    outb %al, $PORT
    # 32-bit paging, 4-MiB pages
    movl $0x300000, %edi
    xorl %eax, %eax
    movl $1024, %ecx
    rep stosl
    movl $0x83, 0x300000
    movl $0x400083, 0x300004
    movl $0x83, 0x300008         # 8 MiB -> 0
    movl %cr4, %eax
    orl $0x10, %eax
    movl %eax, %cr4
    movl $0x300000, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    movl $0xabcd, 0x9000
    cmpl $0xabcd, 0x809000
    jne fail32
    movl $0, shared
    movl 0xc00000, %eax          # absent: #PF
    nop
    cmpl $0xe, shared
    jne fail32
    movb $'8', %al
    outb %al, $PORT
    # PAE
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0x301001, 0x300000
    movl $0, 0x300004
    movl $0, 0x300008
    movl $0, 0x30000c
    movl $0, 0x300010
    movl $0, 0x300014
    movl $0, 0x300018
    movl $0, 0x30001c
    movl $0x301000, %edi
    xorl %eax, %eax
    movl $1024, %ecx
    rep stosl
    movl $0x83, 0x301000
    movl $0x200083, 0x301008
    movl $0x83, 0x301010
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0x300000, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    cmpl $0xabcd, 0x409000
    jne fail32
    movb $'9', %al
    outb %al, $PORT
    # back: paging off, 16-bit protected mode, real mode
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    ljmp $0x18, $back16
fail32:
    movb $'E', %al
    outb %al, $PORT
1:  hlt
    jmp 1b
task:
    movl $0x7a5c, shared
    testl $0x4000, tss2+0x24     # not saved yet: look at the flags themselves
    pushfl
    popl %eax
    testl $0x4000, %eax
    jnz 1f
    ljmp $0x40, $0
1:  iret
task_ud:
    movl $0x0d0d, shared
    addl $2, tss1+0x20           # past UD2
    iret
pm_int30:
    movl $0x30, %ecx
    iret
pm_gp:                           # from virtual-8086 mode: skip what faulted
    addl $4, %esp
    incl %ss:shared
    movl (%esp), %eax
    movzbl %ss:(%eax), %ebx
    cmpb $0xfa, %bl
    je 1f
    incl (%esp)
    cmpb $0xcd, %bl
    je 1f
    jmp after_v86_load           # HLT: done
1:  incl (%esp)
    iret
after_v86_load:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    jmp after_v86
pm_pf:
    addl $4, %esp
    movl $0xe, shared
    addl $5, (%esp)
    iret
    .code16
v86:
    movw $0x1234, %ax
    cli
    int $0x21
    hlt
back16:
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmp $0, $1f
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    lidtl idtr_real
    xorw %cx, %cx
    int $0x60
    cmpw $0x60, %cx
    jne fail16
    movb $'A', %al
    outb %al, $PORT
    movb $'\n', %al
    outb %al, $PORT
    movw $0x501, %dx
    movb $0, %al
    outb %al, $0xf4
1:  hlt
    jmp 1b

    .align 8
gdt: .quad 0
    .quad 0x00cf9b000000ffff     # 08 code 32
    .quad 0x00cf93000000ffff     # 10 data 32
    .quad 0x00009b000000ffff     # 18 code 16
    .quad 0x000093000000ffff     # 20 data 16
    .quad 0, 0, 0
    .word 103, tss1; .byte 0, 0x89, 0, 0   # 40
    .word 103, tss2; .byte 0, 0x89, 0, 0   # 48
gdt_end:
gdtr: .word gdt_end - gdt - 1
    .long gdt
idtr: .word 0x31*8 - 1
    .long idt
idtr_real: .word 0x3ff
    .long 0
    .align 8
idt:
    .rept 6
    .quad 0
    .endr
    .word 0, 0x48, 0x8500, 0     # 6: task gate
    .rept 6
    .quad 0
    .endr
    .word pm_gp, 8, 0x8e00, 0    # 13
    .word pm_pf, 8, 0x8e00, 0    # 14
    .rept 0x30 - 15
    .quad 0
    .endr
    .word pm_int30, 8, 0x8e00, 0 # 30H
    .align 8
shared: .long 0
saved: .long 0
tss1: .skip 104
tss2: .long 0, 0, 0, 0, 0, 0, 0
    .long 0, 0, 0
    .long 0, 0, 0, 0, 0, 0, 0, 0
    .long 0x10, 0x08, 0x10, 0x10, 0x10, 0x10, 0
    .long 0
    .org 17*512
