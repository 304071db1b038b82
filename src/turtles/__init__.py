"""An L0 hypervisor for unmodified hypervisors, on a processor of its own (Turtles, OSDI 2010)."""
