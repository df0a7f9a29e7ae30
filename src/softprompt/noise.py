"""Lines that torchao and bitsandbytes log when they are imported, and that say nothing of what softprompt does.

Transformers and PEFT import both wherever they are installed, whether or not a base is quantised.
"""

from __future__ import annotations

import logging

_LINES = {
    "torchao": "Failed to load ",  # kernels for GPUs that this machine hasn't
    "torchao.kernel.intmm": "Warning: Detected no triton",
    "torch.utils._pytree": "%s is an Enum subclass",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",  # at every product
}


def silence() -> None:
    """Drop these lines, and no others of these loggers."""
    for name, start in _LINES.items():
        logging.getLogger(name).addFilter(_Drop(start))


class _Drop(logging.Filter):
    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._start)
