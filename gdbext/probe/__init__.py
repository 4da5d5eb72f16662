"""The probe's C source: a TCG plugin, built on demand by gdbext.qemu.probe."""
