"""GPU kernels, one folder a family beside the reference it must equal.

A kernel takes and returns arrays and knows nothing of seqjax: the operators
call it through their `implementation` argument. `launch.call` starts all of
them. Nothing here imports Triton before a kernel is launched.
"""
