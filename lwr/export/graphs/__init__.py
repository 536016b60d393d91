"""Layouts `onnx` and `openvino`: an exit as a graph for onnxruntime or OpenVINO."""
