"""ctxwatch: watch the contexts an x86 guest in QEMU saves and resumes."""

__version__ = "0.1.0"
