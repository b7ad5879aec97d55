"""Float64 step-by-step references, in numpy, with their gradients."""
