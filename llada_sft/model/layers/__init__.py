"""What networks are made of.

basic.py         matrices, embeddings and norms whose values are not drawn
attention.py     bidirectional attention with rotary positions
blocks.py        attention in blocks: block-causal, or noisy blocks that see clean ones before them
chunks.py        the same, of documents of one length, chunk by chunk
flex.py          the same on CUDA, by FlexAttention
cache.py         keys and values of positions that a pass does not compute, for sampling
head.py          the head, and the loss of its logits piece by piece
experts.py       the experts of a layer, and the choice of those that compute a token
balance.py       losses of routers, and how even the load of experts is
block.py         attention, and MLP or experts, around the residual stream
activations.py   what the backward pass keeps of a block, and what it computes again
kept_bytes.py    how many bytes that is
"""
