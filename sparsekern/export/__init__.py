"""Ways out: a trained sparse network as plain torch modules, a torch.export program, an ONNX file."""

from sparsekern.export.onnx_file import write_onnx
from sparsekern.export.plain import to_csr, to_dense
from sparsekern.export.program import export_program, write_program

__all__ = ["export_program", "to_csr", "to_dense", "write_onnx", "write_program"]
