"""A Triton backend "cpu" that compiles nothing: with TRITON_INTERPRET=1 kernels run in Triton's interpreter on CPU tensors.

vLLM's V2 runner wants Triton, and Triton wants an active driver. Triton finds this one by its entry point, as it finds every
backend; it is seen only by the tests' processes that have the folder above on PYTHONPATH.
"""
