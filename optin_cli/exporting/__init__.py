"""Exported files (ONNX, torch.export, OpenVINO): writing, certifying and running them."""
