"""x86-64 and ia32 facts: registers, flags, frames, descriptors, vectors. No I/O, nothing imported from ctxwatch."""
