"""How products are cut into what a thread block works on at once: from shapes and the device, by predicted time.

The model's constants are read off the compiled kernels or follow from the hardware's documented widths; none has been
measured on a GPU yet. A wrong one costs time, never a result.
"""

from functools import cache

from sparsekern.backends.cuda.extension import kernels
from sparsekern.backends.cuda.slots import GROUP, MOST_MINORS

# Clocks of a multiprocessor. A group's 16 rows of 16 tokens (512 bytes) leave shared memory in 4 at the best, with the
# bank conflicts that the minors' order leaves in 1.1 times as many; its own slots arrive in 2. 512 bytes of activations
# enter it in 4, for which their place in the order is read in 1.
_GATHER, _CONFLICTS, _SLOTS = 4, 1.1, 2
_FILL_BYTES = 512 / 5
# Instructions of a group: so many, and so many more for each 16 tokens; 4 start in a clock.
_INSTRUCTIONS, _INSTRUCTIONS_A_PART, _ISSUED = 20, 4, 4
_L2_BYTES = 24  # that arrive in a clock, when all multiprocessors ask
_START = 2000  # until the first activations and slots are there


def chunk_of(shared_bytes: int, tokens: int, minors: int) -> int:
    """Minors of a chunk: as few chunks as can be of which two, of so many tokens of 2 bytes, fit into shared memory."""
    most = min(MOST_MINORS, shared_bytes // (2 * 2 * tokens) // 8 * 8)
    chunks = max(1, -(-minors // most))
    return -(-minors // (chunks * 8)) * 8 if chunks > 1 else max(1, minors)


@cache
def spmm_tile(
    tokens: int, majors: int, minors: int, nnz: int, shared_bytes: int, processors: int
) -> tuple[tuple[int, int], int]:
    """The tile (tokens, blocks a warp) of a product, and its chunk's minors."""

    def clocks(tile: tuple[int, int]) -> float:
        tile_tokens, blocks = tile
        chunk = chunk_of(shared_bytes, tile_tokens, minors)
        sets = -(-majors // (kernels().spmm_warps * blocks * 8))
        items = sets * -(-tokens // tile_tokens)
        lists = -(-minors // chunk) * -(-majors // 8)
        groups = (nnz / GROUP + min(lists, nnz) / 2) / sets
        parts = tile_tokens / 16
        activations = minors * tile_tokens * 2
        gather = groups * (_GATHER * _CONFLICTS * parts + _SLOTS) + activations / _FILL_BYTES
        issue = groups * (_INSTRUCTIONS + _INSTRUCTIONS_A_PART * parts) / _ISSUED
        staging = (activations + groups * GROUP * 4) / _L2_BYTES
        return -(-items // processors) * max(gather, issue, staging) + _START

    tile = min(kernels().spmm_tiles, key=clocks)
    return tile, chunk_of(shared_bytes, tile[0], minors)
