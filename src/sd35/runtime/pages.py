"""Page-locked host memory: what a card's copy engine reads by itself, beside the work, as fast as the bus is.

Memory that the system may move or swap out has no address that a card could rely on. The driver copies it
with one thread into locked memory of its own first, at about a tenth of that speed, and the host waits.
"""

import logging
import mmap
import weakref

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def page_locked(nbytes: int) -> Tensor:
    """Locked until the tensor itself is gone, and to the page: PyTorch's own rounds up to 2^n."""
    piece = whole_pages(nbytes)
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(piece.data_ptr(), piece.nbytes, 0)) != 0:
        log.warning(
            "the system locks no %d MB of memory for us, so copies to the card are slower", nbytes >> 20
        )
        return piece
    weakref.finalize(piece, runtime.cudaHostUnregister, piece.data_ptr()).atexit = False
    return piece


def whole_pages(nbytes: int) -> Tensor:
    """At least so many bytes of host memory, in pages that hold nothing else: a page is locked only once."""
    nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = torch.empty(nbytes + mmap.PAGESIZE, dtype=torch.uint8)
    start = -memory.data_ptr() % mmap.PAGESIZE
    return memory[start : start + nbytes]
