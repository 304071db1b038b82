# SDM 30.6: the notification vector has what is posted processed: ON and PIR are cleared, VIRR and RVI set, no exit.
#? set pin 7
#? set primary 21
#? set secondary 9
#? set exit 15
#? virtualapic
#? field 0x0002 = 0xf2
#? pidescriptor 0x31 0x91
#? interrupt 0xf2
#? expect VMCALL vector=0x91
#? check vapic 0x210 0x00020000
#? check field 0x0810 0x9131
#? check descriptor 0 0
#? check descriptor 16 0
#? check descriptor 32 0
    sti
    nop
    nop
    hlt
