"""The other end of a run: whoever starts a worker and watches it. Standard library and psutil only;
never the torch stack, gradio or the host.
"""
