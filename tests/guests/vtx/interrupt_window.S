# SDM 26.2, 27.7.5: interrupt-window exiting: exits at once where RFLAGS.IF = 1 and nothing blocks.
#? set primary 2
#? expect INTERRUPT_WINDOW rip=after_shadow
#? clear primary 2
#? expect HLT
    nop
    sti
    nop
after_shadow:
    nop
    hlt
