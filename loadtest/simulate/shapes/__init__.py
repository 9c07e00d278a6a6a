"""What a model is for the cost model, read from its own files.

config_json  of a Hugging Face folder
gguf_file    a GGUF file's header
named        a description, such a folder, or such a file, by name or path
"""
