"""Starting and watching workers. Standard library and psutil only; never the torch stack, gradio or
the host.
"""
