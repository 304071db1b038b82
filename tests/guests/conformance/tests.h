X(caps)
X(fields) X(pointers) X(vmxon) X(touch) X(timer) X(patefer) X(crs) X(io) X(insns) X(ept) X(eptad) X(interrupts) X(nmi)
    X(debugctl) X(msrs) X(events)
