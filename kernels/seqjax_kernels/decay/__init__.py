"""The additive rule with decay: S_t = exp(g_t) S_{t-1} + k_t v_t^T.

`scalar` has at most one gate a token and head, `channel` one a key channel.
Each offers `forward` and `backward`; whoever calls them owns the derivative.
"""
