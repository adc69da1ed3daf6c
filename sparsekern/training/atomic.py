"""Files that are replaced whole or not at all: `sparsekern.atomic`, for the trainer's."""

from sparsekern.atomic import replace_file, sync

__all__ = ["replace_file", "sync"]
