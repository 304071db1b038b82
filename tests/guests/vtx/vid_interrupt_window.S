# SDM 30.2.1: with interrupt-window exiting no virtual interrupt is recognized; the window exits instead.
#? set primary 21
#? set primary 2
#? set secondary 9
#? virtualapic
#? vapic 0x220 = 0x00000002
#? field 0x0810 = 0x41
#? expect INTERRUPT_WINDOW
#? clear primary 2
#? expect VMCALL vector=0x41
    sti
    nop
    hlt
