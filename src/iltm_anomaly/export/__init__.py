"""A pipeline as one ONNX file (`graph`), and what scores images with it without torch (`scorer`)."""
