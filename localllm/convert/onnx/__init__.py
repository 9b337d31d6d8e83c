"""A checkpoint or a GGUF -> a folder with an ONNX model, without PyTorch: export.py does it, the others are its parts.

decoder: the numbers; graph, on top of builder: the nodes; rope: the tables; blocks: ggml's blocks as ONNX Runtime's;
weights: the tensors and the data file; tokenizer: tokenizer.json out of a GGUF; beside: the texts beside the model.
"""
