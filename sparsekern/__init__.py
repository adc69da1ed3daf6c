"""sparsekern: PyTorch layers that train always sparse."""

import torch  # noqa: F401  (first: the extension finds torch's libraries already loaded)
